// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"fairlead.dev/bpf/packetmodel"
)

// script turns arbitrary bytes into packets of the model's world: each byte is
// a choice, so that what a fuzzer mutates is a decision and not a checksum.
type script struct {
	b     []byte
	flows []packetmodel.Tuple // known by now: packets of them are likely
	later *packet             // the fragment that comes after the last packet
	at    hook                // of later
}

func (s *script) byte() byte {
	if len(s.b) == 0 {
		return 0
	}
	v := s.b[0]
	s.b = s.b[1:]
	return v
}

func pick[T any](s *script, from ...T) T { return from[int(s.byte())%len(from)] }

// one is true once in n bytes, and never when the script is at its end.
func (s *script) one(n byte) bool { return s.byte()%n == n-1 }

var scriptAddresses = map[bool][]netip.Addr{
	false: addrs("198.51.100.7", "198.51.100.8", "10.96.0.10", "10.244.1.11", "10.244.1.12", "10.244.1.13", "10.244.2.21", "10.244.9.9", "192.0.2.1", "203.0.113.1", "10.96.0.11"),
	true:  addrs("2001:db8:7::7", "2001:db8:7::8", "fd00:10:96::10", "fd00:10:244:1::11", "fd00:10:244:1::12", "fd00:10:244:1::13", "fd00:10:244:2::21", "fd00:10:244:9::9", "2001:db8:1::1", "2001:db8:5::1", "fd00:10:96::11"),
}

var hostileAddresses = addrs("0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "::", "::1", "ff02::1", "::ffff:10.96.0.10", "::ffff:198.51.100.7")

func addrs(list ...string) (out []netip.Addr) {
	for _, a := range list {
		out = append(out, addr(a))
	}
	return out
}

var scriptPorts = []uint16{80, 8080, 40000, 40001, 81, 82, 83, 84, 85, 86, 87, 30080, 33333, 1023, 40007, 9999}

// step gives the next packet: where, and its frame.
func (s *script) step() (hook, []byte) {
	if s.later != nil {
		at, p := s.at, *s.later
		s.later = nil
		return at, s.damage(p.bytes())
	}
	at := pick(s, arriving, leavingPod, leavingHost, leavingThin, hostToPod)
	p := s.any(at)
	switch mode := s.byte() % 8; {
	case mode < 2:
		s.begin(&p)
	case mode < 4 && len(s.flows) > 0:
		t := pick(s, s.flows...)
		p.src, p.dst, p.sport, p.dport, p.proto = t.Source, t.Destination, t.SourcePort, t.DestinationPort, t.Protocol
	case mode == 4:
		s.icmp(&p)
	}
	s.headers(&p)
	if s.one(4) {
		p = s.fragment(at, p)
	}
	return at, s.damage(p.bytes())
}

// any is a packet from anywhere to anywhere.
func (s *script) any(at hook) packet {
	v6 := s.one(2)
	p := packet{to: linkMAC[at.device], from: gatewayMAC, ttl: pick[uint8](s, 64, 255, 2, 64, 1, 0), proto: pick[uint8](s, tcp, udp, sctp)}
	p.src, p.dst = pick(s, scriptAddresses[v6]...), pick(s, scriptAddresses[v6]...)
	p.sport, p.dport = pick(s, scriptPorts...), pick(s, scriptPorts...)
	p.flags = pick[uint8](s, syn, ack, syn|ack, fin|ack, rst, rst|ack, psh|ack, 0, syn|fin, 0xff, syn|rst)
	p.seq, p.ack = uint32(s.byte())<<24, uint32(s.byte())<<20
	p.payload = make([]byte, pick(s, 0, 1, 7, 64, 1380, 1420, 1440))
	p.df, p.noChecksum = s.one(2), s.one(8)
	if s.one(16) {
		p.badChecksumDelta = uint16(s.byte()) * 257
	}
	p.id = uint32(s.byte() % 4)
	if s.one(32) {
		if a := pick(s, hostileAddresses...); a.Is6() == v6 {
			p.src = a
		}
	}
	return p
}

// begin makes the packet the first of a flow to a Frontend.
func (s *script) begin(p *packet) {
	p.flags, p.dst, p.dport = syn, scriptAddresses[p.isIPv6()][2], pick[uint16](s, 80, 81, 82, 83, 84, 85, 86, 87, 30080)
	if p.dport == 30080 {
		p.dst = scriptAddresses[p.isIPv6()][8]
	}
	p.sport = pick[uint16](s, 40000, 40001, 33333, 1023)
}

// headers adds IP options or extension headers.
func (s *script) headers(p *packet) {
	if !s.one(4) {
		return
	}
	if !p.isIPv6() {
		p.options = make([]byte, 4*int(s.byte()%11))
		return
	}
	for range s.byte() % 8 {
		p.extensions = append(p.extensions, pick(s, optionsHeader(0, 1), optionsHeader(60, 1), routingHeader(), authenticationHeader(), fragmentHeader(1, 0, false), optionsHeader(60, 30), extension{60, []byte{255, 1, 4, 0, 0, 0, 0}}))
	}
}

// icmp makes the packet an ICMP message, mostly an error about a known flow's.
func (s *script) icmp(p *packet) {
	quote := *p
	quote.proto = pick[uint8](s, tcp, udp, sctp, icmp4)
	quote.payload = make([]byte, s.byte()%16)
	quote.src, quote.dst = quote.dst, quote.src
	if len(s.flows) > 0 && !s.one(4) {
		t := pick(s, s.flows...)
		quote.src, quote.dst, quote.sport, quote.dport, quote.proto = t.Destination, t.Source, t.DestinationPort, t.SourcePort, t.Protocol
		p.src, p.dst = pick(s, scriptAddresses[t.Source.Is6()][9], t.Source), t.Destination
	}
	if s.one(8) && !p.isIPv6() {
		quote.options = make([]byte, 8)
	}
	p.proto, p.kind = icmp4, pick[uint8](s, 3, 11, 12, 8, 0, 5)
	if p.isIPv6() {
		p.proto, p.kind = icmp6, pick[uint8](s, 1, 2, 3, 4, 128, 135)
	}
	p.code, p.rest, p.payload = s.byte()%8, uint32(s.byte())<<4, nil
	p.quote = quote.l3()
	if s.one(4) {
		p.quote = p.quote[:int(s.byte())%(len(p.quote)+1)]
	}
}

// fragment cuts a packet in two, and gives one part now and perhaps the other
// next. In IPv6 options may come between the fragment header and L4.
func (s *script) fragment(at hook, p packet) packet {
	p.raw = p.l4()
	if p.isIPv6() && s.one(4) {
		p.raw = slices.Concat([]byte{p.proto}, optionsHeader(60, 1).body, p.raw)
		p.proto = 60
	}
	n := min(8*int(1+s.byte()%8), len(p.raw))
	first, later := p.split(n)
	switch s.byte() % 4 {
	case 0:
		return later
	case 1:
		return first
	}
	s.later, s.at = &later, at
	return first
}

// usurp has the first packets of flows, of which one may take the place that a
// flow lost, and then a packet of the flow that lost it, whose answers look like
// back.
func (s *script) usurp(back packetmodel.Tuple) [][]byte {
	mine := s.any(arriving)
	mine.src, mine.dst, mine.sport, mine.dport, mine.proto = back.Destination, back.Source, back.DestinationPort, back.SourcePort, back.Protocol
	mine.payload = nil
	var out [][]byte
	for _, a := range scriptAddresses[mine.isIPv6()][:7] {
		theirs := mine
		theirs.flags, theirs.src = syn, a
		if a != mine.src {
			out = append(out, theirs.bytes())
		}
	}
	return append(out, mine.bytes())
}

// damage makes a frame one that no sender would send.
func (s *script) damage(b []byte) []byte {
	switch s.byte() % 16 {
	case 15: // cut short
		return b[:15+int(s.byte())%(len(b)-14)]
	case 14: // bytes overwritten, of the headers mostly
		for range 1 + s.byte()%4 {
			b[12+int(s.byte())%(len(b)-12)] = s.byte()
		}
	case 13: // padded
		b = append(b, make([]byte, s.byte()%64)...)
	case 12: // another length than it has
		at := 16
		if b[12] == 0x86 {
			at = 18
		}
		binary.BigEndian.PutUint16(b[at:], pick(s, 0, 1, uint16(s.byte()), 20, 65535, uint16(len(b)-14), uint16(len(b)-13)))
	case 11: // to another machine
		b[5] ^= s.byte()
	}
	return b
}
