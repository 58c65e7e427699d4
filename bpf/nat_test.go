// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fairlead.dev/bpf"
)

// clientPort is a privileged one, which a flow keeps when it is free.
const servicePort, targetPort, clientPort = 80, 8080, 1000

// both is a Frontend with the same single Backend for each scope.
func (w world) both(to netip.Addr, slotFlags, flags uint8) frontend {
	b := set{backends: []backend{{to, targetPort, slotFlags}}}
	return frontend{id: 1, address: w.vip, port: servicePort, proto: w.proto, flags: flags, internal: b, external: b}
}

func serves(to func(world) netip.Addr, slotFlags, flags uint8) func(*state, world) {
	return func(s *state, w world) { s.add(w.both(to(w), slotFlags, flags)) }
}

func pod(w world) netip.Addr    { return w.pod }
func thin(w world) netip.Addr   { return w.thin }
func silent(w world) netip.Addr { return w.silent }
func remote(w world) netip.Addr { return w.remote }
func lost(w world) netip.Addr   { return w.lost }
func node(w world) netip.Addr   { return w.node }

func TestTranslation(t *testing.T) {
	play(t, []fixture{
		{
			sentence: "a client outside reaches a Backend here and sees the Service answer",
			given:    serves(pod, slotLocal, 0),
			steps: func(w world) []step {
				in := w.first(w.vip, servicePort)
				there := in.destination(w.pod, targetPort).toPod()
				back := there.reply()
				return []step{
					forwards(arriving, in, there),
					forwards(leavingPod, back, back.source(w.vip, servicePort).toClient()),
					forwards(arriving, in.data("more"), in.data("more").destination(w.pod, targetPort).toPod()),
				}
			},
			then: func(s *state, w world) {
				forward := flowOf(w.first(w.vip, servicePort))
				s.hasFlow(forward, flow{forward.src, w.pod, forward.sport, targetPort, w.proto}, flowSeenReply)
				s.counted(1, bpf.FairleadServiceCounters{Connections: 1, ForwardPackets: 2, ReversePackets: 1})
			},
		},
		{
			sentence: "external traffic is masqueraded where the Service says so",
			given:    serves(pod, slotLocal, frontendMasqueradeExternal),
			steps: func(w world) []step {
				in := w.first(w.vip, servicePort)
				there := in.source(w.node, clientPort).destination(w.pod, targetPort).toPod()
				back := there.reply()
				return []step{
					forwards(arriving, in, there),
					forwards(leavingPod, back, back.source(w.vip, servicePort).destination(w.client, clientPort).toClient()),
				}
			},
			then: func(s *state, w world) {
				forward := flowOf(w.first(w.vip, servicePort))
				s.hasFlow(forward, flow{w.node, w.pod, clientPort, targetPort, w.proto}, flowSeenReply|flowMasquerade)
			},
		},
		{
			sentence: "external traffic to a Backend elsewhere is masqueraded, or its reply would not come back",
			given:    serves(remote, 0, 0),
			steps: func(w world) []step {
				in := w.first(w.vip, servicePort)
				there := in.source(w.node, clientPort).destination(w.remote, targetPort).toRemote()
				back := there.reply()
				return []step{
					forwards(arriving, in, there),
					forwards(arriving, back, back.source(w.vip, servicePort).destination(w.client, clientPort).toClient()),
				}
			},
		},
		{
			sentence: "a pod's traffic is not masqueraded",
			given:    serves(remote, 0, frontendMasqueradeExternal),
			steps: func(w world) []step {
				in := w.fromThePod(w.vip, servicePort)
				there := in.destination(w.remote, targetPort).toRemote()
				back := there.reply()
				return []step{
					forwards(leavingPod, in, there),
					forwards(arriving, back, back.source(w.vip, servicePort).toPod()),
				}
			},
			then: func(s *state, w world) {
				forward := flowOf(w.fromThePod(w.vip, servicePort))
				s.hasFlow(forward, flow{w.pod, w.remote, forward.sport, targetPort, w.proto}, flowSeenReply|flowInternal)
			},
		},
		{
			sentence: "a pod elsewhere is internal though it comes through the uplink, and not masqueraded",
			given: func(s *state, w world) {
				f := w.both(w.pod, slotLocal, frontendMasqueradeExternal)
				f.external = set{onEmpty: emptyDrop}
				s.add(f)
			},
			steps: func(w world) []step {
				in := w.first(w.vip, servicePort).with(func(p *packet) { p.src, p.from = w.remote, remoteMAC })
				return []step{forwards(arriving, in, in.destination(w.pod, targetPort).toPod())}
			},
		},
		{
			sentence: "a pod that reaches itself sees the node, not itself",
			given:    serves(pod, slotLocal, 0),
			steps: func(w world) []step {
				in := w.fromThePod(w.vip, servicePort)
				there := in.source(w.node, clientPort).destination(w.pod, targetPort).toPod()
				back := there.reply()
				return []step{
					forwards(leavingPod, in, there),
					forwards(leavingPod, back, back.source(w.vip, servicePort).destination(w.pod, clientPort).toPod()),
				}
			},
		},
		{
			sentence: "a host network Backend is left to the stack under its own address, and its reply un-NATed as it leaves",
			given:    serves(node, slotLocal|slotHostNetwork, frontendMasqueradeExternal),
			steps: func(w world) []step {
				in := w.first(w.vip, servicePort)
				back := in.destination(w.node, targetPort).reply()
				return []step{
					rewrites(arriving, in, in.destination(w.node, targetPort)),
					rewrites(leavingHost, back, back.source(w.vip, servicePort)),
				}
			},
		},
		{
			sentence: "the node's own packet goes where the Service says, and the reply finds it",
			given:    serves(pod, slotLocal, frontendMasqueradeExternal),
			steps: func(w world) []step {
				in := w.fromTheNode(w.vip, servicePort)
				there := in.destination(w.pod, targetPort).with(func(p *packet) { p.to, p.from = podMAC, linkMAC[podLink] })
				back := there.reply()
				return []step{
					forwards(leavingHost, in, there),
					// It enters by the device that leads to the Service's address, or
					// strict reverse path filtering would drop it.
					forwards(leavingPod, back, back.source(w.vip, servicePort).with(func(p *packet) { p.to, p.from = linkMAC[uplink], linkMAC[uplink] })),
				}
			},
		},
		{
			sentence: "a Backend without a neighbour entry is resolved on the way out",
			given:    serves(silent, slotLocal, 0),
			steps: func(w world) []step {
				in := w.first(w.vip, servicePort)
				return []step{forwards(arriving, in, in.destination(w.silent, targetPort).with(func(p *packet) { p.ttl-- }))}
			},
		},
		{
			sentence: "a packet at the end of its life is left to the stack, which says so",
			given:    serves(pod, slotLocal, 0),
			steps: func(w world) []step {
				in := w.first(w.vip, servicePort).with(func(p *packet) { p.ttl = 1 })
				return []step{rewrites(arriving, in, in.destination(w.pod, targetPort))}
			},
		},
		{
			sentence: "a Backend no route leads to is a counted drop",
			given:    serves(lost, 0, 0),
			steps:    func(w world) []step { return []step{discards(arriving, w.first(w.vip, servicePort))} },
			then:     func(s *state, w world) { s.dropped("no_route", 1) },
		},
		{
			sentence: "a checksum that was wrong stays wrong by as much",
			given:    serves(pod, slotLocal, 0),
			steps: func(w world) []step {
				in := w.first(w.vip, servicePort).with(func(p *packet) { p.badChecksumDelta = 1 })
				return []step{forwards(arriving, in, in.destination(w.pod, targetPort).toPod())}
			},
		},
		{
			sentence: "UDP without a checksum stays without",
			families: []string{"IPv4"}, protos: []uint8{udp},
			given: serves(pod, slotLocal, frontendMasqueradeExternal),
			steps: func(w world) []step {
				in := w.first(w.vip, servicePort).with(func(p *packet) { p.noChecksum = true })
				return []step{forwards(arriving, in, in.source(w.node, clientPort).destination(w.pod, targetPort).toPod())}
			},
		},
		{
			sentence: "a UDP checksum that comes out as zero is written as all ones",
			protos:   []uint8{udp},
			given:    serves(pod, slotLocal, 0),
			steps: func(w world) []step {
				in := w.first(w.vip, servicePort)
				out := in.destination(w.pod, targetPort).toPod()
				b := out.l4()
				in.payload = append([]byte("hello?!!"), b[6], b[7]) // sums to zero with what b's checksum leaves out
				for x := range 0x10000 {
					in.payload[8], in.payload[9] = byte(x>>8), byte(x)
					l4 := in.destination(w.pod, targetPort).l4()
					if l4[6] == 0xff && l4[7] == 0xff {
						break
					}
				}
				return []step{forwards(arriving, in, in.destination(w.pod, targetPort).toPod())}
			},
		},
		{
			sentence: "IPv4 options do not hide the ports",
			families: []string{"IPv4"},
			given:    serves(pod, slotLocal, 0),
			steps: func(w world) []step {
				in := w.first(w.vip, servicePort).with(func(p *packet) { p.options = []byte{7, 39, 4, 39: 0} })
				return []step{forwards(arriving, in, in.destination(w.pod, targetPort).toPod())}
			},
		},
		{
			sentence: "SCTP's checksum follows its ports",
			protos:   []uint8{sctp},
			given:    serves(remote, 0, 0),
			steps: func(w world) (steps []step) {
				for n := range 9 { // lengths with each bit set
					in := w.first(w.vip, servicePort).source(w.client, clientPort+uint16(n))
					in.payload = make([]byte, 4<<n)
					there := in.source(w.node, in.sport).destination(w.remote, targetPort).toRemote()
					back := there.reply()
					steps = append(steps,
						forwards(arriving, in, there),
						forwards(arriving, back, back.source(w.vip, servicePort).destination(w.client, in.sport).toClient()))
				}
				return steps
			},
		},
		{
			sentence: "a port that a client may also connect from directly is replaced by one of ours",
			protos:   []uint8{tcp, udp, sctp},
			given: func(s *state, w world) {
				s.add(w.both(w.pod, slotLocal, 0))
				s.masqueradePorts(40000, 40000)
			},
			steps: func(w world) []step {
				in := w.first(w.vip, servicePort).source(w.client, 33333)
				there := in.source(w.client, 40000).destination(w.pod, targetPort).toPod()
				back := there.reply()
				same := w.first(w.vip, servicePort).source(w.other, 40000) // where it happens to be the same
				return []step{
					forwards(arriving, in, there),
					forwards(leavingPod, back, back.source(w.vip, servicePort).destination(w.client, 33333).toClient()),
					forwards(arriving, same, same.destination(w.pod, targetPort).toPod()),
				}
			},
		},
		{
			sentence: "a privileged client port is kept, since it means something to NFS",
			given:    serves(pod, slotLocal, frontendMasqueradeExternal),
			steps: func(w world) []step {
				in := w.first(w.vip, servicePort).source(w.client, 1023)
				return []step{forwards(arriving, in, in.source(w.node, 1023).destination(w.pod, targetPort).toPod())}
			},
		},
		{
			sentence: "traffic to what is no Frontend is left alone",
			protos:   []uint8{tcp, udp, sctp},
			given:    serves(pod, slotLocal, 0),
			steps: func(w world) []step {
				return []step{
					leaves(arriving, w.first(w.node, servicePort)), leaves(leavingPod, w.fromThePod(w.client, 443)),
					leaves(leavingHost, w.fromTheNode(w.client, 443)),
					leaves(arriving, w.first(w.vip, servicePort+1)), // no any-port Frontend claims it
				}
			},
			then: func(s *state, w world) {
				if n := s.conntrackCount(); n != 0 {
					s.t.Errorf("%d conntrack entries for traffic that is not ours", n)
				}
			},
		},
	})
}

// hasFlow fails the test unless both halves of a flow are there.
func (s *state) hasFlow(from, to flow, flags uint8) {
	s.t.Helper()
	check := func(from, to flow, flags uint8) {
		s.t.Helper()
		e, ok := s.conntrack(from)
		if !ok {
			s.t.Errorf("no conntrack entry for %v", from)
			return
		}
		got := flow{unword(e.Source), unword(e.Destination), swap(e.SourcePort), swap(e.DestinationPort), from.proto}
		if got != to || e.Flags != flags {
			s.t.Errorf("conntrack %v -> %v flags %#x, want %v flags %#x", from, got, e.Flags, to, flags)
		}
		if now := monotonic(); now-e.LastSeenSeconds > 2 || now-e.CreatedSeconds > 2 {
			s.t.Errorf("conntrack %v: created %d, last seen %d, now %d", from, e.CreatedSeconds, e.LastSeenSeconds, now)
		}
	}
	check(from, to, flags)
	check(to.reversed(), from.reversed(), flags|flowReply)
	if n := s.conntrackCount(); n != 2 {
		s.t.Errorf("%d conntrack entries, want 2", n)
	}
}

// counted compares a Service port's counters, but for the bytes.
func (s *state) counted(id uint32, want bpf.FairleadServiceCounters) {
	s.t.Helper()
	got := s.counters(id)
	if (got.ForwardBytes == 0) != (got.ForwardPackets == 0) || (got.ReverseBytes == 0) != (got.ReversePackets == 0) {
		s.t.Errorf("bytes do not go with packets: %+v", got)
	}
	got.ForwardBytes, got.ReverseBytes = 0, 0
	if got != want {
		s.t.Errorf("counters %+v, want %+v", got, want)
	}
}

// dropped fails the test unless exactly n packets were dropped, for reason.
func (s *state) dropped(reason string, n uint64) {
	s.t.Helper()
	if diff := cmp.Diff(map[string]uint64{reason: n}, s.drops()); diff != "" {
		s.t.Errorf("drops (-want +got):\n%s", diff)
	}
}
