// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"net/netip"
	"testing"

	"fairlead.dev/bpf"
)

type entry = bpf.FairleadConntrackEntry

func TestFlows(t *testing.T) {
	ghost := func(w world) backend { return backend{w.thin, targetPort, slotLocal} } // a Backend that was
	// known enters a flow to the ghost, and a Frontend that now has the pod.
	known := func(flags uint8) func(*state, world) {
		return func(s *state, w world) {
			s.add(w.both(w.pod, slotLocal, 0))
			sent := flowOf(w.first(w.vip, servicePort))
			out := flow{sent.src, w.thin, sent.sport, targetPort, w.proto}
			id := s.backendID(1, ghost(w))
			s.putConntrack(sent, out, func(e *entry) { e.Service, e.Backend, e.Generation, e.Flags = 1, id, 1, flags })
			s.putConntrack(out.reversed(), sent.reversed(), func(e *entry) { e.Service, e.Backend, e.Generation, e.Flags = 1, id, 1, flags|flowReply })
			s.retireBackend(1, ghost(w))
		}
	}
	gone := func(flags uint8) func(*state, world) {
		return func(s *state, w world) { known(flags)(s, w); s.removeBackend(1, ghost(w)) }
	}
	stays := func(change func(*packet)) func(world) []step {
		return func(w world) []step {
			in := w.first(w.vip, servicePort).with(change)
			return []step{forwards(arriving, in, in.destination(w.thin, targetPort).toThin())}
		}
	}
	moves := func(change func(*packet)) func(world) []step {
		return func(w world) []step {
			in := w.first(w.vip, servicePort).with(change)
			return []step{forwards(arriving, in, in.destination(w.pod, targetPort).toPod())}
		}
	}
	same := func(p *packet) {}
	flagged := func(f uint8) func(*packet) { return func(p *packet) { p.flags = f } }
	moved := func(s *state, w world) {
		sent := flowOf(w.first(w.vip, servicePort))
		s.hasFlow(sent, flow{sent.src, w.pod, sent.sport, targetPort, w.proto}, 0)
	}
	onlyTCP, onlyUDP := []uint8{tcp}, []uint8{udp}
	play(t, []fixture{
		{sentence: "a flow stays with a Backend that gets no new ones", protos: []uint8{tcp, udp, sctp}, given: known(flowSeenReply), steps: stays(same)},
		{sentence: "UDP to a removed Backend is moved to a live one", protos: onlyUDP, given: gone(flowSeenReply), steps: moves(same), then: moved},
		{sentence: "a SYN sent again to a removed Backend is moved to a live one", protos: onlyTCP, given: gone(0), steps: moves(same), then: moved},
		{sentence: "a SYN sent again to a Backend that still exists stays", protos: onlyTCP, given: known(0), steps: stays(same)},
		{sentence: "established TCP stays with a removed Backend", protos: onlyTCP, given: gone(flowSeenReply), steps: stays(flagged(ack))},
		{sentence: "a new connection from the port of one that ended is a new connection", protos: onlyTCP, given: known(flowSeenReply | flowClosing | flowPeerClosing), steps: moves(same), then: moved},
		{sentence: "the last ACK of a connection that ended still reaches its Backend", protos: onlyTCP, given: known(flowSeenReply | flowClosing | flowPeerClosing), steps: stays(flagged(ack))},
		{
			sentence: "an SCTP association that was never answered is moved off a removed Backend", protos: []uint8{sctp},
			given: func(s *state, w world) {
				gone(0)(s, w)
				b := set{backends: []backend{{w.pod, servicePort, slotLocal}}}
				s.add(frontend{id: 1, address: w.vip, port: servicePort, proto: sctp, internal: b, external: b})
			},
			steps: func(w world) []step {
				in := w.first(w.vip, servicePort)
				return []step{forwards(arriving, in, in.destination(w.pod, servicePort).toPod())}
			},
		},
	})
	play(t, endings())
	play(t, collisions())
}

// endings say what FIN and RST leave in conntrack.
func endings() []fixture {
	begin := func(w world) (in, there, back packet) {
		in = w.first(w.vip, servicePort)
		there = in.destination(w.pod, targetPort).toPod()
		return in, there, there.reply()
	}
	steps := func(then func(w world) []step) func(w world) []step {
		return func(w world) []step {
			in, there, back := begin(w)
			return append([]step{forwards(arriving, in, there), forwards(leavingPod, back, back.source(w.vip, servicePort).toClient())}, then(w)...)
		}
	}
	client := func(f uint8) func(w world) step {
		return func(w world) step {
			in, there, _ := begin(w)
			return forwards(arriving, in.flagged(f), there.flagged(f))
		}
	}
	server := func(f uint8) func(w world) step {
		return func(w world) step {
			_, _, back := begin(w)
			return forwards(leavingPod, back.flagged(f), back.flagged(f).source(w.vip, servicePort).toClient())
		}
	}
	flags := func(forward, reply uint8) func(s *state, w world) {
		return func(s *state, w world) {
			in, there, _ := begin(w)
			a, _ := s.conntrack(flowOf(in))
			b, _ := s.conntrack(flowOf(there).reversed())
			if a.Flags != forward|flowSeenReply || b.Flags != reply|flowSeenReply|flowReply {
				s.t.Errorf("flags forward %#x, reply %#x; want %#x and %#x", a.Flags, b.Flags, forward|flowSeenReply, reply|flowSeenReply|flowReply)
			}
		}
	}
	one := func(f func(world) step) func(w world) []step {
		return steps(func(w world) []step { return []step{f(w)} })
	}
	onlyTCP := []uint8{tcp}
	closed := uint8(flowClosing | flowPeerClosing)
	return []fixture{
		{sentence: "data end nothing", protos: onlyTCP, given: serves(pod, slotLocal, 0), steps: one(client(ack | psh)), then: flags(0, 0)},
		{sentence: "the client's FIN ends its direction", protos: onlyTCP, given: serves(pod, slotLocal, 0), steps: one(client(fin | ack)), then: flags(flowClosing, flowPeerClosing)},
		{sentence: "the Backend's FIN ends its direction", protos: onlyTCP, given: serves(pod, slotLocal, 0), steps: one(server(fin | ack)), then: flags(flowPeerClosing, flowClosing)},
		{sentence: "a FIN from both ends the connection", protos: onlyTCP, given: serves(pod, slotLocal, 0), steps: steps(func(w world) []step {
			return []step{client(fin | ack)(w), server(fin | ack)(w)}
		}), then: flags(closed, closed)},
		{sentence: "the client's RST ends the connection", protos: onlyTCP, given: serves(pod, slotLocal, 0), steps: one(client(rst)), then: flags(closed, closed)},
		{sentence: "the Backend's RST ends the connection", protos: onlyTCP, given: serves(pod, slotLocal, 0), steps: one(server(rst | ack)), then: flags(closed, closed)},
	}
}

// collisions are flows that would look alike at the Backend.
func collisions() []fixture {
	reachedTwice := func(s *state, w world) {
		f := w.both(w.pod, slotLocal, 0)
		g := f
		g.id, g.address = 2, w.node
		s.add(f, g)
		s.masqueradePorts(40000, 40000)
	}
	masqueraded := func(s *state, w world) {
		s.add(w.both(w.remote, 0, frontendMasqueradeExternal))
		s.masqueradePorts(40000, 40000)
	}
	through := func(w world, from netip.Addr, port, as uint16) step {
		in := w.first(w.vip, servicePort).source(from, port)
		return forwards(arriving, in, in.source(w.node, as).destination(w.remote, targetPort).toRemote())
	}
	// taken: the only port is a flow's that was silent for ago seconds and had
	// lasted for some.
	taken := func(ago, lasted uint32, flags uint8) func(*state, world) {
		return func(s *state, w world) {
			masqueraded(s, w)
			id := s.backendID(1, backend{w.remote, targetPort, 0})
			half := func(f uint8) func(*entry) {
				return func(e *entry) {
					e.Service, e.Backend, e.Generation, e.Flags = 1, id, 1, f|flags|flowMasquerade
					e.LastSeenSeconds -= ago
					e.CreatedSeconds = e.LastSeenSeconds - lasted
				}
			}
			sent, to := flowOf(w.first(w.vip, servicePort).source(w.client, 5555)), flow{w.node, w.remote, 40000, targetPort, w.proto}
			s.putConntrack(sent, to, half(0))
			s.putConntrack(to.reversed(), sent.reversed(), half(flowReply))
		}
	}
	return []fixture{
		{
			sentence: "one client port to two Frontends of one Backend stays two flows",
			given:    reachedTwice,
			steps: func(w world) []step {
				a, b := w.first(w.vip, servicePort), w.first(w.node, servicePort)
				toA, toB := a.destination(w.pod, targetPort).toPod(), b.source(w.client, 40000).destination(w.pod, targetPort).toPod()
				return []step{
					forwards(arriving, a, toA), forwards(arriving, b, toB),
					forwards(leavingPod, toA.reply(), toA.reply().source(w.vip, servicePort).toClient()),
					forwards(leavingPod, toB.reply(), toB.reply().source(w.node, servicePort).destination(w.client, clientPort).toClient()),
				}
			},
		},
		{
			sentence: "two clients with one port get two masquerade ports",
			given:    masqueraded,
			steps: func(w world) []step {
				return []step{through(w, w.client, clientPort, clientPort), through(w, w.other, clientPort, 40000)}
			},
		},
		{
			sentence: "no free masquerade port is a counted drop and leaves nothing behind",
			given:    masqueraded,
			steps: func(w world) []step {
				return []step{through(w, w.client, 5555, 40000), discards(arriving, w.first(w.vip, servicePort).source(w.other, 5555))}
			},
			then: func(s *state, w world) {
				s.dropped("ports_exhausted", 1)
				if n := s.conntrackCount(); n != 2 {
					s.t.Errorf("%d conntrack entries, want the first flow's 2", n)
				}
			},
		},
		{
			sentence: "the port of a flow that ended some seconds ago is taken again, and that flow is gone whole", protos: []uint8{tcp},
			given: func(s *state, w world) {
				masqueraded(s, w)
				over := func(f uint8) func(*entry) {
					return func(e *entry) {
						e.Service, e.Flags = 1, f|flowMasquerade|flowSeenReply|flowClosing|flowPeerClosing
						e.LastSeenSeconds -= 10
					}
				}
				sent, to := flowOf(w.first(w.vip, servicePort).source(w.client, 5555)), flow{w.node, w.remote, 40000, targetPort, w.proto}
				s.putConntrack(sent, to, over(0))
				s.putConntrack(to.reversed(), sent.reversed(), over(flowReply))
			},
			steps: func(w world) []step { return []step{through(w, w.other, 5555, 40000)} },
			then: func(s *state, w world) {
				if n := s.conntrackCount(); n != 2 {
					s.t.Errorf("%d conntrack entries, want the new flow's 2", n)
				}
			},
		},
		{
			sentence: "where ports are scarce, that of a question which has its answer is taken again, and its flow is gone whole", protos: []uint8{udp},
			given: taken(10, 0, flowSeenReply),
			steps: func(w world) []step { return []step{through(w, w.other, 5555, 40000)} },
			then: func(s *state, w world) {
				if n := s.conntrackCount(); n != 2 {
					s.t.Errorf("%d conntrack entries, want the new flow's 2", n)
				}
			},
		},
		{
			sentence: "the port of a question of a moment ago is not taken", protos: []uint8{udp}, given: taken(0, 0, flowSeenReply),
			steps: func(w world) []step {
				return []step{discards(arriving, w.first(w.vip, servicePort).source(w.other, 5555))}
			},
		},
		{
			sentence: "the port of a question that waits for its answer is not taken", protos: []uint8{udp}, given: taken(10, 0, 0),
			steps: func(w world) []step {
				return []step{discards(arriving, w.first(w.vip, servicePort).source(w.other, 5555))}
			},
		},
		{
			sentence: "the port of a stream is not taken", protos: []uint8{udp}, given: taken(10, 5, flowSeenReply),
			steps: func(w world) []step {
				return []step{discards(arriving, w.first(w.vip, servicePort).source(w.other, 5555))}
			},
		},
		{
			sentence: "a flow whose forward half was evicted gets its own port back",
			given:    masqueraded,
			steps: func(w world) []step {
				return []step{through(w, w.client, 5555, 40000)}
			},
			then: func(s *state, w world) {
				s.must(s.objects.Conntrack.Delete(flowOf(w.first(w.vip, servicePort).source(w.client, 5555)).key()))
				s.play(through(w, w.client, 5555, 40000))
			},
		},
		{
			sentence: "no node address of the family is a counted drop",
			given: func(s *state, w world) {
				masqueraded(s, w)
				s.must(s.objects.Settings.Put(uint32(0), bpf.FairleadNodeSettings{MasqueradePortMin: 40000, MasqueradePortMax: 50000}))
			},
			steps: func(w world) []step { return []step{discards(arriving, w.first(w.vip, servicePort))} },
			then:  func(s *state, w world) { s.dropped("no_masquerade_address", 1) },
		},
	}
}
