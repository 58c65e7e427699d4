// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fixture is packets in, packets out, and a sentence that says why.
type fixture struct {
	sentence string
	families []string // both where empty
	protos   []uint8  // TCP and UDP where empty
	given    func(s *state, w world)
	steps    func(w world) []step
	then     func(s *state, w world)
}

// step is one packet at a hook and what becomes of it.
type step struct {
	at   hook
	in   packet
	want verdict
	out  *packet // nil: as it came in
}

// forwards, passes, drops and so on are the kinds of step.
func forwards(at hook, in, out packet) step { return step{at, in, redirect, &out} }
func rewrites(at hook, in, out packet) step { return step{at, in, stack, &out} }
func answers(at hook, in, out packet) step  { return step{at, in, redirect, &out} }
func leaves(at hook, in packet) step        { return step{at, in, stack, nil} }
func discards(at hook, in packet) step      { return step{at, in, drop, nil} }

// world is the addresses of the rig in one family, and a protocol.
type world struct {
	family string
	proto  uint8
	client netip.Addr // outside
	other  netip.Addr // a second one
	router netip.Addr // between here and there
	node   netip.Addr
	vip    netip.Addr
	pod    netip.Addr // here, behind podLink
	thin   netip.Addr // here, behind thinLink
	silent netip.Addr // here, but no neighbour entry says how
	remote netip.Addr // on the node behind remoteMAC
	lost   netip.Addr // no route leads there
}

func worldOf(family string, proto uint8) world {
	if family == "IPv4" {
		return world{family, proto, addr("198.51.100.7"), addr("198.51.100.8"), addr("203.0.113.1"), addr("192.0.2.1"), addr("10.96.0.10"),
			addr("10.244.1.11"), addr("10.244.1.12"), addr("10.244.1.13"), addr("10.244.2.21"), addr("10.244.9.9")}
	}
	return world{family, proto, addr("2001:db8:7::7"), addr("2001:db8:7::8"), addr("2001:db8:5::1"), addr("2001:db8:1::1"), addr("fd00:10:96::10"),
		addr("fd00:10:244:1::11"), addr("fd00:10:244:1::12"), addr("fd00:10:244:1::13"), addr("fd00:10:244:2::21"), addr("fd00:10:244:9::9")}
}

// first is a packet that begins a flow from an outside client to address:port.
func (w world) first(to netip.Addr, port uint16) packet {
	p := packet{to: linkMAC[uplink], from: gatewayMAC, src: w.client, dst: to, ttl: 64, proto: w.proto, sport: clientPort, dport: port, df: true}
	switch w.proto {
	case tcp:
		p.flags, p.seq = syn, 1000
	default:
		p.payload = []byte("hello?!")
	}
	return p
}

// fromThePod is the same from the pod.
func (w world) fromThePod(to netip.Addr, port uint16) packet {
	p := w.first(to, port)
	p.to, p.from, p.src = linkMAC[podLink], podMAC, w.pod
	return p
}

// fromTheNode is the same from the node itself, on its way out.
func (w world) fromTheNode(to netip.Addr, port uint16) packet {
	p := w.first(to, port)
	p.to, p.from, p.src = gatewayMAC, linkMAC[uplink], w.node
	return p
}

// reply is a packet the other way, as the far end would send it.
func (p packet) reply() packet {
	p.src, p.dst, p.sport, p.dport = p.dst, p.src, p.dport, p.sport
	p.to, p.from = p.from, p.to
	p.ttl = 64
	if p.proto == tcp {
		p.flags, p.seq, p.ack = syn|ack, 7000, p.seq+1
	}
	return p
}

// data is a later packet of the same flow.
func (p packet) data(text string) packet {
	p.payload = []byte(text)
	if p.proto == tcp {
		p.flags, p.seq, p.ack = ack|psh, p.seq+1, 7001
	}
	return p
}

func (p packet) flagged(flags uint8) packet {
	p.flags = flags
	return p
}

// The ways out.
func (p packet) toPod() packet    { return p.forwarded(podMAC, linkMAC[podLink]) }
func (p packet) toThin() packet   { return p.forwarded(thinMAC, linkMAC[thinLink]) }
func (p packet) toRemote() packet { return p.forwarded(remoteMAC, linkMAC[uplink]) }
func (p packet) toClient() packet { return p.forwarded(gatewayMAC, linkMAC[uplink]) }

func protoName(p uint8) string {
	return map[uint8]string{tcp: "TCP", udp: "UDP", sctp: "SCTP"}[p]
}

// play runs fixtures in each family and protocol they are for.
func play(t *testing.T, fixtures []fixture) {
	for _, f := range fixtures {
		families, protos := f.families, f.protos
		if families == nil {
			families = []string{"IPv4", "IPv6"}
		}
		if protos == nil {
			protos = []uint8{tcp, udp}
		}
		for _, family := range families {
			for _, proto := range protos {
				t.Run(f.sentence+"/"+family+"/"+protoName(proto), func(t *testing.T) {
					s, w := newState(t), worldOf(family, proto)
					if f.given != nil {
						f.given(s, w)
					}
					s.play(f.steps(w)...)
					if f.then != nil {
						f.then(s, w)
					}
				})
			}
		}
	}
}

func (s *state) play(steps ...step) {
	s.t.Helper()
	for i, st := range steps {
		in := st.in.bytes()
		got, out, err := s.run(st.at, in)
		if err != nil {
			s.t.Fatalf("packet %d: %v", i, err)
		}
		if got != st.want {
			s.t.Fatalf("packet %d, %s on %s: %v, want %v; drops %v\nsent %q\ngot  %q", i, st.at.side, st.at.device, got, st.want, s.drops(), describe(in), describe(out))
		}
		if got == drop {
			continue
		}
		want := in
		if st.out != nil {
			want = st.out.bytes()
		}
		if !bytes.Equal(out, want) {
			s.t.Fatalf("packet %d, %s on %s: another packet than expected (-want +got):\n%s", i, st.at.side, st.at.device, diffFrames(want, out))
		}
	}
}

// diffFrames compares frames in words a reader can follow, or as bytes where
// only those differ.
func diffFrames(want, got []byte) string {
	return cmp.Diff(describe(want), describe(got))
}

func describe(b []byte) []string {
	if len(b) < 34 {
		return []string{hex.EncodeToString(b)}
	}
	out := []string{fmt.Sprintf("%d bytes, Ethernet %x <- %x %x", len(b), b[:6], b[6:12], b[12:14])}
	at := 34
	switch {
	case b[14]>>4 == 4:
		src, _ := netip.AddrFromSlice(b[26:30])
		dst, _ := netip.AddrFromSlice(b[30:34])
		out = append(out, fmt.Sprintf("IPv4 %v -> %v ttl %d", src, dst, b[22]), fmt.Sprintf("IPv4 header %x", b[14:34]))
	case len(b) >= 54:
		src, _ := netip.AddrFromSlice(b[22:38])
		dst, _ := netip.AddrFromSlice(b[38:54])
		out = append(out, fmt.Sprintf("IPv6 %v -> %v hop limit %d next %d", src, dst, b[21], b[20]), fmt.Sprintf("IPv6 header %x", b[14:54]))
		at = 54
	}
	for end := len(b); at < min(end, 150); at += 8 { // the rest is payload
		out = append(out, fmt.Sprintf("+%3d %x", at, b[at:min(at+8, len(b))]))
	}
	return out
}
