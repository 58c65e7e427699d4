// SPDX-License-Identifier: Apache-2.0

package bpf_test

import "testing"

// TestDatagramsFromAPortThatWasUsedBefore meet the entry of a flow of then,
// which went to thin; now the Frontend has the pod.
func TestDatagramsFromAPortThatWasUsedBefore(t *testing.T) {
	type silence struct {
		forward, reply uint32 // seconds since
		lasted         uint32 // seconds from the first datagram to the last
		flags          uint8
		retired        bool // thin gets nothing new
	}
	given := func(c silence) func(*state, world) {
		return func(s *state, w world) {
			before := backend{w.thin, targetPort, slotLocal}
			s.add(w.both(w.thin, slotLocal, 0))
			s.add(w.both(w.pod, slotLocal, 0))
			sent := flowOf(w.first(w.vip, servicePort))
			out := flow{sent.src, w.thin, sent.sport, targetPort, w.proto}
			id := s.backendID(1, before)
			half := func(ago uint32, flags uint8) func(*entry) {
				return func(e *entry) {
					e.Service, e.Backend, e.Generation, e.Flags = 1, id, 1, c.flags|flags
					e.LastSeenSeconds -= ago
					e.CreatedSeconds = e.LastSeenSeconds - c.lasted
				}
			}
			s.putConntrack(sent, out, half(c.forward, 0))
			s.putConntrack(out.reversed(), sent.reversed(), half(c.reply, flowReply))
			if c.retired {
				s.retireBackend(1, before)
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
	onlyUDP := []uint8{udp}
	var fixtures []fixture
	for _, c := range []struct {
		sentence string
		silence  silence
		steps    func(world) []step
	}{
		{"a question that was answered 20 s ago", silence{20, 20, 0, flowSeenReply, false}, stays},
		{"a question that was answered 40 s ago is over", silence{40, 40, 0, flowSeenReply, false}, moves},
		{"a question that was never answered is over after 40 s", silence{40, 40, 10, 0, false}, moves},
		{"a stream that is silent for 40 s goes on", silence{40, 40, 10, flowSeenReply, false}, stays},
		{"a stream that is silent for 200 s is over", silence{200, 200, 10, flowSeenReply, false}, moves},
		{"a stream whose server alone speaks goes on", silence{200, 1, 10, flowSeenReply, false}, stays},
		{"a question of a moment ago stays with a Backend that gets nothing new", silence{1, 1, 0, flowSeenReply, true}, stays},
		{"a question of 10 s ago leaves a Backend that gets nothing new", silence{10, 10, 0, flowSeenReply, true}, moves},
		{"a stream stays with a Backend that gets nothing new", silence{40, 40, 10, flowSeenReply, true}, stays},
	} {
		fixtures = append(fixtures, fixture{sentence: c.sentence, protos: onlyUDP, given: given(c.silence), steps: c.steps})
	}
	play(t, fixtures)
}
