// SPDX-License-Identifier: Apache-2.0

package bpf_test

import "testing"

func TestFragments(t *testing.T) {
	datagram := func(w world) packet {
		return w.first(w.vip, servicePort).with(func(p *packet) {
			p.df, p.id, p.payload = false, 0x1234, make([]byte, 64)
			p.payload[40] = 0xaa
		})
	}
	// The bytes after the first are translated as one datagram, then cut.
	pieces := func(w world, out packet) (in, want [2]packet) {
		in[0], in[1] = datagram(w).split(24)
		want[0], want[1] = out.split(24)
		return in, want
	}
	play(t, []fixture{
		{
			sentence: "later fragments follow the first",
			given:    serves(pod, slotLocal, frontendMasqueradeExternal),
			steps: func(w world) []step {
				in, want := pieces(w, datagram(w).source(w.node, clientPort).destination(w.pod, targetPort).toPod())
				return []step{forwards(arriving, in[0], want[0]), forwards(arriving, in[1], want[1])}
			},
		},
		{
			sentence: "a later fragment that comes first is not translated by guess",
			given:    serves(pod, slotLocal, 0),
			steps: func(w world) []step {
				in, want := pieces(w, datagram(w).destination(w.pod, targetPort).toPod())
				return []step{leaves(arriving, in[1]), forwards(arriving, in[0], want[0]), forwards(arriving, in[1], want[1])}
			},
		},
		{
			sentence: "fragments of another datagram do not borrow its ports",
			given:    serves(pod, slotLocal, 0),
			steps: func(w world) []step {
				in, want := pieces(w, datagram(w).destination(w.pod, targetPort).toPod())
				_, stranger := datagram(w).with(func(p *packet) { p.id = 0x4321 }).split(24)
				_, foreign := datagram(w).source(w.other, clientPort).split(24)
				return []step{forwards(arriving, in[0], want[0]), leaves(arriving, stranger), leaves(arriving, foreign)}
			},
		},
		{
			sentence: "fragments of a reply are un-NATed",
			given:    serves(pod, slotLocal, 0),
			steps: func(w world) []step {
				first := w.first(w.vip, servicePort)
				there := first.destination(w.pod, targetPort).toPod()
				back := there.reply().with(func(p *packet) { p.df, p.id, p.payload = false, 77, make([]byte, 64) })
				a, b := back.split(32)
				c, d := back.source(w.vip, servicePort).toClient().split(32)
				return []step{forwards(arriving, first, there), forwards(leavingPod, a, c), forwards(leavingPod, b, d)}
			},
		},
		{
			sentence: "an atomic fragment is a whole packet", families: []string{"IPv6"}, // RFC 6946
			given: serves(pod, slotLocal, 0),
			steps: func(w world) []step {
				in := w.first(w.vip, servicePort).with(func(p *packet) { p.extensions = []extension{fragmentHeader(9, 0, false)} })
				return []step{forwards(arriving, in, in.destination(w.pod, targetPort).toPod())}
			},
		},
		{
			sentence: "fragments that are refused are refused once", protos: []uint8{udp},
			given: func(s *state, w world) {
				s.add(frontend{id: 1, address: w.vip, port: servicePort, proto: w.proto})
			},
			steps: func(w world) []step {
				in, _ := pieces(w, datagram(w))
				return []step{answers(arriving, in[0], refusedFragment(datagram(w), in[0])), discards(arriving, in[1])}
			},
		},
	})
}

// refusedFragment is the answer about a first fragment, which quotes its
// headers and no more.
func refusedFragment(whole, first packet) packet {
	out := refused(whole)
	b := first.l3()
	n := len(b) - len(first.raw) + 8
	out.quote = b[:n]
	return out
}

func TestExtensionHeaders(t *testing.T) {
	for _, c := range []struct {
		name  string
		chain []extension
	}{
		{"hop-by-hop options", []extension{optionsHeader(0, 1)}},
		{"destination options", []extension{optionsHeader(60, 3)}},
		{"a routing header", []extension{routingHeader()}},
		{"an authentication header", []extension{authenticationHeader()}},
		{"six headers", []extension{optionsHeader(0, 2), optionsHeader(60, 1), routingHeader(), authenticationHeader(), optionsHeader(60, 2)}},
	} {
		play(t, []fixture{{
			sentence: c.name + " do not hide the ports", families: []string{"IPv6"},
			given: serves(pod, slotLocal, frontendMasqueradeExternal),
			steps: func(w world) []step {
				in := w.first(w.vip, servicePort).with(func(p *packet) { p.extensions = c.chain })
				return []step{forwards(arriving, in, in.source(w.node, clientPort).destination(w.pod, targetPort).toPod())}
			},
		}})
	}
	for _, c := range []struct {
		name  string
		chain []extension
	}{
		{"more headers than are walked", []extension{optionsHeader(0, 1), optionsHeader(60, 1), optionsHeader(60, 1), optionsHeader(60, 1), optionsHeader(60, 1), optionsHeader(60, 1)}},
		{"more bytes of headers than are walked", []extension{optionsHeader(0, 32), optionsHeader(60, 32)}},
		{"a header that ends nowhere", []extension{{60, []byte{255, 1, 4, 0, 0, 0, 0}}}},
		{"a header of unknown kind", []extension{{253, make([]byte, 7)}}},
		{"encryption", []extension{{50, make([]byte, 23)}}},
		{"no next header", []extension{{59, make([]byte, 7)}}},
	} {
		play(t, []fixture{{
			sentence: c.name + ": left to the stack", families: []string{"IPv6"},
			given: serves(pod, slotLocal, 0),
			steps: func(w world) []step {
				return []step{leaves(arriving, w.first(w.vip, servicePort).with(func(p *packet) { p.extensions = c.chain }))}
			},
		}})
	}
}
