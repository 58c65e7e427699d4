// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"encoding/binary"
	"net/netip"

	"fairlead.dev/bpf/packetmodel"
)

// disputed says why a frame is left out of the comparison with the model: what
// the programs are known to do otherwise, each with a fixture in
// hostile_test.go that fails. A line goes when its fixture passes.
func (d *duel) disputed(at hook, frame []byte) string {
	if len(frame) < 34 {
		return ""
	}
	if own := linkMAC[at.device]; frame[0]&1 == 0 && mac(frame[:6]) != own {
		return "a frame addressed to another machine"
	}
	b := frame[14:]
	switch {
	case binary.BigEndian.Uint16(frame[12:]) == 0x0800 && b[0]>>4 == 4:
		src, dst, header := netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20])), int(b[0]&15)*4
		fragment := binary.BigEndian.Uint16(b[6:])
		return d.disputedPacket(src, dst, len(b), int(binary.BigEndian.Uint16(b[2:])), header, b[9], fragment&0x1fff != 0, uint32(binary.BigEndian.Uint16(b[4:])), b[8])
	case binary.BigEndian.Uint16(frame[12:]) == 0x86dd && len(b) >= 40:
		src, dst := netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		next, header, later, id := lastHeader(b)
		return d.disputedPacket(src, dst, len(b), 40+int(binary.BigEndian.Uint16(b[4:])), header, next, later, id, b[7])
	}
	return ""
}

func (d *duel) disputedPacket(src, dst netip.Addr, have, says, header int, protocol uint8, later bool, id uint32, ttl uint8) string {
	need := 8
	if protocol == tcp {
		need = 20
	}
	switch {
	case says > have:
		return "longer than its frame"
	case says < header || !later && says < header+need:
		return "ends before its ports"
	case says < have && (protocol == icmp4 || protocol == icmp6):
		return "a quote that goes on in the padding"
	case src.Is4In6() || dst.Is4In6():
		return "IPv4-mapped addresses"
	case src.IsUnspecified() || src.IsLoopback() || src.IsMulticast() || src == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "a source that is no host's"
	case later && protocol == tcp:
		return "a later TCP fragment"
	case later && d.model.ClusterIPs[dst] && !d.knowsFragments(src, dst, id, protocol):
		return "a later fragment for a ClusterIP"
	case ttl <= 1 && (protocol == icmp4 || protocol == icmp6):
		return "an ICMP error at the end of its life"
	}
	return ""
}

func (d *duel) knowsFragments(src, dst netip.Addr, id uint32, protocol uint8) bool {
	_, ok := d.model.Fragments[packetmodel.Datagram{Source: src, Destination: dst, ID: id, Protocol: protocol}]
	return ok
}

// lastHeader walks IPv6 headers without a bound.
func lastHeader(b []byte) (next uint8, at int, later bool, id uint32) {
	next, at = b[6], 40
	for at+8 <= len(b) {
		switch next {
		case 0, 43, 60:
			next, at = b[at], at+8*(int(b[at+1])+1)
		case 51:
			next, at = b[at], at+4*(int(b[at+1])+2)
		case 44:
			if binary.BigEndian.Uint16(b[at+2:])&^7 != 0 {
				return b[at], at + 8, true, binary.BigEndian.Uint32(b[at+4:])
			}
			next, at = b[at], at+8
		default:
			return next, at, false, 0
		}
	}
	return next, at, false, 0
}
