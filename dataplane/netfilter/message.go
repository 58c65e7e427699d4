// SPDX-License-Identifier: Apache-2.0

package netfilter

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/nfnetlink"
)

// Numbers of linux/netfilter/nfnetlink_conntrack.h and nf_conntrack_common.h.
const (
	commandGet    = 1 // IPCTNL_MSG_CT_GET
	commandDelete = 2 // IPCTNL_MSG_CT_DELETE

	ctaTupleOrig  = 1
	ctaTupleReply = 2
	ctaStatus     = 3
	ctaProtoInfo  = 4
	ctaTimeout    = 7
	ctaID         = 12
	ctaZone       = 18
	ctaTimestamp  = 20
	ctaFilter     = 25
	ctaStatusMask = 26

	ctaTupleIP        = 1
	ctaTupleProto     = 2
	ctaIPv4Src        = 1
	ctaIPv4Dst        = 2
	ctaIPv6Src        = 3
	ctaIPv6Dst        = 4
	ctaProtoNum       = 1
	ctaProtoSrcPort   = 2
	ctaProtoDstPort   = 3
	ctaProtoInfoTCP   = 1
	ctaProtoInfoSCTP  = 3
	ctaProtoState     = 1 // of TCP and of SCTP
	ctaTimestampStart = 1

	ctaFilterOrigFlags = 1
	filterIPDst        = 1 << 1
	filterProtoNum     = 1 << 3
	filterProtoDstPort = 1 << 5

	statusSeenReply = 1 << 1
	statusAssured   = 1 << 2
)

// tuple is one direction of a flow.
type tuple struct {
	from, to netip.AddrPort
	protocol dataplane.Protocol
}

// flow is what this package reads of a conntrack entry.
type flow struct {
	orig, reply tuple
	status      uint32
	state       uint8  // of TCP (enum tcp_conntrack) or SCTP (enum sctp_conntrack)
	timeout     uint32 // seconds left
	start       uint64 // ns since 1970; 0 without nf_conntrack_timestamp
	// Attributes as the kernel sent them, to name the flow to it again; valid
	// as long as the message is.
	replyRaw, zoneRaw, idRaw []byte
}

// backend is where the flow's packets end up; the Frontend itself where they
// are not translated.
func (f *flow) backend() netip.AddrPort { return f.reply.from }

// frontend is where the client sent them.
func (f *flow) frontend() dataplane.FrontendKey {
	return dataplane.FrontendKey{Address: f.orig.to.Addr(), Port: f.orig.to.Port(), Protocol: f.orig.protocol}
}

// decode reads an entry from a message of the kernel, with its nfgenmsg. It
// reports whether both directions were there.
func decode(payload []byte, f *flow) bool {
	*f = flow{}
	if len(payload) < nfnetlink.HeaderBytes {
		return false
	}
	for kind, v := range nfnetlink.Attributes(payload[nfnetlink.HeaderBytes:]) {
		switch kind {
		case ctaTupleOrig:
			f.orig = decodeTuple(v)
		case ctaTupleReply:
			f.reply, f.replyRaw = decodeTuple(v), v
		case ctaStatus:
			f.status = nfnetlink.Uint32(v)
		case ctaTimeout:
			f.timeout = nfnetlink.Uint32(v)
		case ctaProtoInfo:
			f.state = decodeState(v)
		case ctaTimestamp:
			for kind, v := range nfnetlink.Attributes(v) {
				if kind == ctaTimestampStart && len(v) == 8 {
					f.start = binary.BigEndian.Uint64(v)
				}
			}
		case ctaZone:
			f.zoneRaw = v
		case ctaID:
			f.idRaw = v
		}
	}
	return f.orig.to.IsValid() && f.reply.from.IsValid()
}

func decodeTuple(b []byte) (t tuple) {
	var from, to netip.Addr
	var fromPort, toPort uint16
	for kind, v := range nfnetlink.Attributes(b) {
		for inner, v := range nfnetlink.Attributes(v) {
			switch {
			case kind == ctaTupleIP && (inner == ctaIPv4Src || inner == ctaIPv6Src):
				from, _ = netip.AddrFromSlice(v)
			case kind == ctaTupleIP && (inner == ctaIPv4Dst || inner == ctaIPv6Dst):
				to, _ = netip.AddrFromSlice(v)
			case kind == ctaTupleProto && inner == ctaProtoNum && len(v) == 1:
				t.protocol = dataplane.Protocol(v[0])
			case kind == ctaTupleProto && inner == ctaProtoSrcPort && len(v) == 2:
				fromPort = binary.BigEndian.Uint16(v)
			case kind == ctaTupleProto && inner == ctaProtoDstPort && len(v) == 2:
				toPort = binary.BigEndian.Uint16(v)
			}
		}
	}
	t.from, t.to = netip.AddrPortFrom(from, fromPort), netip.AddrPortFrom(to, toPort)
	return t
}

func decodeState(b []byte) uint8 {
	for kind, v := range nfnetlink.Attributes(b) {
		if kind != ctaProtoInfoTCP && kind != ctaProtoInfoSCTP {
			continue
		}
		for kind, v := range nfnetlink.Attributes(v) {
			if kind == ctaProtoState && len(v) == 1 {
				return v[0]
			}
		}
	}
	return 0
}

func nested(b []byte, kind uint16, value []byte) []byte {
	return nfnetlink.AppendAttribute(b, kind|unix.NLA_F_NESTED, value)
}

// familyOf is NFPROTO_IPV4 or NFPROTO_IPV6.
func familyOf(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.NFPROTO_IPV4
	}
	return unix.NFPROTO_IPV6
}

// selection is what the kernel is to send of its table. The zero value is all.
type selection struct {
	family   uint8
	protocol dataplane.Protocol
	// port and address are the original destination; zero: any. An IPv6 address
	// can't be selected: the kernel takes their comparison the wrong way round
	// and sends all but those that match (5.8 to 6.18 at least).
	port    uint16
	address netip.Addr
	// opening leaves out flows that are assured: TCP that was established.
	// Kernels before 5.15 send those too.
	opening bool
}

// encode gives the attributes of a dump request (CTA_FILTER: kernel 5.8).
func (s selection) encode() []byte {
	var b []byte
	if s.opening {
		b = nfnetlink.AppendAttribute(b, ctaStatus, []byte{0, 0, 0, 0})
		b = nfnetlink.AppendAttribute(b, ctaStatusMask, binary.BigEndian.AppendUint32(nil, statusAssured))
	}
	if s.protocol == 0 {
		return b
	}
	flags := uint32(filterProtoNum)
	proto := nfnetlink.AppendAttribute(nil, ctaProtoNum, []byte{uint8(s.protocol)})
	if s.port != 0 {
		flags |= filterProtoDstPort
		proto = nfnetlink.AppendAttribute(proto, ctaProtoDstPort, binary.BigEndian.AppendUint16(nil, s.port))
	}
	var ip []byte
	if s.address.Is4() {
		flags |= filterIPDst
		ip = nfnetlink.AppendAttribute(nil, ctaIPv4Dst, s.address.AsSlice())
	}
	b = nested(b, ctaTupleOrig, nested(nested(nil, ctaTupleIP, ip), ctaTupleProto, proto))
	return nested(b, ctaFilter, nfnetlink.AppendAttribute(nil, ctaFilterOrigFlags, binary.NativeEndian.AppendUint32(nil, flags)))
}

// selects reports whether a kernel that follows the selection may send f.
func (s selection) selects(f *flow) bool {
	return (s.protocol == 0 || s.protocol == f.orig.protocol) && (s.port == 0 || s.port == f.orig.to.Port()) &&
		(!s.address.Is4() || s.address == f.orig.to.Addr())
}
