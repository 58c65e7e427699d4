// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

func TestTopologyCarriesTrafficWithoutAnyDataplane(t *testing.T) {
	start := time.Now()
	l := newLab(t)
	t.Logf("built in %v", time.Since(start))
	for _, client := range []string{"client", "bypass", "host1", "host2", "outside", "far", "pod2"} {
		for _, server := range []string{"a", "c", "d", "narrow", "host1", "client"} {
			for _, protocol := range []string{"TCP", "UDP", "SCTP"} {
				for _, ipv6 := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s-%s-%s-%v", client, server, protocol, ipv6), func(t *testing.T) {
						to := netip.AddrPortFrom(l.members[server].of(ipv6), 8080)
						got, err := l.members[client].do(call{Op: opAsk, Request: request{Protocol: protocol, To: to}})
						if err != nil {
							t.Fatal(err)
						}
						if got[0].Failure != "" || got[0].Backend != server {
							t.Fatalf("sent: %s to %s\nwant: answer of %s\nseen: %+v", protocol, to, server, got[0])
						}
						if from := got[0].Remote.Addr(); client != server && !l.members[client].host && from != l.members[client].of(ipv6) {
							t.Errorf("client %s was seen as %s", client, from)
						}
					})
				}
			}
		}
	}
}

func TestTopologyFindsThePathMTUWithoutAnyDataplane(t *testing.T) {
	l := newLab(t)
	for _, ipv6 := range []bool{false, true} {
		for _, path := range [][2]string{{"far", "a"}, {"outside", "narrow"}} {
			to := netip.AddrPortFrom(l.members[path[1]].of(ipv6), 8080)
			got, err := l.members[path[0]].do(call{Op: opAsk, Request: request{Protocol: "TCP", To: to, Upload: 1 << 20, Download: 1 << 20, Timeout: 5 * time.Second}})
			if err != nil {
				t.Fatal(err)
			}
			if got[0].Failure != "" || got[0].Corrupt {
				t.Errorf("1 MiB each way %s to %s: %+v", path[0], to, got[0])
			}
		}
	}
}

func TestNobodyAnswersForAMutePod(t *testing.T) {
	l := newLab(t)
	for _, ipv6 := range []bool{false, true} {
		to := netip.AddrPortFrom(l.nodes[0].pod(99).of(ipv6), 8080)
		got, err := l.members["client"].do(call{Op: opAsk, Request: request{Protocol: "TCP", To: to, Timeout: silentFor}})
		if err != nil {
			t.Fatal(err)
		}
		if got[0].Failure != timedOut {
			t.Errorf("to %s: want silence, seen %+v", to, got[0])
		}
	}
}
