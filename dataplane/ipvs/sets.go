// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
)

// family is IPv4 or IPv6, as nftables wants to be told.
type family struct {
	suffix    string
	nfproto   byte
	protocol  uint16 // AF_
	address   nftables.SetDatatype
	bytes     uint32 // of an address
	registers uint32 // of 4 bytes that an address takes
	// Offsets of the addresses in the network header, in bytes.
	source, destination uint32
	loopback            netip.Addr
}

var (
	ipv4     = &family{"4", unix.NFPROTO_IPV4, unix.AF_INET, nftables.TypeIPAddr, 4, 1, 12, 16, netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	ipv6     = &family{"6", unix.NFPROTO_IPV6, unix.AF_INET6, nftables.TypeIP6Addr, 16, 4, 8, 24, netip.IPv6Loopback()}
	families = []*family{ipv4, ipv6}
)

func familyOf(a netip.Addr) *family {
	if a.Is4() {
		return ipv4
	}
	return ipv6
}

// scopeNames are the parts of set names.
var scopeNames = map[dataplane.Scope]string{dataplane.Internal: "internal", dataplane.External: "external"}

// setSpec is a set or map of the table.
type setSpec struct {
	name    string
	key     []nftables.SetDatatype
	data    bool // a map to a number of 4 bytes
	ranges  bool // keys are ranges
	dynamic bool // packets add to it, with a timeout
}

// setSpecs are all sets. A Frontend is address . protocol . port; a "server" is
// the mark of a virtual server, a "port" the number of a Service port.
func setSpecs() []setSpec {
	number := nftables.TypeMark
	proto, port := nftables.TypeInetProto, nftables.TypeInetService
	specs := []setSpec{
		// Whose a port number is: the comments of its parts joined.
		{name: "names", key: []nftables.SetDatatype{number, number}},
		// Affinity timeouts in seconds, by port.
		{name: "timeouts", key: []nftables.SetDatatype{number}, data: true},
		// Which Backend's own server is eligible in which set's.
		{name: "eligible", key: []nftables.SetDatatype{number, number}},
		{name: "uplinks", key: []nftables.SetDatatype{nftables.TypeIFName}},
		// What was changed on this machine, in comments.
		{name: "memory", key: []nftables.SetDatatype{number}},
	}
	for _, f := range families {
		frontend := []nftables.SetDatatype{f.address, proto, port}
		for _, s := range []setSpec{
			// The comment is what a dump needs to know.
			{name: "frontends", key: frontend},
			// Which server has a Frontend, in each scope.
			{name: "internal", key: frontend, data: true},
			{name: "external", key: frontend, data: true},
			// Frontends without Backends: refused at once, or in silence.
			{name: "refused-internal", key: frontend},
			{name: "refused-external", key: frontend},
			{name: "dropped-internal", key: frontend},
			{name: "dropped-external", key: frontend},
			// Frontends with source ranges, and the ranges.
			{name: "restricted", key: frontend},
			{name: "allowed", key: append(frontend, f.address), ranges: true},
			// Frontends whose external clients are masqueraded.
			{name: "masquerade", key: frontend},
			// Addresses that are Services' alone.
			{name: "vips", key: []nftables.SetDatatype{f.address}},
			// Backends of this node, twice: their own clients are the same.
			{name: "local", key: []nftables.SetDatatype{f.address, f.address}},
			{name: "internal-sources", key: []nftables.SetDatatype{f.address}, ranges: true},
			// Backends of a server; the value is flags.
			{name: "members", key: []nftables.SetDatatype{number, f.address, port}, data: true},
			// Affinity: the port of a Frontend; the own server of a Backend of a
			// port; and that of a client's Backend.
			{name: "sticky", key: frontend, data: true},
			{name: "homes", key: []nftables.SetDatatype{number, f.address, port}, data: true},
			{name: "affinity", key: []nftables.SetDatatype{number, f.address}, data: true, dynamic: true},
		} {
			s.name += f.suffix
			specs = append(specs, s)
		}
	}
	return specs
}

// Flags of members.
const (
	memberTerminating = 1 << iota
	memberLocal
	memberHostNetwork
)

// set makes the nftables set.
func (s setSpec) set(t *nftables.Table, affinityMax int) *nftables.Set {
	out := &nftables.Set{Table: t, Name: s.name, IsMap: s.data, Interval: s.ranges, Dynamic: s.dynamic, HasTimeout: s.dynamic}
	if s.data {
		out.DataType = nftables.TypeMark
	}
	if s.dynamic {
		out.Size = uint32(affinityMax)
	}
	if len(s.key) == 1 {
		out.KeyType = s.key[0]
		return out
	}
	out.KeyType = nftables.MustConcatSetType(s.key...)
	out.Concatenation = true
	return out
}

// Keys are concatenations of fields padded to four bytes. Numbers and marks
// are in host byte order, as in a register.

func number(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }

func frontendKey(k dataplane.FrontendKey) []byte {
	b := append(k.Address.AsSlice(), uint8(k.Protocol), 0, 0, 0)
	return append(binary.BigEndian.AppendUint16(b, k.Port), 0, 0)
}

func parseFrontendKey(b []byte) (k dataplane.FrontendKey, ok bool) {
	if len(b) < 12 {
		return k, false
	}
	k.Address, ok = netip.AddrFromSlice(b[:len(b)-8])
	b = b[len(b)-8:]
	k.Protocol, k.Port = dataplane.Protocol(b[0]), binary.BigEndian.Uint16(b[4:])
	return k, ok
}

func backendKey(n uint32, a netip.AddrPort) []byte {
	b := append(number(n), a.Addr().AsSlice()...)
	return append(binary.BigEndian.AppendUint16(b, a.Port()), 0, 0)
}

func parseBackendKey(b []byte) (n uint32, a netip.AddrPort, ok bool) {
	if len(b) < 12 {
		return 0, a, false
	}
	addr, ok := netip.AddrFromSlice(b[4 : len(b)-4])
	return binary.NativeEndian.Uint32(b), netip.AddrPortFrom(addr, binary.BigEndian.Uint16(b[len(b)-4:])), ok
}

func pair(a, b []byte) []byte { return append(append([]byte{}, a...), b...) }

func deviceKey(name string) []byte { return append([]byte(name), make([]byte, 16-len(name))...) }
