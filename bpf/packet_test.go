// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"encoding/binary"
	"hash/crc32"
	"net/netip"
	"slices"
)

const (
	icmp4 = 1
	tcp   = 6
	udp   = 17
	icmp6 = 58
	sctp  = 132

	fin, syn, rst, psh, ack = 0x01, 0x02, 0x04, 0x08, 0x10
)

type mac [6]byte

// packet is a frame to be built. Every length and checksum is computed when
// it is turned into bytes, so an expectation never repeats what a program did.
type packet struct {
	to, from         mac // Ethernet
	src, dst         netip.Addr
	ttl              uint8
	id               uint32 // of fragments; IPv4 uses 16 bits
	df, mf           bool
	offset           uint16 // of a fragment, in bytes
	options          []byte // IPv4, multiple of 4
	extensions       []extension
	proto            uint8
	sport, dport     uint16
	flags            uint8
	seq, ack         uint32
	noChecksum       bool   // UDP over IPv4 only
	payload          []byte // after the L4 header
	kind, code       uint8  // ICMP
	rest             uint32 // second word of ICMP
	quote            []byte // what an ICMP error is about, from its IP header on
	raw              []byte // instead of everything after the IP header
	frame            []byte // instead of everything after the Ethernet header
	padding          int    // bytes after the IP packet
	badChecksumDelta uint16 // makes the L4 checksum wrong by this much
}

// extension is an IPv6 extension header: its number and what follows the next
// header byte.
type extension struct {
	number uint8
	body   []byte
}

func (p packet) isIPv6() bool { return p.src.Is6() }

// bytes builds the frame.
func (p packet) bytes() []byte {
	l3 := p.l3()
	b := make([]byte, 0, 14+len(l3))
	b = append(b, p.to[:]...)
	b = append(b, p.from[:]...)
	if p.isIPv6() {
		b = append(b, 0x86, 0xdd)
	} else {
		b = append(b, 0x08, 0x00)
	}
	return append(append(b, l3...), make([]byte, p.padding)...)
}

// l3 is the packet from its IP header on.
func (p packet) l3() []byte {
	if p.frame != nil {
		return p.frame
	}
	body := p.raw
	if body == nil {
		body = p.l4()
	}
	if p.isIPv6() {
		return p.ipv6(body)
	}
	return p.ipv4(body)
}

func (p packet) ipv4(body []byte) []byte {
	n := 20 + len(p.options)
	h := make([]byte, n)
	h[0] = 0x40 | byte(n/4)
	binary.BigEndian.PutUint16(h[2:], uint16(n+len(body)))
	binary.BigEndian.PutUint16(h[4:], uint16(p.id))
	fragment := p.offset / 8
	if p.df {
		fragment |= 0x4000
	}
	if p.mf {
		fragment |= 0x2000
	}
	binary.BigEndian.PutUint16(h[6:], fragment)
	h[8], h[9] = p.ttl, p.proto
	copy(h[12:], p.src.AsSlice())
	copy(h[16:], p.dst.AsSlice())
	copy(h[20:], p.options)
	binary.BigEndian.PutUint16(h[10:], ^sum16(h))
	return append(h, body...)
}

func (p packet) ipv6(body []byte) []byte {
	var chain []byte
	next := p.proto
	for _, e := range slices.Backward(p.extensions) {
		chain = append(append([]byte{next}, e.body...), chain...)
		next = e.number
	}
	h := make([]byte, 40)
	h[0] = 0x60
	binary.BigEndian.PutUint16(h[4:], uint16(len(chain)+len(body)))
	h[6], h[7] = next, p.ttl
	copy(h[8:], p.src.AsSlice())
	copy(h[24:], p.dst.AsSlice())
	return slices.Concat(h, chain, body)
}

func (p packet) l4() []byte {
	var b []byte
	at := 0 // of the checksum
	switch p.proto {
	case tcp:
		b, at = make([]byte, 20), 16
		binary.BigEndian.PutUint32(b[4:], p.seq)
		binary.BigEndian.PutUint32(b[8:], p.ack)
		b[12], b[13] = 5<<4, p.flags
		if p.flags&rst == 0 {
			binary.BigEndian.PutUint16(b[14:], 0xfaf0)
		}
	case udp:
		b, at = make([]byte, 8), 6
		binary.BigEndian.PutUint16(b[4:], uint16(8+len(p.payload)))
	case sctp:
		b = make([]byte, 12)
		copy(b[4:], "vtag")
	case icmp4, icmp6:
		b, at = make([]byte, 8), 2
		b[0], b[1] = p.kind, p.code
		binary.BigEndian.PutUint32(b[4:], p.rest)
		b = append(b, p.quote...)
	}
	if p.proto != icmp4 && p.proto != icmp6 {
		binary.BigEndian.PutUint16(b, p.sport)
		binary.BigEndian.PutUint16(b[2:], p.dport)
	}
	b = append(b, p.payload...)
	if at != 0 && !p.noChecksum {
		check := ^sum16(p.pseudoHeader(len(b)), b)
		if check == 0 && p.proto == udp {
			check = 0xffff
		}
		binary.BigEndian.PutUint16(b[at:], check+p.badChecksumDelta)
	}
	if p.proto == sctp { // CRC32c, least significant byte first (RFC 9260, 6.8)
		binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))+uint32(p.badChecksumDelta))
	}
	return b
}

func (p packet) pseudoHeader(n int) []byte {
	if p.proto == icmp4 {
		return nil
	}
	b := slices.Concat(p.src.AsSlice(), p.dst.AsSlice())
	return binary.BigEndian.AppendUint16(append(b, 0, p.proto), uint16(n))
}

// sum16 is the one's complement sum of parts, each of which starts at an even
// offset (RFC 1071).
func sum16(parts ...[]byte) uint16 {
	var sum uint32
	for _, b := range parts {
		for i := 0; i+1 < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
		if len(b)%2 == 1 {
			sum += uint32(b[len(b)-1]) << 8
		}
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

// with gives a changed copy.
func (p packet) with(change func(*packet)) packet {
	change(&p)
	return p
}

func (p packet) source(a netip.Addr, port uint16) packet {
	p.src, p.sport = a, port
	return p
}

func (p packet) destination(a netip.Addr, port uint16) packet {
	p.dst, p.dport = a, port
	return p
}

// forwarded is the packet one hop later.
func (p packet) forwarded(to, from mac) packet {
	p.to, p.from = to, from
	p.ttl--
	return p
}

// split gives the packet as two fragments, the first with n bytes of what
// follows the IP header (a multiple of 8).
func (p packet) split(n int) (first, later packet) {
	l4 := p.raw
	if l4 == nil {
		l4 = p.l4()
	}
	first, later = p, p
	first.raw, later.raw = l4[:n], l4[n:]
	if !p.isIPv6() {
		first.mf, later.offset = true, uint16(n)
		return first, later
	}
	first.extensions = append(slices.Clone(p.extensions), fragmentHeader(p.id, 0, true))
	later.extensions = append(slices.Clone(p.extensions), fragmentHeader(p.id, n, false))
	return first, later
}

func fragmentHeader(id uint32, offset int, more bool) extension {
	b := make([]byte, 7)
	v := uint16(offset)
	if more {
		v |= 1
	}
	binary.BigEndian.PutUint16(b[1:], v)
	binary.BigEndian.PutUint32(b[3:], id)
	return extension{44, b}
}
