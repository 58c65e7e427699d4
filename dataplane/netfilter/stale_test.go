// SPDX-License-Identifier: Apache-2.0

package netfilter

import (
	"errors"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
)

// eachWay runs a test once with the kernel's filter and once as on a kernel
// that has none.
func eachWay(t *testing.T, test func(t *testing.T, l *lab)) {
	t.Run("filtered", func(t *testing.T) { test(t, newLab(t)) })
	t.Run("unfiltered", func(t *testing.T) {
		l := newLab(t)
		l.ct.unfiltered = true
		test(t, l)
	})
}

func TestUDPFlowsOfARemovedBackendMoveWithTheNextDatagram(t *testing.T) {
	eachWay(t, func(t *testing.T, l *lab) {
		l.serve(backendA)
		l.serve(backendB)
		key, other := udpFrontend(53), udpFrontend(54)
		l.send(key, at(backendA))
		l.send(other, at(backendA))
		c, bystander := l.udp(key), l.udp(other)
		l.wantAnswer(c, backendA.String(), "before")
		l.wantAnswer(bystander, backendA.String(), "before")

		l.send(key, at(backendB))
		l.send(other, at(backendB))
		l.wantAnswer(c, backendA.String(), "after the rules changed, with the flow still there")
		l.endStale(1, FlowRule{Frontend: key, Keep: keep(backendB)})
		l.wantAnswer(c, backendB.String(), "after its flow was ended")
		l.wantAnswer(bystander, backendA.String(), "a flow to a Frontend without a rule")
		l.endStale(0, FlowRule{Frontend: key, Keep: keep(backendB)})
	})
}

func TestIPv6FlowsAreEndedToo(t *testing.T) {
	eachWay(t, func(t *testing.T, l *lab) {
		key := dataplane.FrontendKey{Address: frontend6, Port: 53, Protocol: dataplane.UDP}
		l.serve(backendA6)
		l.send(key, at(backendA6))
		c := l.udp(key)
		l.wantAnswer(c, backendA6.String(), "before")
		l.endStale(0, FlowRule{Frontend: key, Keep: keep(backendA6)})
		l.endStale(1, FlowRule{Frontend: key, Keep: nil})
		if got := l.backendsSeen(key); len(got) != 0 {
			t.Errorf("flows left: %v", got)
		}
	})
}

func TestUDPThatWentPastANewServiceIsEnded(t *testing.T) {
	eachWay(t, func(t *testing.T, l *lab) {
		l.serve(backendA)
		key := udpFrontend(53)
		c := l.udp(key)
		l.wantAnswer(c, "", "without a Service")
		l.send(key, at(backendA))
		l.wantAnswer(c, "", "while the untranslated flow is there")
		l.endStale(1, FlowRule{Frontend: key, Keep: keep(backendA)})
		l.wantAnswer(c, backendA.String(), "after it was ended")
	})
}

// https://github.com/kubernetes/kubernetes/issues/139628
func TestOneWayUDPIsEndedWhenNoBackendIsLeft(t *testing.T) {
	eachWay(t, func(t *testing.T, l *lab) {
		key := udpFrontend(8125)
		l.send(key, at(silentA))
		l.wantAnswer(l.udp(key), "", "a silent Backend")
		l.endStale(1, FlowRule{Frontend: key, Keep: nil})
	})
}

func TestHalfOpenTCPMovesAndEstablishedStays(t *testing.T) {
	eachWay(t, func(t *testing.T, l *lab) {
		l.serve(backendA)
		key := tcpFrontend(80)
		l.send(key, at(backendA))
		c, err := net.DialTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(client, 0)), net.TCPAddrFromAddrPort(addrPortOf(key)))
		must(t, err)
		defer c.Close()
		l.wantAnswer(c, backendA.String(), "before")
		l.send(key, at(silentA))
		l.halfOpen(key)
		l.send(key, at(silentB))
		l.halfOpen(key)

		l.endStale(1, FlowRule{Frontend: key, Keep: keep(silentB)})
		if got, want := l.backendsSeen(key), []netip.AddrPort{at(backendA), at(silentB)}; !sameSet(got, want) {
			t.Errorf("flows go to %v, want %v", got, want)
		}
		l.wantAnswer(c, backendA.String(), "an established connection to a Backend that is not kept")
		// The SYN that is sent again after a second goes to the new Backend.
		waitFor(t, 3*time.Second, func() bool {
			return sameSet(l.backendsSeen(key), []netip.AddrPort{at(backendA), at(silentB), at(silentB)})
		})
	})
}

func TestOpeningSCTPIsEnded(t *testing.T) {
	eachWay(t, func(t *testing.T, l *lab) {
		key := dataplane.FrontendKey{Address: frontend, Port: 9, Protocol: dataplane.SCTP}
		l.send(key, at(silentA))
		l.sctpInit(key, 4001)
		l.send(key, at(silentB))
		l.sctpInit(key, 4002)
		l.endStale(1, FlowRule{Frontend: key, Keep: keep(silentB)})
		if got, want := l.backendsSeen(key), []netip.AddrPort{at(silentB)}; !slices.Equal(got, want) {
			t.Errorf("flows go to %v, want %v", got, want)
		}
	})
}

func TestManyRulesInOneCall(t *testing.T) {
	eachWay(t, func(t *testing.T, l *lab) {
		const many = 20 * exactMost
		var rules []FlowRule
		for port := uint16(1); port <= many; port++ {
			key := udpFrontend(port)
			l.translated[key] = at(silentA)
			if port%2 == 0 {
				l.translated[key] = at(silentB)
			}
			rules = append(rules, FlowRule{Frontend: key, Keep: keep(silentB)})
		}
		l.program()
		for _, r := range rules {
			_, err := l.udp(r.Frontend).Write([]byte("x"))
			must(t, err)
		}
		l.endStale(many/2, rules...)
	})
}

func TestWhatOneOfTwoRulesKeepsStays(t *testing.T) {
	l := newLab(t)
	l.serve(backendA)
	key := udpFrontend(53)
	l.send(key, at(backendA))
	l.wantAnswer(l.udp(key), backendA.String(), "before")
	// A Frontend that moved from one Service to another.
	l.endStale(0, FlowRule{Frontend: key, Keep: nil}, FlowRule{Frontend: key, Keep: keep(backendA)})
}

func TestAFlowInAZoneOfItsOwnIsEnded(t *testing.T) {
	l := newLab(t)
	key := udpFrontend(53)
	for _, zone := range []uint16{0, 7} {
		must(t, createFlow(l.ct.deletes, fakeFlow{
			orig:  tuple{netip.AddrPortFrom(client, 999), addrPortOf(key), dataplane.UDP},
			reply: tuple{at(backendA), netip.AddrPortFrom(client, 999), dataplane.UDP}, zone: zone,
		}))
	}
	l.endStale(2, FlowRule{Frontend: key, Keep: keep(backendB)})
}

func TestAYoungerFlowOfTheSameTupleIsNotHit(t *testing.T) {
	l := newLab(t)
	key := udpFrontend(53)
	f := fakeFlow{
		orig:  tuple{netip.AddrPortFrom(client, 999), addrPortOf(key), dataplane.UDP},
		reply: tuple{at(backendA), netip.AddrPortFrom(client, 999), dataplane.UDP},
	}
	must(t, createFlow(l.ct.deletes, f))
	var raced bool
	n, err := l.ct.EndStale([]FlowRule{{Frontend: key, Keep: func(netip.AddrPort) bool {
		if !raced { // between the look and the delete
			raced = true
			other, err := Open()
			must(t, err)
			defer other.Close()
			if n, err := other.EndStale([]FlowRule{{Frontend: key, Keep: nil}}); n != 1 || err != nil {
				t.Errorf("the other ended %d: %v", n, err)
			}
			f.reply.from = at(backendB)
			must(t, createFlow(other.deletes, f))
		}
		return false
	}}})
	if n != 0 || err != nil {
		t.Errorf("ended %d, %v; want none and no error", n, err)
	}
	if got, want := l.backendsSeen(key), []netip.AddrPort{at(backendB)}; !slices.Equal(got, want) {
		t.Errorf("flows go to %v, want %v", got, want)
	}
}

func TestAKernelWithoutTheFilterIsNoticed(t *testing.T) {
	l := newLab(t)
	key, other := udpFrontend(53), udpFrontend(54)
	for i, k := range []dataplane.FrontendKey{key, other} {
		must(t, createFlow(l.ct.deletes, fakeFlow{
			orig:  tuple{netip.AddrPortFrom(client, uint16(999+i)), addrPortOf(k), dataplane.UDP},
			reply: tuple{at(backendA), netip.AddrPortFrom(client, uint16(999+i)), dataplane.UDP},
		}))
	}
	s := selection{family: unix.NFPROTO_IPV4, protocol: dataplane.UDP, port: key.Port, address: key.Address}
	var seen []dataplane.FrontendKey
	see := func(f *flow) { seen = append(seen, f.frontend()) }
	if err := l.ct.read(s, s.encode(), see); err != nil || !slices.Equal(seen, []dataplane.FrontendKey{key}) {
		t.Errorf("filtered: %v, %v; want %s alone", seen, err, key)
	}
	if err := l.ct.read(s, nil, see); !errors.Is(err, errNoFilter) { // as a kernel that does not know the attributes
		t.Errorf("unfiltered: %v, want %v", err, errNoFilter)
	}
	if err := l.ct.read(s, nested(nil, ctaFilter, nil), see); !errors.Is(err, errNoFilter) {
		t.Errorf("a filter that the kernel refuses: %v, want %v", err, errNoFilter)
	}
}

func TestConntrackStaysInTheNamespaceItWasOpenedIn(t *testing.T) {
	l := newLab(t)
	key := udpFrontend(53)
	must(t, createFlow(l.ct.deletes, fakeFlow{
		orig:  tuple{netip.AddrPortFrom(client, 999), addrPortOf(key), dataplane.UDP},
		reply: tuple{at(backendA), netip.AddrPortFrom(client, 999), dataplane.UDP},
	}))
	here := threadNamespace(t)
	done := make(chan int)
	go func() {
		runtime.LockOSThread()
		if there, err := netns.Get(); err != nil || there.Equal(here) {
			t.Errorf("the other thread is in the lab's namespace (%v)", err)
		}
		n, err := l.ct.EndStale([]FlowRule{{Frontend: key, Keep: nil}})
		if err != nil {
			t.Error(err)
		}
		done <- n
	}()
	if n := <-done; n != 1 {
		t.Errorf("ended %d flows from another thread, want 1", n)
	}
}

func TestAClosedConntrackSaysSo(t *testing.T) {
	l := newLab(t)
	must(t, l.ct.Close())
	if _, err := l.ct.EndStale([]FlowRule{{Frontend: udpFrontend(1), Keep: nil}}); err == nil {
		t.Error("no error")
	}
	must(t, l.ct.Close())
}

func sameSet(a, b []netip.AddrPort) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.SortFunc(a, netip.AddrPort.Compare)
	slices.SortFunc(b, netip.AddrPort.Compare)
	return slices.Equal(a, b)
}

func waitFor(t *testing.T, d time.Duration, is func() bool) {
	t.Helper()
	for end := time.Now().Add(d); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s", d)
		}
	}
}
