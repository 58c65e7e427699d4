// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"encoding/binary"
	"testing"

	"fairlead.dev/bpf/packetmodel"
)

// refused is what a client gets for a packet to where nobody answers: RST
// (RFC 9293, 3.5.2) or port unreachable (RFC 792; RFC 4443, 3.1).
func refused(in packet) packet {
	if in.proto != tcp {
		if in.isIPv6() {
			return in.icmpError(1, 4, 0)
		}
		return in.icmpError(3, 3, 0)
	}
	out := in.back()
	out.payload, out.flags, out.seq, out.ack = nil, rst, in.ack, 0
	if in.flags&ack == 0 {
		n := uint32(len(in.payload))
		if in.flags&syn != 0 {
			n++
		}
		if in.flags&fin != 0 {
			n++
		}
		out.flags, out.seq, out.ack = rst|ack, 0, in.seq+n
	}
	return out
}

// back is a packet to where in came from, on the same link.
func (p packet) back() packet {
	q := packet{to: p.from, from: p.to, src: p.dst, dst: p.src, sport: p.dport, dport: p.sport, proto: p.proto, ttl: 64}
	q.df = !p.isIPv6()
	return q
}

// icmpError is an answer about in, which quotes its IP header and what tells
// the flow: 8 bytes, or TCP's whole header.
func (p packet) icmpError(kind, code uint8, rest uint32) packet {
	q := p.back()
	q.proto, q.kind, q.code, q.rest, q.sport, q.dport = icmp4, kind, code, rest, 0, 0
	if p.isIPv6() {
		q.proto = icmp6
	}
	l4 := 8
	if p.proto == tcp {
		l4 = 20
	}
	n := 20 + len(p.options)
	if p.isIPv6() {
		n = 40
		for _, e := range p.extensions {
			n += 1 + len(e.body)
		}
	}
	q.quote = p.l3()[:n+l4]
	return q
}

func TestRejection(t *testing.T) {
	empty := func(onEmpty uint8) func(*state, world) {
		return func(s *state, w world) {
			e := set{onEmpty: onEmpty}
			s.add(frontend{id: 1, address: w.vip, port: servicePort, proto: w.proto, internal: e, external: e})
		}
	}
	claimed := func(s *state, w world) {
		s.add(frontend{id: 1, address: w.vip, flags: frontendAnyPort}, w.both(w.pod, slotLocal, 0))
	}
	all := []uint8{tcp, udp, sctp}
	play(t, []fixture{
		{
			sentence: "no Backends: refused at once", protos: all,
			given: empty(emptyReject),
			steps: func(w world) []step {
				a, b, c := w.first(w.vip, servicePort), w.fromThePod(w.vip, servicePort), w.fromTheNode(w.vip, servicePort)
				return []step{answers(arriving, a, refused(a)), answers(leavingPod, b, refused(b)), answers(leavingHost, c, refused(c))}
			},
			then: func(s *state, w world) { s.dropped("no_backends", 3) },
		},
		{
			sentence: "no Backends and data beside the SYN: all of it is acknowledged", protos: []uint8{tcp},
			given: empty(emptyReject),
			steps: func(w world) []step {
				in := w.first(w.vip, servicePort).with(func(p *packet) { p.payload = []byte("fast open") })
				long := in.with(func(p *packet) { p.payload = make([]byte, 1200) })
				return []step{answers(arriving, in, refused(in)), answers(arriving, long, refused(long))}
			},
		},
		{
			sentence: "an answer to a packet with IP options has none", families: []string{"IPv4"},
			given: empty(emptyReject),
			steps: func(w world) []step {
				in := w.first(w.vip, servicePort).with(func(p *packet) { p.options = make([]byte, 40) })
				return []step{answers(arriving, in, refused(in))}
			},
		},
		{
			sentence: "an answer to a packet with extension headers has none", families: []string{"IPv6"},
			given: empty(emptyReject),
			steps: func(w world) []step {
				in := w.first(w.vip, servicePort).with(func(p *packet) { p.extensions = []extension{optionsHeader(0, 1), optionsHeader(60, 2)} })
				return []step{answers(arriving, in, refused(in))}
			},
		},
		{
			sentence: "a large datagram is quoted in part", protos: []uint8{udp, sctp},
			given: empty(emptyReject),
			steps: func(w world) []step {
				in := w.first(w.vip, servicePort).with(func(p *packet) { p.payload = make([]byte, 1400) })
				return []step{answers(arriving, in, refused(in))}
			},
		},
		{
			sentence: "traffic policy Local without a Backend here: silence", protos: all,
			given: empty(emptyDrop),
			steps: func(w world) []step { return []step{discards(arriving, w.first(w.vip, servicePort))} },
			then:  func(s *state, w world) { s.dropped("no_local_backends", 1) },
		},
		{
			sentence: "a port that a ClusterIP does not have is rejected, not routed", protos: all,
			given: claimed,
			steps: func(w world) []step {
				in, own := w.first(w.vip, servicePort+1), w.fromTheNode(w.vip, servicePort+1)
				return []step{answers(arriving, in, refused(in)), answers(leavingHost, own, refused(own))}
			},
			then: func(s *state, w world) { s.dropped("unknown_port", 2) },
		},
		{
			sentence: "a segment of no known flow is reset with the number it acknowledges", protos: []uint8{tcp},
			given: serves(pod, slotLocal, 0),
			steps: func(w world) []step {
				in := w.first(w.vip, servicePort).data("lost")
				end := in.flagged(fin | ack)
				return []step{answers(arriving, in, refused(in)), answers(arriving, end, refused(end))}
			},
			then: func(s *state, w world) { s.dropped("no_conntrack", 2) },
		},
		{
			sentence: "a reset is never answered with a reset", protos: []uint8{tcp},
			given: claimed,
			steps: func(w world) []step {
				return []step{
					discards(arriving, w.first(w.vip, servicePort).flagged(rst)),
					discards(arriving, w.first(w.vip, servicePort).flagged(rst|syn)),
				}
			},
		},
		{
			sentence: "source ranges drop who is not in them, and let in who is", protos: all,
			given: func(s *state, w world) {
				b := set{backends: []backend{{w.pod, servicePort, slotLocal}}}
				s.add(frontend{id: 1, address: w.vip, port: servicePort, proto: w.proto, flags: frontendSourceRanges, internal: b, external: b})
				s.allowSource(1, map[string]string{"IPv4": "198.51.100.8/31", "IPv6": "2001:db8:7::8/127"}[w.family])
				s.allowSource(2, map[string]string{"IPv4": "0.0.0.0/0", "IPv6": "::/0"}[w.family]) // another Service's
			},
			steps: func(w world) []step {
				in := w.first(w.vip, servicePort)
				ok := in.source(w.other, clientPort)
				return []step{
					discards(arriving, in),
					forwards(arriving, ok, ok.destination(w.pod, servicePort).toPod()),
					discards(leavingPod, w.fromThePod(w.vip, servicePort)),
				}
			},
			then: func(s *state, w world) { s.dropped("source_range", 2) },
		},
		{
			sentence: "a packet larger than the path is answered with the MTU that fits",
			given:    serves(thin, slotLocal, 0),
			steps: func(w world) []step {
				in := w.first(w.vip, servicePort).with(func(p *packet) { p.payload = make([]byte, 1420) })
				fits := uint32(thinMTU)
				if !tellsMTU {
					fits = uint32(packetmodel.SmallerMTU(len(in.l3())))
				}
				if w.family == "IPv6" {
					return []step{answers(arriving, in, in.icmpError(2, 0, fits))}
				}
				return []step{answers(arriving, in, in.icmpError(3, 4, fits))}
			},
			then: func(s *state, w world) { s.dropped("too_big", 1) },
		},
		{
			sentence: "a packet that just fits the path is forwarded",
			given:    serves(thin, slotLocal, 0),
			steps: func(w world) []step {
				in := w.first(w.vip, servicePort)
				in.payload = make([]byte, thinMTU-len(in.with(func(p *packet) { p.payload = nil }).l3()))
				return []step{forwards(arriving, in, in.destination(w.thin, targetPort).toThin())}
			},
		},
		{
			sentence: "a packet larger than the path that may be fragmented is left to the stack to do so", families: []string{"IPv4"},
			given: serves(thin, slotLocal, 0),
			steps: func(w world) []step {
				in := w.first(w.vip, servicePort).with(func(p *packet) { p.df, p.payload = false, make([]byte, 1420) })
				return []step{rewrites(arriving, in, in.destination(w.thin, targetPort))}
			},
		},
	})
}

// optionsHeader is a hop-by-hop (0) or destination options (60) header of n
// times 8 bytes, filled with PadN (RFC 8200, 4.2).
func optionsHeader(number uint8, n int) extension {
	b := make([]byte, 8*n-1)
	b[0] = byte(n - 1)
	b[1], b[2] = 1, byte(8*n-4)
	return extension{number, b}
}

func routingHeader() extension { // type 4, segments left 0 (RFC 8754)
	b := make([]byte, 7)
	b[1] = 4
	return extension{43, b}
}

func authenticationHeader() extension { // RFC 4302, length in 4-byte units less 2
	b := make([]byte, 23)
	b[0] = 24/4 - 2
	binary.BigEndian.PutUint32(b[3:], 0x100)
	return extension{51, b}
}
