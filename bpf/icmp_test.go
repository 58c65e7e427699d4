// SPDX-License-Identifier: Apache-2.0

package bpf_test

import "testing"

// about is an ICMP error that router sends to the source of p, as p went over
// the wire there.
func (w world) about(p packet, kind, code uint8, rest uint32) packet {
	q := p.icmpError(kind, code, rest)
	q.src, q.df = w.router, false
	return q
}

// errors are kind, code and rest of the ICMP errors that matter, by family.
func (w world) errors() [][3]uint32 {
	if w.family == "IPv6" {
		return [][3]uint32{{2, 0, 1280}, {3, 0, 0}, {1, 4, 0}, {4, 1, 6}}
	}
	return [][3]uint32{{3, 4, 1280}, {11, 0, 0}, {3, 3, 0}, {12, 0, 0}}
}

func TestICMPErrors(t *testing.T) {
	all := []uint8{tcp, udp, sctp}
	// sent and out are a flow's packet as its sender knows it and as it went on.
	masqueraded := func(w world) (sent, out packet) {
		sent = w.first(w.vip, servicePort)
		return sent, sent.source(w.node, clientPort).destination(w.remote, targetPort).toRemote()
	}
	given := func(s *state, w world) {
		sent, out := masqueraded(w)
		s.putConntrack(flowOf(sent), flowOf(out), nil)
		s.putConntrack(flowOf(out).reversed(), flowOf(sent).reversed(), func(e *entry) { e.Flags = flowReply })
	}
	play(t, []fixture{
		{
			sentence: "an error from beyond about a forwarded packet reaches the client as about its own", protos: all,
			given: given,
			steps: func(w world) (steps []step) {
				sent, out := masqueraded(w)
				sent.ttl, sent.payload, out.payload = out.ttl, nil, nil
				for _, e := range w.errors() {
					in := w.about(out, uint8(e[0]), uint8(e[1]), e[2])
					in.to, in.from = linkMAC[uplink], gatewayMAC
					want := w.about(sent, uint8(e[0]), uint8(e[1]), e[2])
					want.quote = keepChecksum(want.quote, in.quote, w)
					want.ttl = in.ttl
					steps = append(steps, forwards(arriving, in, want.toClient()))
				}
				return steps
			},
		},
		{
			sentence: "the Backend's own error reaches the client under the Service's address", protos: all,
			given: given,
			steps: func(w world) (steps []step) {
				sent, out := masqueraded(w)
				sent.ttl, sent.payload, out.payload = out.ttl, nil, nil
				for _, e := range w.errors() {
					in := w.about(out, uint8(e[0]), uint8(e[1]), e[2])
					in.to, in.from, in.src = linkMAC[uplink], remoteMAC, w.remote
					want := w.about(sent, uint8(e[0]), uint8(e[1]), e[2])
					want.src = w.vip
					want.quote = keepChecksum(want.quote, in.quote, w)
					steps = append(steps, forwards(arriving, in, want.toClient()))
				}
				return steps
			},
		},
		{
			sentence: "an error about a reply reaches the Backend as about what it sent", protos: all,
			given: given,
			steps: func(w world) (steps []step) {
				sent, out := masqueraded(w)
				back, unNATed := out.reply(), sent.reply()
				back.payload, unNATed.payload = nil, nil
				for _, e := range w.errors() {
					in := w.about(unNATed, uint8(e[0]), uint8(e[1]), e[2])
					in.to, in.from = linkMAC[uplink], gatewayMAC
					want := w.about(back, uint8(e[0]), uint8(e[1]), e[2])
					want.quote = keepChecksum(want.quote, in.quote, w)
					steps = append(steps, forwards(arriving, in, want.toRemote()))
				}
				return steps
			},
		},
		{
			sentence: "the node's own error about a forwarded packet is translated as it leaves", protos: all,
			given: given,
			steps: func(w world) []step {
				sent, out := masqueraded(w)
				sent.ttl, sent.payload, out.payload = out.ttl, nil, nil
				e := w.errors()[1]
				in, want := w.about(out, uint8(e[0]), uint8(e[1]), e[2]), w.about(sent, uint8(e[0]), uint8(e[1]), e[2])
				in.src, want.src = w.node, w.node
				want.to, want.from = in.to, in.from
				want.quote = keepChecksum(want.quote, in.quote, w)
				return []step{rewrites(leavingHost, in, want)}
			},
		},
		{
			sentence: "an error about a flow that is not ours is left alone", protos: all,
			given: given,
			steps: func(w world) []step {
				e := w.errors()[0]
				mine := w.first(w.remote, 9999)
				return []step{leaves(arriving, w.about(mine, uint8(e[0]), uint8(e[1]), e[2]))}
			},
		},
		{
			sentence: "an echo request is left alone",
			given:    given,
			steps: func(w world) []step {
				in := w.first(w.vip, 0).with(func(p *packet) { p.proto, p.kind, p.rest = icmp4, 8, 0x00010001 })
				if w.family == "IPv6" {
					in.proto, in.kind = icmp6, 128
				}
				return []step{leaves(arriving, in)}
			},
		},
		{
			sentence: "an error that quotes too little is left alone", protos: all,
			given: given,
			steps: func(w world) (steps []step) {
				_, out := masqueraded(w)
				e := w.errors()[0]
				in := w.about(out, uint8(e[0]), uint8(e[1]), e[2])
				n := 20
				if w.family == "IPv6" {
					n = 40
				}
				for _, keep := range []int{0, 8, n - 1, n, n + 3} {
					steps = append(steps, leaves(arriving, in.with(func(p *packet) { p.quote = p.quote[:keep] })))
				}
				return steps
			},
		},
	})
}

// keepChecksum puts the L4 checksum of another quote into this one: what a
// quote's checksum was is not translated, since its data are not all there.
func keepChecksum(quote, of []byte, w world) []byte {
	at := map[uint8]int{tcp: 16, udp: 6, sctp: 8}[w.proto]
	if w.family == "IPv6" {
		at += 40
	} else {
		at += 20
	}
	if at+2 > len(quote) {
		return quote
	}
	quote = append([]byte(nil), quote...)
	copy(quote[at:at+2], of[at:at+2])
	return quote
}
