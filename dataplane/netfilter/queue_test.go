// SPDX-License-Identifier: Apache-2.0

package netfilter

import (
	"net/netip"
	"testing"
	"time"

	"fairlead.dev/dataplane"
)

// changes gives the rules of a TCP Frontend's Backends that changed.
func changes(key dataplane.FrontendKey, from, to []netip.Addr) []FlowRule {
	state := func(addrs []netip.Addr) *dataplane.Service {
		s := setOf(addrs...)
		return service(dataplane.Frontend{FrontendKey: key, Internal: s, External: s})
	}
	return StaleRules(state(from), state(to))
}

func TestHalfOpenTCPOfARemovedBackendGoesSoon(t *testing.T) {
	l := newLab(t)
	key, other := tcpFrontend(80), tcpFrontend(81)
	for _, k := range []dataplane.FrontendKey{key, other} {
		l.send(k, at(silentA))
		l.halfOpen(k)
		l.send(k, at(silentB))
		l.halfOpen(k)
	}
	l.endStale(0, changes(key, []netip.Addr{silentA, silentB}, []netip.Addr{silentB})...)
	l.endStale(0, changes(other, []netip.Addr{silentA, silentB}, []netip.Addr{silentB})...)
	waitFor(t, 900*time.Millisecond, func() bool {
		return sameSet(l.backendsSeen(key), []netip.AddrPort{at(silentB)}) && sameSet(l.backendsSeen(other), []netip.AddrPort{at(silentB)})
	})
}

func TestHalfOpenTCPToABackendThatIsBackStays(t *testing.T) {
	l := newLab(t)
	key := tcpFrontend(80)
	l.send(key, at(silentA))
	l.halfOpen(key)
	l.send(key, at(silentB))
	l.halfOpen(key)
	both := []netip.Addr{silentA, silentB}
	l.endStale(0, changes(key, both, []netip.Addr{silentB})...)
	l.endStale(0, changes(key, []netip.Addr{silentB}, both)...)
	l.endStale(0, changes(key, both, []netip.Addr{silentA})...)
	waitFor(t, 900*time.Millisecond, func() bool { return sameSet(l.backendsSeen(key), []netip.AddrPort{at(silentA)}) })
}

func TestABackendThatIsBackWhileItsFlowsAreSoughtIsSpared(t *testing.T) {
	key := tcpFrontend(80)
	both := []netip.Addr{backendA, backendB}
	var q queue
	sought := make(chan rulesByFrontend)
	end := func(r rulesByFrontend) (int, error) { sought <- r; <-sought; return 0, nil }
	q.put(changes(key, both, nil), end)
	rules := <-sought
	r := rules[key][0]
	if r.Keep(at(backendA)) || r.Keep(at(backendB)) || !r.Keep(at(silentA)) {
		t.Error("not just what was lost is to be ended")
	}
	q.put(changes(key, nil, []netip.Addr{backendA}), end)
	if !r.Keep(at(backendA)) || r.Keep(at(backendB)) {
		t.Error("A, which is back, is to be ended, or B is not")
	}
	sought <- nil
	q.close()
}

func TestWhatWaitsIsDoneBeforeTheEnd(t *testing.T) {
	l := newLab(t)
	key := tcpFrontend(80)
	l.send(key, at(silentA))
	l.halfOpen(key)
	l.endStale(0, changes(key, []netip.Addr{silentA}, nil)...)
	must(t, l.ct.Close())
	var err error
	l.ct, err = Open()
	must(t, err)
	defer l.ct.Close()
	if got := l.backendsSeen(key); len(got) != 0 {
		t.Errorf("flows left: %v", got)
	}
}

func TestManyChangesAreOneWalk(t *testing.T) {
	var q queue
	walks := make(chan int, 100)
	end := func(r rulesByFrontend) (int, error) { walks <- len(r); return 0, nil }
	for port := range uint16(50) {
		q.put(changes(tcpFrontend(port+1), []netip.Addr{backendA, backendB}, []netip.Addr{backendB}), end)
	}
	q.close()
	if n := <-walks; n != 50 || len(walks) != 0 {
		t.Errorf("%d Frontends in the first walk and %d walks more, want 50 and none", n, len(walks))
	}
}
