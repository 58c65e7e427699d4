// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"encoding/binary"
	"net/netip"
	"testing"
)

// noHosts are sources that name no single host.
var noHosts = map[string][]string{
	"IPv4": {"0.0.0.0", "127.0.0.1", "127.255.255.255", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"},
	"IPv6": {"::", "::1", "ff02::1", "ff0e::1"},
}

// TestHostilePackets has what no honest sender sends, and what must not happen
// though it is sent.
func TestHostilePackets(t *testing.T) {
	claimed := func(s *state, w world) {
		s.add(frontend{id: 1, address: w.vip, flags: frontendAnyPort}, w.both(w.pod, slotLocal, 0))
	}
	rawLength := func(in packet, n uint16) packet { // the frame's IP length field says n
		b := in.l3()
		if in.isIPv6() {
			binary.BigEndian.PutUint16(b[4:], n-40)
			return in.with(func(p *packet) { p.frame = b })
		}
		binary.BigEndian.PutUint16(b[2:], n)
		b[10], b[11] = 0, 0
		binary.BigEndian.PutUint16(b[10:], ^sum16(b[:20]))
		return in.with(func(p *packet) { p.frame = b })
	}
	play(t, []fixture{
		{
			sentence: "a later TCP fragment is never answered: it has no TCP header to answer", protos: []uint8{tcp},
			given: claimed,
			steps: func(w world) []step {
				in := w.first(w.vip, servicePort).data("a segment of no known flow, in two parts").with(func(p *packet) { p.df, p.id = false, 7 })
				first, later := in.split(24)
				answer := refused(in.with(func(p *packet) { p.payload = p.payload[:4] }))
				return []step{answers(arriving, first, answer), discards(arriving, later)}
			},
		},
		{
			sentence: "a later fragment for a ClusterIP whose first part was not seen is not routed away",
			given:    claimed,
			steps: func(w world) []step {
				_, later := w.first(w.vip, servicePort).with(func(p *packet) { p.df, p.id, p.payload = false, 7, make([]byte, 64) }).split(24)
				return []step{discards(arriving, later)}
			},
			then: func(s *state, w world) { s.dropped("fragment", 1) },
		},
		{
			sentence: "IPv6 with IPv4-mapped addresses is not IPv4", families: []string{"IPv4"}, // RFC 6890: never on the wire
			given: claimed,
			steps: func(w world) []step {
				in := w.first(netip.AddrFrom16(w.vip.As16()), servicePort)
				in.src = netip.AddrFrom16(w.client.As16())
				return []step{leaves(arriving, in)}
			},
			then: func(s *state, w world) {
				if n := s.conntrackCount(); n != 0 {
					s.t.Errorf("%d conntrack entries", n)
				}
			},
		},
		{
			sentence: "a frame addressed to another machine is left alone", // a bridge floods, a capture makes the device promiscuous
			given:    claimed,
			steps: func(w world) []step {
				return []step{leaves(arriving, w.first(w.vip, servicePort).with(func(p *packet) { p.to = mac{2, 9, 9, 9, 9, 9} }))}
			},
		},
		{
			sentence: "an IP packet that says it is longer than its frame is left to the stack, which drops it",
			given:    claimed,
			steps: func(w world) []step {
				in := w.first(w.vip, servicePort)
				return []step{leaves(arriving, rawLength(in, uint16(len(in.l3())+1))), leaves(arriving, rawLength(in, 65535))}
			},
		},
		{
			sentence: "an IP packet that says it ends before its ports is left to the stack, which drops it",
			given:    claimed,
			steps: func(w world) []step {
				in := w.first(w.vip, servicePort)
				header := uint16(len(in.l3()) - len(in.l4()))
				return []step{leaves(arriving, rawLength(in, header+3)), leaves(arriving, rawLength(in, header))}
			},
		},
		{
			sentence: "an ICMP error does not quote what lies behind its end",
			given: func(s *state, w world) {
				sent := w.first(w.vip, servicePort)
				out := sent.source(w.node, clientPort).destination(w.remote, targetPort)
				s.putConntrack(flowOf(sent), flowOf(out), nil)
				s.putConntrack(flowOf(out).reversed(), flowOf(sent).reversed(), func(e *entry) { e.Flags = flowReply })
			},
			steps: func(w world) []step {
				out := w.first(w.vip, servicePort).source(w.node, clientPort).destination(w.remote, targetPort)
				e := w.errors()[0]
				in := w.about(out, uint8(e[0]), uint8(e[1]), e[2])
				in.to, in.from = linkMAC[uplink], gatewayMAC
				header := len(in.l3()) - len(in.l4())
				return []step{leaves(arriving, rawLength(in, uint16(header+8+20)))}
			},
		},
		{
			sentence: "Ethernet padding is no part of the packet",
			given:    claimed,
			steps: func(w world) []step {
				in := w.first(w.vip, servicePort).with(func(p *packet) { p.padding = 6 })
				return []step{forwards(arriving, in, in.destination(w.pod, targetPort).toPod())}
			},
		},
		{
			sentence: "no answer goes to a source that is not one host's", // RFC 1122, 3.2.2; RFC 4443, 2.4 (e)
			given: func(s *state, w world) {
				s.add(frontend{id: 1, address: w.vip, port: servicePort, proto: w.proto})
			},
			protos: []uint8{udp, tcp},
			steps: func(w world) (steps []step) {
				for _, a := range noHosts[w.family] {
					steps = append(steps, leaves(arriving, w.first(w.vip, servicePort).source(addr(a), clientPort)))
				}
				return steps
			},
		},
		{
			sentence: "a flow begins from a source that is not one host's no more than an answer goes there",
			given:    claimed, protos: []uint8{udp, tcp, sctp},
			steps: func(w world) (steps []step) {
				for _, a := range noHosts[w.family] {
					steps = append(steps, leaves(arriving, w.first(w.vip, servicePort).source(addr(a), clientPort)))
				}
				return steps
			},
			then: func(s *state, w world) {
				if n := s.conntrackCount(); n != 0 {
					s.t.Errorf("%d conntrack entries", n)
				}
			},
		},
		{
			sentence: "an ICMP error from what is no host is not sent on", // RFC 1812, 5.3.7
			given: func(s *state, w world) {
				sent := w.first(w.vip, servicePort)
				out := sent.source(w.node, clientPort).destination(w.remote, targetPort)
				s.putConntrack(flowOf(sent), flowOf(out), nil)
				s.putConntrack(flowOf(out).reversed(), flowOf(sent).reversed(), func(e *entry) { e.Flags = flowReply })
			},
			steps: func(w world) (steps []step) {
				out := w.first(w.vip, servicePort).source(w.node, clientPort).destination(w.remote, targetPort)
				e := w.errors()[0]
				for _, a := range noHosts[w.family] {
					in := w.about(out, uint8(e[0]), uint8(e[1]), e[2])
					in.src, in.to, in.from = addr(a), linkMAC[uplink], gatewayMAC
					steps = append(steps, leaves(arriving, in))
				}
				return steps
			},
		},
		{
			sentence: "an ICMP error at the end of its life is left to the stack",
			given: func(s *state, w world) {
				sent := w.first(w.vip, servicePort)
				out := sent.source(w.node, clientPort).destination(w.remote, targetPort)
				s.putConntrack(flowOf(sent), flowOf(out), nil)
				s.putConntrack(flowOf(out).reversed(), flowOf(sent).reversed(), func(e *entry) { e.Flags = flowReply })
			},
			steps: func(w world) []step {
				sent := w.first(w.vip, servicePort)
				out := sent.source(w.node, clientPort).destination(w.remote, targetPort)
				e := w.errors()[0]
				in, want := w.about(out, uint8(e[0]), uint8(e[1]), e[2]), w.about(sent, uint8(e[0]), uint8(e[1]), e[2])
				in.ttl, want.ttl = 1, 1
				want.quote = keepChecksum(want.quote, in.quote, w)
				in.to, in.from = linkMAC[uplink], gatewayMAC
				want.to, want.from = in.to, in.from
				return []step{rewrites(arriving, in, want)}
			},
		},
		{
			sentence: "the node's own packet to a host network Backend does not leave the node",
			given:    serves(node, slotLocal|slotHostNetwork, 0),
			// Nor can it be put in again: its source is the node's.
			steps: func(w world) []step { return []step{discards(leavingHost, w.fromTheNode(w.vip, servicePort))} },
			then:  func(s *state, w world) { s.dropped("no_route", 1) },
		},
		{
			sentence: "later fragments follow the first where options come between the fragment header and UDP", families: []string{"IPv6"}, protos: []uint8{udp},
			given: serves(pod, slotLocal, 0),
			steps: func(w world) []step {
				whole := w.first(w.vip, servicePort).with(func(p *packet) { p.payload = make([]byte, 64) })
				cut := func(p packet) (a, b packet) {
					options := optionsHeader(60, 1)
					body := append(append([]byte{udp}, options.body...), p.l4()...)
					a, b = p, p
					a.proto, a.raw, a.extensions = 60, body[:24], []extension{fragmentHeader(5, 0, true)}
					b.proto, b.raw, b.extensions = 60, body[24:], []extension{fragmentHeader(5, 24, false)}
					return a, b
				}
				a, b := cut(whole)
				c, d := cut(whole.destination(w.pod, targetPort).toPod())
				return []step{forwards(arriving, a, c), forwards(arriving, b, d)}
			},
		},
		{
			sentence: "a flow that gave way to a direct connection is gone whole", protos: []uint8{tcp},
			given: func(s *state, w world) {
				s.add(w.both(w.pod, slotLocal, 0))
				ended := func(f uint8) func(*entry) {
					return func(e *entry) { e.Service, e.Flags = 1, f|flowSeenReply|flowClosing|flowPeerClosing }
				}
				sent := flow{w.client, w.vip, 33333, servicePort, w.proto}
				out := flow{w.client, w.pod, 40001, targetPort, w.proto}
				s.putConntrack(sent, out, ended(0))
				s.putConntrack(out.reversed(), sent.reversed(), ended(flowReply))
			},
			steps: func(w world) []step {
				return []step{leaves(arriving, w.first(w.pod, targetPort).source(w.client, 40001))}
			},
			then: func(s *state, w world) {
				if n := s.conntrackCount(); n != 0 {
					s.t.Errorf("%d conntrack entries: a late segment of the old flow would enter the new connection", n)
				}
			},
		},
	})
}
