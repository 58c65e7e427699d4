// SPDX-License-Identifier: Apache-2.0

package packetmodel

import (
	"encoding/binary"
	"net/netip"
)

const (
	icmp4 = 1
	tcp   = 6
	udp   = 17
	icmp6 = 58
	sctp  = 132

	fin, syn, rst, ack = 0x01, 0x02, 0x04, 0x10

	ethernetBytes  = 14
	extensionsMax  = 5     // IPv6 headers before the last; a longer chain is the stack's
	headerBytesMax = 0x1ff // from the frame's start to L4
)

// packet is what the path sees in a frame.
type packet struct {
	frame    []byte
	ipv6     bool
	l3       []byte // the IP packet, without padding behind it
	l4       int    // offset in l3
	tuple    Tuple
	ttl      uint8
	df       bool
	flags    uint8 // TCP
	kind     uint8 // ICMP
	first    bool  // fragment
	later    bool  // fragment
	datagram Datagram
}

func isBalanced(protocol uint8) bool { return protocol == tcp || protocol == udp || protocol == sctp }

func (p *packet) isICMPError() bool {
	switch {
	case p.later:
		return false
	case p.ipv6:
		return p.tuple.Protocol == icmp6 && p.kind >= 1 && p.kind <= 4 // RFC 4443
	}
	return p.tuple.Protocol == icmp4 && (p.kind == 3 || p.kind == 11 || p.kind == 12) // RFC 792
}

// parse reports false for all that the path leaves to the stack.
func (s *State) parse(side Side, device string, frame []byte) (packet, bool) {
	p := packet{frame: frame}
	if len(frame) < ethernetBytes || side == FromUplink && [6]byte(frame[:6]) != s.LinkAddress[device] {
		return p, false
	}
	ok := false
	switch binary.BigEndian.Uint16(frame[12:]) {
	case 0x0800:
		ok = p.parseIPv4(frame[ethernetBytes:])
	case 0x86dd:
		p.ipv6 = true
		ok = p.parseIPv6(frame[ethernetBytes:])
	}
	if !ok {
		return p, false
	}
	p.datagram.Source, p.datagram.Destination = p.tuple.Source, p.tuple.Destination
	return p, p.later || p.parseL4()
}

// isNoHost: a source that names no single host (RFC 1122, 3.2.1.3; RFC 4291).
func isNoHost(a netip.Addr) bool {
	return a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.Is4() && a.As4()[0] >= 240
}

func (p *packet) parseIPv4(b []byte) bool {
	if len(b) < 20 || b[0]>>4 != 4 || b[0]&15 < 5 {
		return false
	}
	p.l4 = int(b[0]&15) * 4
	n := int(binary.BigEndian.Uint16(b[2:]))
	if n > len(b) || n < p.l4 {
		return false
	}
	p.l3 = b[:n]
	p.tuple.Source, p.tuple.Destination, p.tuple.Protocol = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20])), b[9]
	p.ttl = b[8]
	fragment := binary.BigEndian.Uint16(b[6:])
	p.df = fragment&0x4000 != 0
	p.later = fragment&0x1fff != 0
	p.first = !p.later && fragment&0x2000 != 0
	p.datagram.ID, p.datagram.Protocol = uint32(binary.BigEndian.Uint16(b[4:])), b[9]
	return true
}

func (p *packet) parseIPv6(b []byte) bool {
	if len(b) < 40 || b[0]>>4 != 6 {
		return false
	}
	n := 40 + int(binary.BigEndian.Uint16(b[4:]))
	if n > len(b) {
		return false
	}
	p.l3 = b[:n]
	p.tuple.Source, p.tuple.Destination = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	p.ttl, p.df = b[7], true // IPv6 is never fragmented on the way
	// On the wire an IPv4-mapped address is nobody's (RFC 4291, 2.5.5.2).
	return !p.tuple.Source.Is4In6() && !p.tuple.Destination.Is4In6() && p.walk(b[6])
}

// walk finds the last header (RFC 8200, 4; RFC 4302).
func (p *packet) walk(next uint8) bool {
	at := 40
	for n := 0; ; n++ {
		size := 0
		rest := p.l3[min(at, len(p.l3)):]
		switch next {
		case 0, 43, 60:
			if len(rest) < 2 {
				return false
			}
			size = (int(rest[1]) + 1) * 8
		case 51:
			if len(rest) < 2 {
				return false
			}
			size = (int(rest[1]) + 2) * 4
		case 44:
			if len(rest) < 8 {
				return false
			}
			size = 8
			at += 8
			p.datagram.ID, p.datagram.Protocol = binary.BigEndian.Uint32(rest[4:]), rest[0]
			offset := binary.BigEndian.Uint16(rest[2:])
			p.later, p.first = offset&^7 != 0, offset&^7 == 0 && offset&1 != 0
			if p.later {
				p.tuple.Protocol, p.l4 = rest[0], at
				return n < extensionsMax+1
			}
			next = rest[0]
			if n >= extensionsMax {
				return false
			}
			continue
		default:
			p.tuple.Protocol, p.l4 = next, at
			return true
		}
		if n >= extensionsMax {
			return false
		}
		next = rest[0]
		at += size
	}
}

func (p *packet) parseL4() bool {
	if p.l4+ethernetBytes > headerBytesMax || p.l4+8 > len(p.l3) {
		return false
	}
	b := p.l3[p.l4:]
	switch p.tuple.Protocol {
	case icmp4, icmp6:
		p.kind = b[0]
		return true
	case tcp:
		if len(b) < 20 {
			return false
		}
		p.flags = b[13]
	}
	if isBalanced(p.tuple.Protocol) {
		p.tuple.SourcePort, p.tuple.DestinationPort = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	}
	return true
}
