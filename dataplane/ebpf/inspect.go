// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"fairlead.dev/bpf"
	"fairlead.dev/dataplane"
)

var _ dataplane.Inspector = (*Reader)(nil)

// inspectAttempts bounds how often a Frontend is read again that an agent
// changes meanwhile.
const inspectAttempts = 8

// Inspect implements dataplane.Inspector.
func (r *Reader) Inspect(at dataplane.FrontendKey) (*dataplane.Inspection, error) {
	in := &dataplane.Inspection{Dataplane: "ebpf"}
	var s bpf.FairleadNodeSettings
	if err := r.maps["settings"].Lookup(uint32(0), &s); err != nil {
		return nil, fmt.Errorf("read map settings: %w", err)
	}
	in.Draining = s.Flags&settingsDraining != 0
	if here, err := netnsCookie(); err == nil && s.HostNetnsCookie != 0 && here != s.HostNetnsCookie {
		return nil, errors.New("what is pinned is of another network namespace, whose devices and routes count: run this there (nsenter --net, or a pod with hostNetwork)")
	}
	if err := r.inspectRules(in, &s); err != nil {
		return nil, err
	}
	for range inspectAttempts {
		done, err := r.inspectFrontend(in, at)
		if err != nil || done {
			return in, err
		}
	}
	return nil, fmt.Errorf("read Frontend %s: it changed %d times meanwhile: try again", at, inspectAttempts)
}

// inspectFrontend reads a Frontend with what it points to. It is not done where
// that changed meanwhile.
func (r *Reader) inspectFrontend(in *dataplane.Inspection, at dataplane.FrontendKey) (done bool, err error) {
	in.Frontend, in.Service, in.RefusedPort = nil, dataplane.ServiceName{}, ""
	key := encodeKey(at)
	v, there, err := r.frontend(key)
	if err != nil {
		return false, err
	}
	if !there {
		others := bpf.FairleadFrontendKey{Address: key.Address}
		if _, claimed, err := r.frontend(others); err != nil || !claimed {
			return err == nil, err
		}
		in.RefusedPort = "the address is a ClusterIP"
		return true, nil
	}
	var names bpf.FairleadServiceNames
	err = r.maps["services"].Lookup(v.Service, &names)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read map services: %w", err)
	}
	name := decodeNames(&names)
	f := &dataplane.Frontend{
		FrontendKey: at, Kind: dataplane.Kind(v.Kind), PortName: name.portName, AffinitySeconds: v.AffinitySeconds,
		MasqueradeExternal: v.Flags&frontendMasqueradeExternal != 0,
	}
	if err := r.inspectSets(f, &v); err != nil {
		return false, err
	}
	if v.Flags&frontendSourceRanges != 0 {
		if f.SourceRanges, err = r.sourceRanges(v.Service, at.Address.Is6()); err != nil {
			return false, err
		}
	}
	now, there, err := r.frontend(key)
	in.Frontend, in.Service = f, name.service
	return there && now == v, err
}

func (r *Reader) frontend(key bpf.FairleadFrontendKey) (v bpf.FairleadFrontend, there bool, err error) {
	err = r.maps["frontends"].Lookup(key, &v)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return v, false, nil
	}
	if err != nil {
		return v, false, fmt.Errorf("read map frontends: %w", err)
	}
	return v, true, nil
}

// inspectSets reads the slots of both scopes.
func (r *Reader) inspectSets(f *dataplane.Frontend, v *bpf.FairleadFrontend) error {
	memory, err := mapArray(r.maps["slots"], unix.PROT_READ)
	if err != nil {
		return err
	}
	defer unix.Munmap(memory)
	slots := sliceOf[bpf.FairleadSlot](memory, int(r.maps["slots"].MaxEntries()))
	for scope, set := range map[dataplane.Scope]bpf.FairleadBackendSet{dataplane.Internal: v.Internal, dataplane.External: v.External} {
		out := dataplane.BackendSet{OnEmpty: dataplane.EmptyAction(set.OnEmpty)}
		first, last := uint64(set.Base), uint64(set.Base)+uint64(set.Total)
		if last > uint64(len(slots)) {
			return fmt.Errorf("slots %[2]d to %[3]d of Frontend %[1]s are not in the map: is another fairlead's state pinned?", f.FrontendKey, first, last)
		}
		for _, s := range slots[first:last] {
			switch b := decodeSlot(s); {
			case s.Flags&slotDraining == 0:
				out.Backends = append(out.Backends, b)
			case scope == dataplane.Internal:
				f.Draining = append(f.Draining, b)
			}
		}
		slices.SortFunc(out.Backends, dataplane.CompareBackends)
		if scope == dataplane.Internal {
			f.Internal = out
		} else {
			f.External = out
		}
	}
	slices.SortFunc(f.Draining, dataplane.CompareBackends)
	return nil
}

// sourceRanges are those of a Service port in one family.
func (r *Reader) sourceRanges(service uint32, ipv6 bool) (out []netip.Prefix, err error) {
	err = eachEntrySlowly(r.maps["source_ranges"], func(key bpf.FairleadSourceRangeKey, _ *uint8) {
		if p, ok := decodePrefix(key.Address, key.PrefixBits-32); ok && key.Service == service && p.Addr().Is6() == ipv6 {
			out = append(out, p)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("read map source_ranges: %w", err)
	}
	slices.SortFunc(out, comparePrefixes)
	return out, nil
}

// decodePrefix is the inverse of encodePrefix. IPv6 ranges that hold all of IPv4
// stay IPv6: they begin above the 96 bits of an IPv4-mapped address.
func decodePrefix(w bpf.FairleadAddress, bits uint32) (netip.Prefix, bool) {
	a := decodeAddress(w)
	if a.Is4() {
		if bits < 96 {
			return netip.Prefix{}, false
		}
		bits -= 96
	}
	p := netip.PrefixFrom(a, int(bits))
	return p, p.IsValid()
}

func comparePrefixes(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

// inspectRules reads what decides beside Frontends.
func (r *Reader) inspectRules(in *dataplane.Inspection, s *bpf.FairleadNodeSettings) error {
	in.Rules = dataplane.Rules{
		Hooks: dataplane.Hooks{
			Packet: "tc", Socket: "connect() and sendmsg() (cgroup hooks)",
			Pod: "tc ingress (fairlead_from_pod)", Uplink: "tc ingress (fairlead_from_uplink)", Node: "tc egress (fairlead_from_host)",
		},
		DevicesDecide:  true,
		LoopbackServed: s.HostNetnsCookie != 0,
		Masquerade: dataplane.MasqueradeRules{
			IPv4: orInvalid(decodeAddress(s.NodeIpv4)), IPv6: orInvalid(decodeAddress(s.NodeIpv6)), NodeMustLeave: true,
		},
	}
	rules := &in.Rules
	err := eachEntrySlowly(r.maps["internal_sources"], func(key bpf.FairleadPrefixKey, _ *uint8) {
		if p, ok := decodePrefix(key.Address, key.PrefixBits); ok {
			rules.InternalSources = append(rules.InternalSources, p)
		}
	})
	if err != nil {
		return fmt.Errorf("read map internal_sources: %w", err)
	}
	slices.SortFunc(rules.InternalSources, comparePrefixes)
	if rules.NodeClients, err = r.nodeClients(s.HostNetnsCookie); err != nil {
		return err
	}
	if err := r.inspectDevices(in); err != nil {
		return err
	}
	return r.inspectCgroup(in)
}

// orInvalid: all zero is how the maps say that there is no address.
func orInvalid(a netip.Addr) netip.Addr {
	if a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}

// nodeClients are whom sock_client (bpf/sock.h) takes the node's processes for.
func (r *Reader) nodeClients(cookie uint64) (out [2]string, err error) {
	if cookie == 0 {
		return out, nil
	}
	for i := range out {
		var a bpf.FairleadAddress
		err := r.maps["netns_addresses"].Lookup(bpf.FairleadNetnsKey{Cookie: cookie, Ipv6: uint32(i)}, &a)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			a.Word[0] = binary.NativeEndian.Uint32([]byte{0xff, 0, 0, byte(i)})
			a.Word[2], a.Word[3] = uint32(cookie>>32), uint32(cookie)
		} else if err != nil {
			return out, fmt.Errorf("read map netns_addresses: %w", err)
		}
		out[i] = clientName(a)
	}
	return out, nil
}
