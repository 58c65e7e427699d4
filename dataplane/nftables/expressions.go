// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
)

// Registers are named by their offset in bytes: there are 64 of them, in which
// keys and data lie as they lie in elements.
func register(at int) uint32 { return unix.NFT_REG32_00 + uint32(at)/4 }

const conntrackDNAT = 1 << 5 // IPS_DST_NAT

// source and destination load an address of the packet.
func (f *family) source(at int) expr.Any { return f.header(at, f.offsetSource) }

func (f *family) destination(at int) expr.Any { return f.header(at, f.offsetTarget) }

func (f *family) header(at int, offset uint32) expr.Any {
	return &expr.Payload{DestRegister: register(at), Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(f.addressBytes)}
}

func protocol(at int) expr.Any { return &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register(at)} }

// tuple loads what the packet asks for, at offset 0.
func (f *family) tuple() []expr.Any {
	return []expr.Any{
		f.destination(0), protocol(f.addressBytes), destinationPort(f.addressBytes + 4),
	}
}

func sourcePort(at int) expr.Any { return transport(at, 0) }

func destinationPort(at int) expr.Any { return transport(at, 2) }

func transport(at int, offset uint32) expr.Any {
	return &expr.Payload{DestRegister: register(at), Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2}
}

// originalTuple loads what the connection asked for before it was translated.
func (f *family) originalTuple() []expr.Any {
	key := uint32(unix.NFT_CT_DST_IP)
	if f.index == 1 {
		key = unix.NFT_CT_DST_IP6
	}
	return []expr.Any{original{key: key, at: 0}, protocol(f.addressBytes), original{key: unix.NFT_CT_PROTO_DST, at: f.addressBytes + 4}}
}

// original loads what conntrack knows of the direction of a flow's first packet.
// The library has keys of old kernels only, of which nft does not know how long
// they are.
type original struct {
	expr.Any
	key uint32
	at  int
}

func (o original) encode() []byte {
	m := &messages{}
	m.text(unix.NFTA_EXPR_NAME, "ct")
	in := m.nest(unix.NFTA_EXPR_DATA)
	m.u32(unix.NFTA_CT_KEY, o.key)
	m.u32(unix.NFTA_CT_DREG, register(o.at))
	m.bytes(unix.NFTA_CT_DIRECTION, []byte{0}) // IP_CT_DIR_ORIGINAL
	m.unnest(in)
	return m.b
}

// in matches where the key at an offset is in a set, notIn where it is not. Of a
// map, Linux before 6.5 wants to load what is found: there it is find.
func in(at int, set setID) expr.Any {
	return &expr.Lookup{SourceRegister: register(at), SetName: set.String()}
}

func notIn(at int, set setID) expr.Any {
	return &expr.Lookup{SourceRegister: register(at), SetName: set.String(), Invert: true}
}

// find loads the data of a key in a map, and matches where there is one.
func find(at int, set setID, to int) expr.Any {
	return &expr.Lookup{SourceRegister: register(at), SetName: set.String(), DestRegister: register(to), IsDestRegSet: true}
}

// wideBytes is how much the data of some maps begins with that means nothing.
//
// The kernel can look up what another lookup found. nft 1.0.6 aborts when it
// has to print that, and with it everybody's `nft list ruleset` (no nft knew how
// to before 2024: its bug 1736). It does not notice where a lookup writes more
// than one register. So what is found begins one register early, and lands where
// nft believes that something else still is, which it prints in its place: the
// comments of these rules say so.
const wideBytes = 4

// findWide is find in such a map: the data proper is loaded at to, and the
// register before it is lost.
func findWide(at int, set setID, to int) expr.Any { return find(at, set, to-wideBytes) }

// mark loads the packet's mark, for nft to find something in a register.
func mark(at int) expr.Any { return &expr.Meta{Key: expr.MetaKeyMARK, Register: register(at)} }

// obey does the verdict of a key in a map.
func obey(at int, set setID) expr.Any {
	return &expr.Lookup{SourceRegister: register(at), SetName: set.String(), DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true}
}

func random(at, n int) expr.Any {
	return &expr.Numgen{Register: register(at), Modulus: uint32(n), Type: unix.NFT_NG_RANDOM}
}

// translate sends the connection to the address and port at an offset.
func (f *family) translate(at int) expr.Any {
	return &expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.proto), RegAddrMin: register(at), RegProtoMin: register(at + f.addressBytes)}
}

func masquerade() expr.Any { return &expr.Masq{FullyRandom: true} }

func jump(chain string) expr.Any { return &expr.Verdict{Kind: expr.VerdictJump, Chain: chain} }
func goTo(chain string) expr.Any { return &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain} }
func drop() expr.Any             { return &expr.Verdict{Kind: expr.VerdictDrop} }
func leave() expr.Any            { return &expr.Verdict{Kind: expr.VerdictReturn} }
func count(counter string) expr.Any {
	return &expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: counter}
}

func isProtocol(p dataplane.Protocol) []expr.Any {
	return []expr.Any{protocol(0), &expr.Cmp{Op: expr.CmpOpEq, Register: register(0), Data: []byte{byte(p)}}}
}

// fromPrefix matches the packet's source.
func (f *family) fromPrefix(p netip.Prefix) []expr.Any {
	address := p.Masked().Addr().AsSlice()
	out := []expr.Any{f.source(0)}
	if p.Bits() < p.Addr().BitLen() {
		out = append(out, &expr.Bitwise{SourceRegister: register(0), DestRegister: register(0), Len: uint32(len(address)),
			Mask: mask(p), Xor: make([]byte, len(address))})
	}
	return append(out, &expr.Cmp{Op: expr.CmpOpEq, Register: register(0), Data: address})
}

func mask(p netip.Prefix) []byte {
	m := make([]byte, p.Addr().BitLen()/8)
	for i := range p.Bits() {
		m[i/8] |= 0x80 >> (i % 8)
	}
	return m
}

// isLocal matches packets that this node itself sends.
func isLocal() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIF, Register: register(0)}, &expr.Cmp{Op: expr.CmpOpEq, Register: register(0), Data: make([]byte, 4)}}
}

// device compares the name of the device that a packet came by or leaves by.
func device(key expr.MetaKey, op expr.CmpOp, name string) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: register(0)}, &expr.Cmp{Op: op, Register: register(0), Data: deviceName(name)}}
}

// deviceName is a name as registers hold it: 16 bytes (IFNAMSIZ).
func deviceName(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b[:unix.IFNAMSIZ-1], name)
	return b
}

func native32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
