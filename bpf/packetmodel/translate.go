// SPDX-License-Identifier: Apache-2.0

package packetmodel

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// translate sends the packet on as its flow says.
func (h *handling) translate(f *Flow) Outcome {
	var hop Hop
	if h.side != FromHost || !f.Reply { // the node's own answers are routed already
		hop = h.Route(f.To.Destination)
	}
	toStack := hop.Kind == ToStack
	switch {
	case hop.Kind == Blackhole:
		return h.drop(NoRoute)
	case toStack && h.side == FromHost && !f.Reply:
		// A Backend of the node's own: it is on its way out already, and with
		// the node's source it could not come in again.
		return h.drop(NoRoute)
	case !toStack && len(h.p.l3) > hop.MTU && h.p.df:
		h.Drops[TooBig]++
		return h.tooBig(hop.MTU)
	case !toStack && len(h.p.l3) > hop.MTU: // the stack fragments it
		toStack = true
	}
	if h.side != FromHost && h.p.ttl <= 1 { // the stack's to report
		toStack = true
	}
	frame := slices.Clone(h.p.frame)
	out := Outcome{Frame: frame}
	if !h.rewrite(&out, f.To) {
		return h.drop(Malformed)
	}
	return h.send(out, hop, toStack, f)
}

func (h *handling) send(out Outcome, hop Hop, toStack bool, f *Flow) Outcome {
	out.Verdict = Redirect
	switch {
	case !toStack:
		h.leaveBy(&out, hop)
	case f.Reply && h.side != FromHost:
		// It enters by the device that leads to the Service's address.
		in := h.Route(f.To.Source)
		if in.Kind != Forward || in.Device == h.device {
			out.Verdict = Stack
			break
		}
		copy(out.Frame, in.From[:])
		copy(out.Frame[6:], in.From[:])
	default:
		out.Verdict = Stack
	}
	return out
}

// leaveBy gives a frame the next hop, and one hop less to live unless the node
// itself made it.
func (h *handling) leaveBy(out *Outcome, hop Hop) {
	if hop.Kind == Forward {
		copy(out.Frame, hop.To[:])
		copy(out.Frame[6:], hop.From[:])
	}
	if h.side == FromHost {
		return
	}
	b := out.Frame[ethernetBytes:]
	if h.p.ipv6 {
		b[7]--
		return
	}
	before := slices.Clone(b[8:10])
	b[8]--
	follow(b, 10, before, b[8:10])
}

// rewrite gives the packet another tuple and mends its checksums.
func (h *handling) rewrite(out *Outcome, to Tuple) bool {
	h.rewriteAddresses(out, to.Source, to.Destination)
	if h.p.later {
		return true
	}
	old := h.p.l3[h.p.l4:]
	l4 := out.Frame[ethernetBytes+h.p.l4 : ethernetBytes+len(h.p.l3)]
	binary.BigEndian.PutUint16(l4, to.SourcePort)
	binary.BigEndian.PutUint16(l4[2:], to.DestinationPort)
	if to.Protocol == sctp {
		if [4]byte(old) == [4]byte(l4) {
			return true
		}
		if h.p.first || len(l4) < 12 { // the checksum covers what is not here
			return false
		}
		followSCTP(old, l4)
		return true
	}
	at := 16
	if to.Protocol == udp {
		at = 6
		if binary.BigEndian.Uint16(l4[6:]) == 0 { // none (RFC 768)
			return true
		}
	}
	t := h.p.tuple
	follow(l4, at, slices.Concat(old[:4], t.Source.AsSlice(), t.Destination.AsSlice()), slices.Concat(l4[:4], to.Source.AsSlice(), to.Destination.AsSlice()))
	if to.Protocol == udp && binary.BigEndian.Uint16(l4[6:]) == 0 {
		binary.BigEndian.PutUint16(l4[6:], 0xffff)
	}
	out.Checksums = append(out.Checksums, ethernetBytes+h.p.l4+at)
	return true
}

func (h *handling) rewriteAddresses(out *Outcome, source, destination netip.Addr) {
	b := out.Frame[ethernetBytes:]
	if h.p.ipv6 {
		copy(b[8:], source.AsSlice())
		copy(b[24:], destination.AsSlice())
		return
	}
	before := slices.Clone(b[12:20])
	copy(b[12:], source.AsSlice())
	copy(b[16:], destination.AsSlice())
	follow(b, 10, before, b[12:20])
	out.Checksums = append(out.Checksums, ethernetBytes+10)
}

// icmpError translates an error about a packet of ours: the quote back to what
// its sender knows, and the error to that sender (RFC 5508, 4.2).
func (h *handling) icmpError() Outcome {
	at := h.p.l4 + 8
	q, ports, ok := h.quoted(at)
	if !ok || isNoHost(h.p.tuple.Source) { // (RFC 1812, 5.3.7)
		return h.leave()
	}
	f := h.Flows[q.reversed()] // the quote went the other way
	if f == nil {
		return h.leave()
	}
	source := h.p.tuple.Source
	if source == q.Destination { // the far end itself speaks, under the name known here
		source = f.To.Source
	}
	hop := h.Route(f.To.Destination)
	toStack := h.side == FromHost || hop.Kind == ToStack
	if !toStack && (hop.Kind == Blackhole || len(h.p.l3) > hop.MTU) {
		return h.drop(NoRoute)
	}
	out := Outcome{Verdict: Stack, Frame: slices.Clone(h.p.frame)}
	h.rewriteAddresses(&out, source, f.To.Destination)
	h.rewriteQuote(&out, at, ports, f.To.reversed())
	if h.p.ipv6 {
		t := h.p.tuple
		follow(out.Frame, ethernetBytes+h.p.l4+2, slices.Concat(t.Source.AsSlice(), t.Destination.AsSlice()), slices.Concat(source.AsSlice(), f.To.Destination.AsSlice()))
	}
	if !toStack && h.p.ttl > 1 {
		out.Verdict = Redirect
		h.leaveBy(&out, hop)
	}
	return out
}

// quoted reads the tuple of the packet that an error at l3[at:] is about, and
// where its ports are.
func (h *handling) quoted(at int) (t Tuple, ports int, ok bool) {
	b := h.p.l3[at:]
	if h.p.ipv6 {
		if len(b) < 40 {
			return t, 0, false
		}
		t.Source, t.Destination, t.Protocol = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40])), b[6]
		ports = at + 40
	} else {
		if len(b) < 20 || b[0]>>4 != 4 || b[0]&15 < 5 || binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
			return t, 0, false
		}
		t.Source, t.Destination, t.Protocol = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20])), b[9]
		ports = at + int(b[0]&15)*4
	}
	if !isBalanced(t.Protocol) || ports+4 > len(h.p.l3) || t.Source.Is4In6() || t.Destination.Is4In6() {
		return t, 0, false
	}
	t.SourcePort, t.DestinationPort = binary.BigEndian.Uint16(h.p.l3[ports:]), binary.BigEndian.Uint16(h.p.l3[ports+2:])
	return t, ports, true
}

func (h *handling) rewriteQuote(out *Outcome, at, ports int, to Tuple) {
	b := out.Frame[ethernetBytes:]
	if h.p.ipv6 {
		copy(b[at+8:], to.Source.AsSlice())
		copy(b[at+24:], to.Destination.AsSlice())
	} else {
		copy(b[at+12:], to.Source.AsSlice())
		copy(b[at+16:], to.Destination.AsSlice())
		follow(b, at+10, h.p.l3[at+12:at+20], b[at+12:at+20])
		out.Checksums = append(out.Checksums, ethernetBytes+at+10)
	}
	binary.BigEndian.PutUint16(b[ports:], to.SourcePort)
	binary.BigEndian.PutUint16(b[ports+2:], to.DestinationPort)
	follow(b, h.p.l4+2, h.p.l3[at:ports+4], b[at:ports+4])
	out.Checksums = append(out.Checksums, ethernetBytes+h.p.l4+2)
}
