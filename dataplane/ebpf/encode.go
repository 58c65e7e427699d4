// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"unsafe"

	"fairlead.dev/bpf"
	"fairlead.dev/dataplane"
)

// encodeAddress gives the 16 bytes, network byte order, that the maps hold:
// IPv4 as an IPv4-mapped IPv6 address.
func encodeAddress(a netip.Addr) bpf.FairleadAddress {
	if !a.IsValid() {
		return bpf.FairleadAddress{}
	}
	b := a.As16()
	var w bpf.FairleadAddress
	for i := range w.Word {
		w.Word[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return w
}

func decodeAddress(w bpf.FairleadAddress) netip.Addr {
	var b [16]byte
	for i, word := range w.Word {
		binary.NativeEndian.PutUint32(b[4*i:], word)
	}
	return netip.AddrFrom16(b).Unmap()
}

// swap16 turns a port from host to network byte order and back.
func swap16(p uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], p)
	return binary.NativeEndian.Uint16(b[:])
}

func encodeKey(k dataplane.FrontendKey) bpf.FairleadFrontendKey {
	return bpf.FairleadFrontendKey{Address: encodeAddress(k.Address), Port: swap16(k.Port), Protocol: uint8(k.Protocol)}
}

func decodeKey(k bpf.FairleadFrontendKey) dataplane.FrontendKey {
	return dataplane.FrontendKey{Address: decodeAddress(k.Address), Port: swap16(k.Port), Protocol: dataplane.Protocol(k.Protocol)}
}

// prefixBits is the length of a prefix among the 128 bits of an address.
func prefixBits(p netip.Prefix) uint32 {
	if p.Addr().Is4() {
		return uint32(p.Bits()) + 96
	}
	return uint32(p.Bits())
}

func encodePrefix(p netip.Prefix) bpf.FairleadPrefixKey {
	return bpf.FairleadPrefixKey{PrefixBits: prefixBits(p), Address: encodeAddress(p.Masked().Addr())}
}

func encodeSourceRange(service uint32, p netip.Prefix) bpf.FairleadSourceRangeKey {
	return bpf.FairleadSourceRangeKey{PrefixBits: 32 + prefixBits(p), Service: service, Address: encodeAddress(p.Masked().Addr())}
}

// Flags and enums of bpf/layout.h.
const (
	frontendSourceRanges       = 1 << 0
	frontendMasqueradeExternal = 1 << 1
	frontendAnyPort            = 1 << 2

	slotLocal       = 1 << 0
	slotHostNetwork = 1 << 1
	slotTerminating = 1 << 2
	slotDraining    = 1 << 3
)

func encodeSlot(b dataplane.Backend, id uint32) bpf.FairleadSlot {
	s := bpf.FairleadSlot{Address: encodeAddress(b.Address), Port: swap16(b.Port), Backend: id}
	if b.Local {
		s.Flags |= slotLocal
	}
	if b.HostNetwork {
		s.Flags |= slotHostNetwork
	}
	if b.State == dataplane.Terminating {
		s.Flags |= slotTerminating
	}
	return s
}

func decodeSlot(s bpf.FairleadSlot) dataplane.Backend {
	b := dataplane.Backend{Address: decodeAddress(s.Address), Port: swap16(s.Port), Local: s.Flags&slotLocal != 0, HostNetwork: s.Flags&slotHostNetwork != 0}
	if s.Flags&slotTerminating != 0 {
		b.State = dataplane.Terminating
	}
	return b
}

// Longest names that service_names holds, in bytes.
const (
	namespaceMax = 63
	nameMax      = 255
	portNameMax  = 63
)

// portID names a Service port, the unit of counters and affinity.
type portID struct {
	service  dataplane.ServiceName
	portName string
}

func encodeNames(p portID) (bpf.FairleadServiceNames, bool) {
	var n bpf.FairleadServiceNames
	if len(p.service.Namespace) > namespaceMax || len(p.service.Name) > nameMax || len(p.portName) > portNameMax {
		return n, false
	}
	copy(n.NamespaceName[:], p.service.Namespace)
	copy(n.Name[:], p.service.Name)
	copy(n.PortName[:], p.portName)
	return n, true
}

func decodeNames(n *bpf.FairleadServiceNames) portID {
	return portID{dataplane.ServiceName{Namespace: cString(n.NamespaceName[:]), Name: cString(n.Name[:])}, cString(n.PortName[:])}
}

func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// sliceOf views mapped memory as n values of T.
func sliceOf[T any](mem []byte, n int) []T {
	return unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(mem))), n)
}
