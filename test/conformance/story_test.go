// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"net/netip"
	"syscall"
	"testing"
)

func TestSilenceIsNotBelievedOfANetworkThatAnswersNobody(t *testing.T) {
	l := newLab(t)
	s := &Story{variant: variant{IPv4, "TCP", "client"}, t: t, bench: &bench{lab: l}}
	nobody := netip.AddrPortFrom(l.nodes[0].pod(99).v4, serverPorts[0])
	if err := l.members["a"].cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	q := s.ask(nobody)
	q.dropped()
	if 2*q.r.Timeout <= answerWithin {
		t.Errorf("silence of %v was believed while no pod answered", q.r.Timeout)
	}
}
