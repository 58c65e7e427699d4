// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"fairlead.dev/bpf"
	"fairlead.dev/dataplane"
)

// Reader reads the pinned maps of an agent, which may be dead.
type Reader struct {
	maps   map[string]*ebpf.Map
	pinDir string
}

var _ dataplane.Reader = (*Reader)(nil)

// Read opens what an agent pinned below bpffs, and only reads it.
func Read(bpffs string) (*Reader, error) {
	o := Options{BPFFS: bpffs}.withDefaults()
	r := &Reader{maps: map[string]*ebpf.Map{}, pinDir: o.pinDir()}
	for _, name := range pinnedMaps {
		if slices.Contains(notRead, name) {
			continue
		}
		path := filepath.Join(o.pinDir(), "maps", name)
		// The kernel refuses to map memory of a map that was opened read-only.
		m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: name != "slots"})
		if errors.Is(err, fs.ErrNotExist) {
			r.Close()
			return nil, fmt.Errorf("nothing of fairlead is pinned in %s: start `fairlead run` or give the agent's --bpffs", o.pinDir())
		}
		if err != nil {
			r.Close()
			return nil, fmt.Errorf("open pinned map %s: %w", path, err)
		}
		r.maps[name] = m
	}
	return r, nil
}

// Close closes the maps.
func (r *Reader) Close() error {
	closeMaps(r.maps)
	return nil
}

func (r *Reader) names() (map[uint32]portID, error) { return readNames(r.maps["services"]) }

func readNames(services *ebpf.Map) (map[uint32]portID, error) {
	names := map[uint32]portID{}
	err := eachEntry(services, func(id uint32, n *bpf.FairleadServiceNames) { names[id] = decodeNames(n) })
	if err != nil {
		return nil, fmt.Errorf("read map services: %w", err)
	}
	return names, nil
}

// Table reads the rule table. An agent may be changing it meanwhile: what a
// Frontend points to is read after it, so that each row is of before or after
// the change (freed slots are not written to for a while, see quarantine).
func (r *Reader) Table() (dataplane.Dump, error) {
	d := dataplane.Dump{Dataplane: "ebpf", Frontends: []dataplane.Row{}}
	var frontends []frontendState
	err := eachEntry(r.maps["frontends"], func(key bpf.FairleadFrontendKey, v *bpf.FairleadFrontend) {
		if v.Flags&frontendAnyPort == 0 {
			frontends = append(frontends, frontendState{key, *v})
		}
	})
	if err != nil {
		return d, fmt.Errorf("read map frontends: %w", err)
	}
	names, err := r.names()
	if err != nil {
		return d, err
	}
	memory, err := mapArray(r.maps["slots"], unix.PROT_READ)
	if err != nil {
		return d, err
	}
	defer unix.Munmap(memory)
	slots := sliceOf[bpf.FairleadSlot](memory, int(r.maps["slots"].MaxEntries()))
	for _, f := range frontends {
		if !r.named(names, &f) {
			continue
		}
		name := names[f.value.Service]
		d.Frontends = append(d.Frontends, row(f.key, &f.value, name, f.value.Internal, dataplane.Internal, slots))
		if dataplane.Kind(f.value.Kind) != dataplane.ClusterIP {
			d.Frontends = append(d.Frontends, row(f.key, &f.value, name, f.value.External, dataplane.External, slots))
		}
	}
	dataplane.SortRows(d.Frontends)
	return d, nil
}

// named makes sure that names has a Frontend's Service, and reports whether the
// Frontend is there. A name is removed after its Frontends are: one that is
// missing means that the Frontend is gone, or another's by now. A Frontend that
// stays without one is drift, and shown.
func (r *Reader) named(names map[uint32]portID, f *frontendState) bool {
	for range 8 {
		if _, ok := names[f.value.Service]; ok {
			return true
		}
		var now bpf.FairleadFrontend
		if err := r.maps["frontends"].Lookup(&f.key, &now); err != nil {
			return false
		}
		if now == f.value {
			return true
		}
		f.value = now
		var n bpf.FairleadServiceNames
		if err := r.maps["services"].Lookup(now.Service, &n); err == nil {
			names[now.Service] = decodeNames(&n)
		}
	}
	return false
}

func row(key bpf.FairleadFrontendKey, v *bpf.FairleadFrontend, name portID, set bpf.FairleadBackendSet, scope dataplane.Scope, slots []bpf.FairleadSlot) dataplane.Row {
	k := decodeKey(key)
	out := dataplane.Row{
		Service: name.service.String(), PortName: name.portName, Kind: dataplane.Kind(v.Kind).String(),
		Address: k.Address, Port: k.Port, Protocol: k.Protocol.String(), Scope: scope.String(),
		SessionAffinitySeconds: v.AffinitySeconds, Backends: make([]dataplane.BackendRow, 0, set.Total),
	}
	first, last := uint64(set.Base), uint64(set.Base)+uint64(set.Total)
	if last > uint64(len(slots)) {
		return out
	}
	for _, s := range slots[first:last] {
		if s.Flags&slotDraining != 0 {
			continue
		}
		b := decodeSlot(s)
		out.Backends = append(out.Backends, dataplane.BackendRow{Address: b.Address, Port: b.Port, State: b.State.String(), Local: b.Local})
	}
	return out
}

// Conntrack lists the flows of the packet path, one row each.
func (r *Reader) Conntrack() ([]dataplane.ConntrackRow, error) {
	names, err := r.names()
	if err != nil {
		return nil, err
	}
	states := make([]bpf.FairleadBackendState, r.maps["backend_states"].MaxEntries())
	err = eachEntry(r.maps["backend_states"], func(i uint32, s *bpf.FairleadBackendState) { states[i] = *s })
	if err != nil {
		return nil, fmt.Errorf("read map backend_states: %w", err)
	}
	rows, err := r.flows(func(*bpf.FairleadTuple) bool { return true }, func(e *bpf.FairleadConntrackEntry) (portID, bpf.FairleadBackendState) {
		var state bpf.FairleadBackendState
		if int(e.Backend) < len(states) {
			state = states[e.Backend]
		}
		return names[e.Service], state
	})
	slices.SortFunc(rows, func(a, b dataplane.ConntrackRow) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.PortName, b.PortName), a.Client.Compare(b.Client), a.Frontend.Compare(b.Frontend))
	})
	return rows, err
}

// Flows implements dataplane.Inspector.
func (r *Reader) Flows(to dataplane.FrontendKey) ([]dataplane.ConntrackRow, error) {
	address, port, protocol := encodeAddress(to.Address), swap16(to.Port), uint8(to.Protocol)
	rows, err := r.flows(func(key *bpf.FairleadTuple) bool {
		return key.Destination == address && key.DestinationPort == port && key.Protocol == protocol
	}, func(e *bpf.FairleadConntrackEntry) (id portID, state bpf.FairleadBackendState) {
		var names bpf.FairleadServiceNames
		if err := r.maps["services"].Lookup(e.Service, &names); err == nil {
			id = decodeNames(&names)
		}
		if err := r.maps["backend_states"].Lookup(e.Backend, &state); err != nil {
			state = bpf.FairleadBackendState{}
		}
		return id, state
	})
	slices.SortFunc(rows, func(a, b dataplane.ConntrackRow) int { return a.Client.Compare(b.Client) })
	return rows, err
}

// flows lists those wanted; about tells whose one is and what its Backend is now.
func (r *Reader) flows(wanted func(*bpf.FairleadTuple) bool, about func(*bpf.FairleadConntrackEntry) (portID, bpf.FairleadBackendState)) ([]dataplane.ConntrackRow, error) {
	rows := []dataplane.ConntrackRow{}
	now := monotonicSeconds()
	err := eachEntry(r.maps["conntrack"], func(key bpf.FairleadTuple, e *bpf.FairleadConntrackEntry) {
		if e.Flags&conntrackReply != 0 || e.Service == noNumber || !wanted(&key) {
			return
		}
		name, state := about(e)
		row := dataplane.ConntrackRow{
			Service: name.service.String(), PortName: name.portName, Protocol: dataplane.Protocol(key.Protocol).String(),
			Client: addrPort(key.Source, key.SourcePort), Frontend: addrPort(key.Destination, key.DestinationPort),
			Backend: addrPort(e.Destination, e.DestinationPort), Scope: dataplane.External.String(),
			State: flowState(e, state), IdleSeconds: now - e.LastSeenSeconds, AgeSeconds: now - e.CreatedSeconds,
		}
		if e.Flags&conntrackInternal != 0 {
			row.Scope = dataplane.Internal.String()
		}
		if e.Flags&conntrackMasquerade != 0 || e.SourcePort != key.SourcePort {
			row.Masquerade = addrPort(e.Source, e.SourcePort).String()
		}
		rows = append(rows, row)
	})
	if err != nil {
		return nil, fmt.Errorf("read map conntrack: %w", err)
	}
	return rows, nil
}

func flowState(e *bpf.FairleadConntrackEntry, backend bpf.FairleadBackendState) string {
	switch {
	case backend.Generation != e.Generation || e.Generation&1 == 0:
		return "stale"
	case e.Flags&(conntrackClosing|conntrackPeerClosing) != 0:
		return "closing"
	case e.Flags&conntrackSeenReply != 0:
		return "established"
	}
	return "new"
}

func addrPort(a bpf.FairleadAddress, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(decodeAddress(a), swap16(port))
}

// Affinity lists the clients that are kept on a Backend.
func (r *Reader) Affinity() ([]dataplane.AffinityRow, error) {
	names, err := r.names()
	if err != nil {
		return nil, err
	}
	rows := []dataplane.AffinityRow{}
	now := monotonicSeconds()
	err = eachEntry(r.maps["affinity"], func(key bpf.FairleadAffinityKey, e *bpf.FairleadAffinityEntry) {
		name, ok := names[key.Service]
		if !ok {
			return // the Service is gone, the entry will be evicted
		}
		// A Backend of before, or a Service's that had the number before.
		var state bpf.FairleadBackendState
		if err := r.maps["backend_states"].Lookup(e.Backend, &state); err != nil || state.Generation != e.Generation || e.Generation&1 == 0 {
			return
		}
		rows = append(rows, dataplane.AffinityRow{
			Service: name.service.String(), PortName: name.portName, Client: clientName(key.Client),
			Backend: addrPort(e.BackendAddress, e.BackendPort), IdleSeconds: now - e.LastSeenSeconds,
		})
	})
	if err != nil {
		return nil, fmt.Errorf("read map affinity: %w", err)
	}
	slices.SortFunc(rows, func(a, b dataplane.AffinityRow) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.PortName, b.PortName), cmp.Compare(a.Client, b.Client))
	})
	return rows, nil
}

// clientName undoes sock_client in bpf/sock.h.
func clientName(a bpf.FairleadAddress) string {
	addr := decodeAddress(a)
	if b := addr.As16(); addr.Is6() && b[0] == 0xff {
		return "netns:" + strconv.FormatUint(uint64(a.Word[2])<<32|uint64(a.Word[3]), 10)
	}
	return addr.String()
}

// Counters sums the counters over the CPUs.
func (r *Reader) Counters() ([]dataplane.CounterRow, []dataplane.DropRow, error) {
	names, err := r.names()
	if err != nil {
		return nil, nil, err
	}
	rows := make([]dataplane.CounterRow, 0, len(names))
	for id, name := range names {
		c, err := readCounters(r.maps["counters"], id)
		if err != nil {
			return nil, nil, err
		}
		rows = append(rows, dataplane.CounterRow{
			Service: name.service.String(), PortName: name.portName, Connections: c.Connections,
			ForwardPackets: c.ForwardPackets, ForwardBytes: c.ForwardBytes,
			ReversePackets: c.ReversePackets, ReverseBytes: c.ReverseBytes,
		})
	}
	slices.SortFunc(rows, func(a, b dataplane.CounterRow) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.PortName, b.PortName))
	})
	drops := make([]dataplane.DropRow, len(dropReasons))
	for i, reason := range dropReasons {
		n, err := readDrops(r.maps["drops"], uint32(i))
		if err != nil {
			return nil, nil, err
		}
		drops[i] = dataplane.DropRow{Reason: reason, Count: n}
	}
	return rows, drops, nil
}

func readCounters(m *ebpf.Map, id uint32) (sum bpf.FairleadServiceCounters, err error) {
	var per []bpf.FairleadServiceCounters
	if err := m.Lookup(id, &per); err != nil {
		return sum, fmt.Errorf("read counters of Service port %d: %w", id, err)
	}
	for _, c := range per {
		sum.Connections += c.Connections
		sum.ForwardPackets += c.ForwardPackets
		sum.ForwardBytes += c.ForwardBytes
		sum.ReversePackets += c.ReversePackets
		sum.ReverseBytes += c.ReverseBytes
	}
	return sum, nil
}

func readDrops(m *ebpf.Map, reason uint32) (sum uint64, err error) {
	var per []uint64
	if err := m.Lookup(reason, &per); err != nil {
		return 0, fmt.Errorf("read drop counters: %w", err)
	}
	for _, n := range per {
		sum += n
	}
	return sum, nil
}
