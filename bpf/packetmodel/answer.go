// SPDX-License-Identifier: Apache-2.0

package packetmodel

import (
	"encoding/binary"
	"slices"
)

// quoteMax is how much of a packet an ICMP error quotes at most, in bytes.
const quoteMax = 120

// reject answers that nobody is there.
func (h *handling) reject(r Reason) Outcome {
	h.Drops[r]++
	switch {
	case h.p.tuple.Protocol == tcp:
		return h.reset()
	case h.p.ipv6:
		return h.icmp(1, 4, 0) // port unreachable (RFC 4443, 3.1)
	}
	return h.icmp(3, 3, 0) // (RFC 792)
}

func (h *handling) tooBig(mtu int) Outcome {
	if h.UntoldMTU {
		mtu = SmallerMTU(len(h.p.l3))
	}
	switch {
	case h.p.later: // RFC 1122, 3.2.2
		return Outcome{Verdict: Drop}
	case h.p.ipv6:
		return h.icmp(2, 0, uint32(mtu)) // RFC 4443, 3.2
	}
	return h.icmp(3, 4, uint32(mtu)) // RFC 1191, 4
}

// SmallerMTU is the MTU to try after one that a packet of so many bytes did not
// fit, where the kernel tells none: that of Ethernet, the least of IPv6 (RFC
// 8200, 5), the least of IPv4 (RFC 791, 3.1).
func SmallerMTU(bytes int) int {
	for _, mtu := range []int{1500, 1280} {
		if bytes > mtu {
			return mtu
		}
	}
	return 576
}

// reset is TCP's answer to a segment for no connection (RFC 9293, 3.10.7.1).
func (h *handling) reset() Outcome {
	if h.p.flags&rst != 0 {
		return Outcome{Verdict: Drop}
	}
	old := h.p.l3[h.p.l4:]
	b := make([]byte, 20)
	copy(b, old[2:4])
	copy(b[2:], old[:2])
	b[12] = 5 << 4
	if h.p.flags&ack != 0 {
		b[13] = rst
		copy(b[4:], old[8:12])
	} else {
		b[13] = rst | ack
		n := len(old) - int(old[12]>>4)*4
		if h.p.flags&syn != 0 {
			n++
		}
		if h.p.flags&fin != 0 {
			n++
		}
		binary.BigEndian.PutUint32(b[8:], binary.BigEndian.Uint32(old[4:])+uint32(n))
	}
	binary.BigEndian.PutUint16(b[16:], ^sum16(h.pseudoHeader(tcp, len(b)), b))
	return h.answer(tcp, b, 16)
}

// icmp is an error about the packet: its IP headers and what tells the flow.
func (h *handling) icmp(kind, code uint8, rest uint32) Outcome {
	n := h.p.l4 + 8
	if h.p.tuple.Protocol == tcp {
		n = h.p.l4 + 20
	}
	if n > quoteMax {
		return Outcome{Verdict: Drop}
	}
	b := []byte{kind, code, 0, 0}
	b = binary.BigEndian.AppendUint32(b, rest)
	b = append(b, h.p.l3[:n]...)
	if h.p.ipv6 {
		binary.BigEndian.PutUint16(b[2:], ^sum16(h.pseudoHeader(icmp6, len(b)), b))
		return h.answer(icmp6, b, 2)
	}
	binary.BigEndian.PutUint16(b[2:], ^sum16(b))
	return h.answer(icmp4, b, 2)
}

func (h *handling) pseudoHeader(protocol uint8, n int) []byte {
	t := h.p.tuple
	b := slices.Concat(t.Destination.AsSlice(), t.Source.AsSlice())
	return binary.BigEndian.AppendUint16(append(b, 0, protocol), uint16(n))
}

// answer sends l4 back to where the packet came from. checksum is its offset.
func (h *handling) answer(protocol uint8, l4 []byte, checksum int) Outcome {
	t, old := h.p.tuple, h.p.frame
	out := Outcome{Verdict: Redirect, Frame: slices.Concat(old[6:12], old[:6], old[12:14])}
	var ip []byte
	if h.p.ipv6 {
		ip = binary.BigEndian.AppendUint16([]byte{0x60, 0, 0, 0}, uint16(len(l4)))
		ip = append(ip, protocol, 64)
		ip = slices.Concat(ip, t.Destination.AsSlice(), t.Source.AsSlice())
	} else {
		ip = binary.BigEndian.AppendUint16([]byte{0x45, 0}, uint16(20+len(l4)))
		ip = append(ip, 0, 0, 0x40, 0, 64, protocol, 0, 0)
		ip = slices.Concat(ip, t.Destination.AsSlice(), t.Source.AsSlice())
		binary.BigEndian.PutUint16(ip[10:], ^sum16(ip))
		out.Checksums = append(out.Checksums, ethernetBytes+10)
	}
	out.Checksums = append(out.Checksums, ethernetBytes+len(ip)+checksum)
	out.Frame = slices.Concat(out.Frame, ip, l4)
	return out
}
