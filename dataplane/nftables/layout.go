// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
)

// Tables that can be there. What is made in the kernel is in one of them.
const (
	tableName = "fairlead"
	// drainTable holds the hooks of a Dataplane that another one replaces, as
	// long as flows need them: see Empty.
	drainTable = "fairlead-drain"
	// checkTable is there for a moment while Check looks what the kernel takes.
	checkTable = "fairlead-check"
)

// family is one of the two: a table of its own, so that keys have one size and
// no rule asks for the family.
type family struct {
	table        string // tableName, but for drainTable and for checks
	proto        uint8  // NFPROTO_
	index        int    // in families
	addressBytes int    // of an address, and in a register
	addressType  uint32 // nft's data type
	offsetSource uint32 // of the addresses in the header
	offsetTarget uint32
	unreachable  uint8 // the ICMP code of port unreachable
}

var families = [2]*family{
	{table: tableName, proto: unix.NFPROTO_IPV4, index: 0, addressBytes: 4, addressType: typeIPv4, offsetSource: 12, offsetTarget: 16, unreachable: 3},
	{table: tableName, proto: unix.NFPROTO_IPV6, index: 1, addressBytes: 16, addressType: typeIPv6, offsetSource: 8, offsetTarget: 24, unreachable: 4},
}

func familyOf(a netip.Addr) *family {
	if a.Is4() {
		return families[0]
	}
	return families[1]
}

// in is the family with another table.
func (f *family) in(table string) *family {
	g := *f
	g.table = table
	return &g
}

func (f *family) String() string {
	if f.index == 0 {
		return "ip"
	}
	return "ip6"
}

// Data types of nft (its include/datatype.h), so that it can print elements.
const (
	typeIPv4    = 7
	typeIPv6    = 8
	typeProto   = 12 // inet_proto
	typeService = 13 // inet_service, a port
	typeMark    = 19 // any 32 bits, in the machine's byte order
	typeIfname  = 41
	typeVerdict = 0xffffff00
	typeBits    = 6 // of one type in a concatenation
)

// setID names a set or map of a family.
type setID int

// The sets. A tuple is destination address, protocol, destination port.
const (
	// setServices: tuple; a Frontend, with its names as comment and a counter
	// of connections. Not touched by changes of Backends.
	setServices setID = iota
	// setFrontends: tuple -> action: see picks.go.
	setFrontends
	// setSlots: tuple, index -> address, port. The eligible Backends of a set
	// are at 0, 1, 2, ...; those that only keep their flows at idleSlot, ...
	setSlots
	// setStickySlots is setSlots for Frontends with affinity.
	setStickySlots
	// The same for external clients, for Frontends where that is another set.
	setFrontendsExternal
	setSlotsExternal
	setStickySlotsExternal
	// setClusterIPs: address; whose other ports are refused.
	setClusterIPs
	// setRestricted: tuple; clients must be in setAllowed.
	setRestricted
	// setAllowed: tuple, client prefix.
	setAllowed
	// setKeepSource: tuple; external clients are not masqueraded.
	setKeepSource
	// setLocalBackends: address, the same address; Backends on this node that
	// are no processes of the node itself.
	setLocalBackends
	// setUplinks: names of devices.
	setUplinks
	// setStickyIDs: tuple -> number of the Service port whose clients have
	// affinity; its Frontends share it.
	setStickyIDs
	// setEligible: tuple, address, port; Backends an affinity may lead to.
	setEligible
	setEligibleExternal
	// setAffinity: number of the Service port, client -> address, port. Made by
	// packets.
	setAffinity
	// setActions: action -> verdict.
	setActions
	setActionsExternal
	setCount
)

var setNames = [setCount]string{
	"services", "frontends", "slots", "sticky-slots", "frontends-external", "slots-external", "sticky-slots-external", "cluster-ips", "restricted", "allowed",
	"keep-source", "local-backends", "uplinks", "sticky-ids", "eligible", "eligible-external", "affinity", "actions", "actions-external",
}

func (id setID) String() string { return setNames[id] }

// idleSlot is the index of the first Backend that gets no new connections.
const idleSlot = 1 << 31

// Actions: what a Frontend does with a new connection. A number of Backends up
// to backendsMax means one of as many; numbers from actionSticky on are given
// out as they are needed (see picks.go).
const (
	actionReject uint32 = 0
	backendsMax         = 65535
	actionSticky uint32 = 1 << 24
	actionDrop   uint32 = 1<<32 - 1
)

// field is one part of a key or of data.
type field struct {
	kind  uint32
	bytes int
}

// registerBytes is what a field takes in registers and in keys.
func (f field) registerBytes() int { return (f.bytes + 3) &^ 3 }

// setLayout is the shape of a set in one family.
type setLayout struct {
	key, data []field // no data: a set
	flags     uint32
	size      int // 0: without a bound
}

func (l setLayout) keyBytes() int  { return fieldBytes(l.key) }
func (l setLayout) dataBytes() int { return fieldBytes(l.data) }

func fieldBytes(fields []field) (n int) {
	if len(fields) == 1 {
		return fields[0].bytes
	}
	for _, f := range fields {
		n += f.registerBytes()
	}
	return n
}

// typeOf is nft's number of a concatenation.
func typeOf(fields []field) (t uint32) {
	for _, f := range fields {
		t = t<<typeBits | f.kind
	}
	return t
}

const setConcatenation = 0x80 // NFT_SET_CONCAT: ranges in each field

// layout gives the shape of every set of a family.
func (f *family) layout(affinityMax int) [setCount]setLayout {
	address := field{f.addressType, f.addressBytes}
	proto, port, mark := field{typeProto, 1}, field{typeService, 2}, field{typeMark, 4}
	tuple := []field{address, proto, port}
	with := func(more ...field) []field { return slices.Concat(tuple, more) }
	backend := []field{address, port}
	wide := func(data ...field) []field { return append([]field{mark}, data...) } // see wideBytes
	verdict := []field{{typeVerdict, 0}}
	return [setCount]setLayout{
		setServices:            {key: tuple},
		setFrontends:           {key: tuple, data: wide(mark)},
		setSlots:               {key: with(mark), data: backend},
		setFrontendsExternal:   {key: tuple, data: wide(mark)},
		setSlotsExternal:       {key: with(mark), data: backend},
		setStickySlots:         {key: with(mark), data: wide(backend...)},
		setStickySlotsExternal: {key: with(mark), data: wide(backend...)},
		setClusterIPs:          {key: []field{address}},
		setRestricted:          {key: tuple},
		setAllowed:             {key: with(address), flags: unix.NFT_SET_INTERVAL | setConcatenation},
		setKeepSource:          {key: tuple},
		setLocalBackends:       {key: []field{address, address}},
		setUplinks:             {key: []field{{typeIfname, 16}}},
		setStickyIDs:           {key: tuple, data: wide(mark)},
		setEligible:            {key: with(backend...)},
		setEligibleExternal:    {key: with(backend...)},
		setAffinity:            {key: []field{mark, address}, data: wide(backend...), flags: unix.NFT_SET_TIMEOUT | unix.NFT_SET_EVAL, size: affinityMax},
		setActions:             {key: []field{mark}, data: verdict},
		setActionsExternal:     {key: []field{mark}, data: verdict},
	}
}

// Counters of what was not let through, in the order of dropReasons.
const (
	counterNoBackends      = "no_backends"
	counterNoLocalBackends = "no_local_backends"
	counterUnknownPort     = "unknown_port"
	counterSourceRange     = "source_range"
	// counterHalfChange counts packets that a Change overtook thrice; their
	// senders try again. It is expected to stay 0.
	counterHalfChange = "half_change"
)

// dropReasons are the values of the reason label, the same as in package ebpf
// where they mean the same.
var dropReasons = []string{counterNoBackends, counterNoLocalBackends, counterUnknownPort, counterSourceRange, counterHalfChange}

// appendAddress and the others write keys as registers hold them.
func appendAddress(b []byte, a netip.Addr) []byte {
	if a.Is4() {
		v := a.As4()
		return append(b, v[:]...)
	}
	v := a.As16()
	return append(b, v[:]...)
}

func appendPort(b []byte, port uint16) []byte { return append(b, byte(port>>8), byte(port), 0, 0) }

func appendTuple(b []byte, k dataplane.FrontendKey) []byte {
	b = appendAddress(b, k.Address)
	b = append(b, byte(k.Protocol), 0, 0, 0)
	return appendPort(b, k.Port)
}

func appendBackend(b []byte, at netip.AddrPort) []byte {
	return appendPort(appendAddress(b, at.Addr()), at.Port())
}

// tupleBytes is the size of a tuple.
func (f *family) tupleBytes() int { return f.addressBytes + 8 }

// backendBytes is the size of an address and port.
func (f *family) backendBytes() int { return f.addressBytes + 4 }

func (f *family) decodeTuple(b []byte) (k dataplane.FrontendKey, ok bool) {
	if len(b) < f.tupleBytes() {
		return k, false
	}
	k.Address, _ = netip.AddrFromSlice(b[:f.addressBytes])
	b = b[f.addressBytes:]
	k.Protocol = dataplane.Protocol(b[0])
	k.Port = uint16(b[4])<<8 | uint16(b[5])
	return k, true
}

func (f *family) decodeBackend(b []byte) (at netip.AddrPort, ok bool) {
	if len(b) < f.backendBytes() {
		return at, false
	}
	a, _ := netip.AddrFromSlice(b[:f.addressBytes])
	b = b[f.addressBytes:]
	return netip.AddrPortFrom(a, uint16(b[0])<<8|uint16(b[1])), true
}
