// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"testing"

	"fairlead.dev/bpf"
)

const affinitySeconds = 60

func TestAffinity(t *testing.T) {
	silentOnly := func(w world) backend { return backend{w.pod, targetPort, slotLocal} }
	stuck := func(w world) backend { return backend{w.thin, targetPort, slotLocal} }
	// given has one eligible Backend, and a client that had another.
	given := func(age uint32, change func(*state, world)) func(*state, world) {
		return func(s *state, w world) {
			f := w.both(w.pod, slotLocal, 0)
			f.affinity = affinitySeconds
			s.add(f)
			id := s.backendID(1, stuck(w))
			s.must(s.objects.BackendStates.Put(id, bpf.FairleadBackendState{Generation: 1, EligibleSets: 1<<0 | 1<<1}))
			s.must(s.objects.Affinity.Put(bpf.FairleadAffinityKey{Client: word(w.client), Service: 1}, bpf.FairleadAffinityEntry{
				BackendAddress: word(w.thin), BackendPort: swap(targetPort), BackendFlags: slotLocal, Backend: id, Generation: 1, LastSeenSeconds: monotonic() - age}))
			if change != nil {
				change(s, w)
			}
		}
	}
	stays := func(w world) []step {
		in := w.first(w.vip, servicePort)
		return []step{forwards(arriving, in, in.destination(w.thin, targetPort).toThin())}
	}
	moves := func(w world) []step {
		in := w.first(w.vip, servicePort)
		return []step{forwards(arriving, in, in.destination(w.pod, targetPort).toPod())}
	}
	remembers := func(want func(world) backend) func(*state, world) {
		return func(s *state, w world) {
			var e bpf.FairleadAffinityEntry
			s.must(s.objects.Affinity.Lookup(bpf.FairleadAffinityKey{Client: word(w.client), Service: 1}, &e))
			b := want(w)
			if unword(e.BackendAddress) != b.address || swap(e.BackendPort) != b.port || e.Backend != s.backendID(1, b) || e.BackendFlags != b.flags {
				s.t.Errorf("affinity is with %v:%d (Backend %d), want %v:%d (%d)", unword(e.BackendAddress), swap(e.BackendPort), e.Backend, b.address, b.port, s.backendID(1, b))
			}
			if now := monotonic(); now-e.LastSeenSeconds > 2 {
				s.t.Errorf("affinity was not renewed: last seen %d, now %d", e.LastSeenSeconds, now)
			}
		}
	}
	play(t, []fixture{
		{sentence: "a client returns to its Backend, and the time starts anew", given: given(affinitySeconds-5, nil), steps: stays, then: remembers(stuck)},
		{sentence: "after the timeout any Backend may be chosen", given: given(affinitySeconds+5, nil), steps: moves, then: remembers(silentOnly)},
		{sentence: "affinity to a removed Backend is void", given: given(0, func(s *state, w world) { s.removeBackend(1, stuck(w)) }), steps: moves, then: remembers(silentOnly)},
		{sentence: "affinity to a Backend that gets no new flows is void", given: given(0, func(s *state, w world) { s.retireBackend(1, stuck(w)) }), steps: moves, then: remembers(silentOnly)},
		{
			sentence: "affinity to a Backend of the other scope alone is void",
			given: given(0, func(s *state, w world) {
				s.must(s.objects.BackendStates.Put(s.backendID(1, stuck(w)), bpf.FairleadBackendState{Generation: 1, EligibleSets: 1 << 0}))
			}),
			steps: moves, then: remembers(silentOnly),
		},
		{
			sentence: "another client's affinity is its own",
			given:    given(0, nil),
			steps: func(w world) []step {
				in := w.first(w.vip, servicePort).source(w.other, clientPort)
				return []step{forwards(arriving, in, in.destination(w.pod, targetPort).toPod())}
			},
		},
	})
}

func TestNewFlowsSpreadOverAllEligibleBackendsAndNoOther(t *testing.T) {
	s, w := newState(t), worldOf("IPv4", udp)
	f := w.both(w.pod, slotLocal, 0)
	f.external.backends = append(f.external.backends, backend{w.thin, targetPort, slotLocal}, backend{w.silent, targetPort, slotLocal}, backend{w.remote, targetPort, 0})
	s.add(f)
	s.masqueradePorts(1024, 65535)
	k := bpf.FairleadFrontendKey{Address: word(w.vip), Port: swap(servicePort), Protocol: udp}
	var v bpf.FairleadFrontend
	s.must(s.objects.Frontends.Lookup(k, &v))
	v.External.Eligible = 3 // the last one is terminating
	s.must(s.objects.Frontends.Put(k, v))
	const n = 900
	got := map[string]int{}
	for i := range uint16(n) {
		in := w.first(w.vip, servicePort).source(w.client, 10000+i)
		if v, _, err := s.run(arriving, in.bytes()); err != nil || v != redirect {
			t.Fatalf("%v, %v", v, err)
		}
		e, _ := s.conntrack(flowOf(in))
		got[unword(e.Destination).String()]++
	}
	for _, b := range f.external.backends[:3] { // binomial: 300 with deviation 14
		if c := got[b.address.String()]; c < n/3-90 || c > n/3+90 {
			t.Errorf("%v got %d of %d flows", b.address, c, n)
		}
	}
	if len(got) != 3 {
		t.Errorf("flows went to %v", got)
	}
}
