// SPDX-License-Identifier: Apache-2.0

package bpf_test

import "testing"

// TestEviction has flows of which the full map evicted a half.
func TestEviction(t *testing.T) {
	to := func(w world) flow { return flow{w.node, w.remote, 40000, targetPort, w.proto} }
	sent := func(w world) flow { return flowOf(w.first(w.vip, servicePort)) }
	// half is the change that makes an entry one of a known flow, last seen
	// some seconds ago.
	half := func(s *state, w world, flags uint8, ago uint32) func(*entry) {
		id := s.backendID(1, backend{w.remote, targetPort, 0})
		return func(e *entry) {
			e.Service, e.Backend, e.Generation, e.Flags = 1, id, 1, flags|flowMasquerade|flowSeenReply
			e.LastSeenSeconds -= ago
		}
	}
	given := func(s *state, w world) {
		s.add(w.both(w.remote, 0, frontendMasqueradeExternal))
		s.masqueradePorts(40000, 40001)
	}
	// The two halves, and what goes by them.
	onlyForward := func(flags uint8) func(*state, world) {
		return func(s *state, w world) {
			given(s, w)
			s.putConntrack(sent(w), to(w), half(s, w, flags, 2))
		}
	}
	onlyReply := func(s *state, w world) {
		given(s, w)
		s.putConntrack(to(w).reversed(), sent(w).reversed(), half(s, w, flowReply, 2))
	}
	forward := func(w world) step {
		in := w.first(w.vip, servicePort).data("x")
		return forwards(arriving, in, in.source(w.node, 40000).destination(w.remote, targetPort).toRemote())
	}
	reply := func(w world) step {
		in := w.first(w.remote, targetPort).source(w.node, 40000).reply().data("y")
		in.to, in.from = linkMAC[uplink], remoteMAC
		return forwards(arriving, in, in.source(w.vip, servicePort).destination(w.client, clientPort).toClient())
	}
	both := func(flags uint8) func(*state, world) {
		return func(s *state, w world) { s.hasFlow(sent(w), to(w), flags|flowMasquerade|flowSeenReply) }
	}
	protos := []uint8{tcp, udp, sctp}
	play(t, []fixture{
		{
			sentence: "the reply's half that was evicted is put back by the next packet, and replies go by it", protos: protos,
			given: onlyForward(0), steps: func(w world) []step { return []step{forward(w), reply(w)} }, then: both(0),
		},
		{
			sentence: "the forward half that was evicted is put back by the next reply, and packets go by it", protos: protos,
			given: onlyReply, steps: func(w world) []step { return []step{reply(w), forward(w)} }, then: both(0),
		},
		{
			sentence: "the half that is put back knows which side has closed", protos: []uint8{tcp},
			given: onlyForward(flowClosing), steps: func(w world) []step { return []step{forward(w)} },
			then: func(s *state, w world) {
				e, ok := s.conntrack(to(w).reversed())
				if want := uint8(flowReply | flowMasquerade | flowSeenReply | flowPeerClosing); !ok || e.Flags != want {
					s.t.Errorf("the reply's half has flags %#x (found: %v), want %#x", e.Flags, ok, want)
				}
			},
		},
		{
			// other's flow has the tuple that client's flow had before the reply
			// half of the latter was evicted.
			sentence: "half an entry that was evicted does not let a flow into another's connection from the next second on",
			given: func(s *state, w world) {
				given(s, w)
				theirs := flowOf(w.first(w.vip, servicePort).source(w.other, clientPort))
				s.putConntrack(sent(w), to(w), half(s, w, 0, 2))
				s.putConntrack(theirs, to(w), half(s, w, 0, 0))
				s.putConntrack(to(w).reversed(), theirs.reversed(), half(s, w, flowReply, 0))
			},
			steps: func(w world) []step {
				theirs := w.first(w.vip, servicePort).source(w.other, clientPort).data("x")
				goesOn := forwards(arriving, theirs, theirs.source(w.node, 40000).destination(w.remote, targetPort).toRemote())
				mine := w.first(w.vip, servicePort).data("y")
				if w.proto == tcp { // is of no flow, and begins none
					return []step{goesOn, answers(arriving, mine, refused(mine)), goesOn}
				}
				begins := forwards(arriving, mine, mine.source(w.node, clientPort).destination(w.remote, targetPort).toRemote())
				return []step{goesOn, begins, goesOn}
			},
			then: func(s *state, w world) {
				theirs := flowOf(w.first(w.vip, servicePort).source(w.other, clientPort))
				if e, ok := s.conntrack(to(w).reversed()); !ok || unword(e.Destination) != theirs.src {
					s.t.Errorf("the other's flow lost its half: %+v, found: %v", e, ok)
				}
				if e, ok := s.conntrack(sent(w)); ok && swap(e.SourcePort) == 40000 {
					s.t.Errorf("the half whose place is another's is still there: %+v", e)
				}
			},
		},
	})
}
