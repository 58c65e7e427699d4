// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"

	"fairlead.dev/bpf"
)

// Names of the maps that are pinned, and so survive the agent. scratch_room is
// not: it holds nothing between two packets.
var pinnedMaps = []string{
	"frontends", "frontend_switches", "slots", "backend_states", "services", "counters", "drops", "conntrack", "affinity",
	"socket_flows", "datagrams", "source_ranges", "internal_sources", "fragments", "netns_addresses", "settings",
	"trace_events", "trace_listener", "trace_counts", "trace_services",
}

// notRead are the maps that no Reader needs: with them a newer Reader would not
// read what an older agent pinned. socket_flows lives with the sockets: there
// is nothing to list.
var notRead = []string{"socket_flows", "frontend_switches", "trace_events", "trace_listener", "trace_counts", "trace_services"}

// sizeMaps writes the configured sizes into the specs.
func sizeMaps(spec *ebpf.CollectionSpec, o Options) {
	for name, n := range map[string]int{
		"frontends": o.FrontendsMax, "slots": o.SlotsMax, "backend_states": o.SlotsMax, "services": o.ServicesMax,
		"counters": o.ServicesMax, "conntrack": o.ConntrackMax, "affinity": o.AffinityMax,
		"datagrams": o.DatagramsMax, "source_ranges": 65536, "internal_sources": 1024,
	} {
		spec.Maps[name].MaxEntries = uint32(n)
	}
}

// openMaps opens what is pinned and creates and pins what is not. A pinned map
// of another size or layout is migrated: its content moves to a new map, which
// takes its place once the new programs are attached (see publish).
func openMaps(spec *ebpf.CollectionSpec, dir string) (maps map[string]*ebpf.Map, moved map[string]*ebpf.Map, err error) {
	maps, moved = map[string]*ebpf.Map{}, map[string]*ebpf.Map{}
	defer func() {
		if err != nil {
			closeMaps(maps)
		}
	}()
	for _, name := range pinnedMaps {
		want := spec.Maps[name]
		path := filepath.Join(dir, "maps", name)
		pinned, err := ebpf.LoadPinnedMap(path, nil)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			pinned = nil
		case err != nil:
			return nil, nil, fmt.Errorf("open pinned map %s: %w", path, err)
		case want.Compatible(pinned) == nil:
			maps[name] = pinned
			continue
		}
		m, err := ebpf.NewMap(want)
		if err != nil {
			return nil, nil, fmt.Errorf("create map %s with %d entries: %w", name, want.MaxEntries, err)
		}
		maps[name] = m
		if pinned == nil {
			if err := m.Pin(path); err != nil {
				return nil, nil, fmt.Errorf("pin map %s: %w (is %s a bpffs?)", path, err, dir)
			}
			continue
		}
		err = migrate(name, pinned, m)
		pinned.Close()
		if err != nil {
			return nil, nil, err
		}
		moved[name] = m
	}
	return maps, moved, nil
}

// migrate copies what another layout or size of a map holds. Where key or
// value have another size the content can't be carried over; the Table is
// programmed anew, and flows begin anew.
func migrate(name string, from, to *ebpf.Map) error {
	if from.Type() != to.Type() || from.KeySize() != to.KeySize() || from.ValueSize() != to.ValueSize() ||
		from.Type() == ebpf.SkStorage {
		return nil
	}
	if from.Type() == ebpf.Array || from.Type() == ebpf.PerCPUArray {
		return migrateArray(name, from, to)
	}
	return copyEntries(name, from, to)
}

func migrateArray(name string, from, to *ebpf.Map) error {
	if to.MaxEntries() < from.MaxEntries() && (name == "slots" || name == "backend_states") {
		return fmt.Errorf("map %s: %d entries are in force and %d are configured; it can grow but not shrink: run `fairlead cleanup` first or raise the size",
			name, from.MaxEntries(), to.MaxEntries())
	}
	return copyEntries(name, from, to)
}

func copyEntries(name string, from, to *ebpf.Map) error {
	key, value := make([]byte, from.KeySize()), make([]byte, from.ValueSize())
	if from.Type() == ebpf.PerCPUArray {
		return nil // counters begin at zero in a map of another size
	}
	it := from.Iterate()
	for it.Next(&key, &value) {
		err := to.Put(key, value)
		if errors.Is(err, ebpf.ErrKeyNotExist) || errors.Is(err, os.ErrInvalid) {
			continue
		}
		if err != nil {
			return fmt.Errorf("migrate map %s to %d entries: %w", name, to.MaxEntries(), err)
		}
	}
	if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return fmt.Errorf("migrate map %s: %w", name, err)
	}
	return nil
}

// publish pins migrated maps in place of the old ones.
func publish(dir string, moved map[string]*ebpf.Map) error {
	for name, m := range moved {
		path := filepath.Join(dir, "maps", name)
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("unpin old map %s: %w", path, err)
		}
		if err := m.Pin(path); err != nil {
			return fmt.Errorf("pin map %s: %w", path, err)
		}
	}
	return nil
}

func closeMaps(maps map[string]*ebpf.Map) {
	for _, m := range maps {
		m.Close()
	}
}

// loadPrograms loads all programs against the given maps. The sweeps are nil
// where the kernel lacks what they call (bpf_sock_destroy, 6.5), and their
// first walk where it refuses that.
func loadPrograms(spec *ebpf.CollectionSpec, maps map[string]*ebpf.Map) (*bpf.FairleadPrograms, error) {
	const sweepFind = "fairlead_sweep_find"
	var find *ebpf.Program
	if haveKfunc("bpf_sock_destroy") != nil {
		delete(spec.Programs, "fairlead_sweep_udp")
		delete(spec.Programs, "fairlead_sweep_tcp")
	} else {
		find = loadAlone(spec, maps, sweepFind)
	}
	delete(spec.Programs, sweepFind)
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: maps})
	if err != nil {
		if find != nil {
			find.Close()
		}
		var ve *ebpf.VerifierError
		if errors.As(err, &ve) {
			return nil, fmt.Errorf("load eBPF programs: the kernel's verifier refuses: %w (run `fairlead check`)", ve)
		}
		return nil, fmt.Errorf("load eBPF programs: %w (run `fairlead check`)", err)
	}
	defer coll.Close()
	return &bpf.FairleadPrograms{
		FairleadConnect4: coll.DetachProgram("fairlead_connect4"), FairleadConnect6: coll.DetachProgram("fairlead_connect6"),
		FairleadSendmsg4: coll.DetachProgram("fairlead_sendmsg4"), FairleadSendmsg6: coll.DetachProgram("fairlead_sendmsg6"),
		FairleadRecvmsg4: coll.DetachProgram("fairlead_recvmsg4"), FairleadRecvmsg6: coll.DetachProgram("fairlead_recvmsg6"),
		FairleadGetpeername4: coll.DetachProgram("fairlead_getpeername4"), FairleadGetpeername6: coll.DetachProgram("fairlead_getpeername6"),
		FairleadFromUplink: coll.DetachProgram("fairlead_from_uplink"), FairleadFromPod: coll.DetachProgram("fairlead_from_pod"),
		FairleadFromHost: coll.DetachProgram("fairlead_from_host"), FairleadAge: coll.DetachProgram("fairlead_age"),
		FairleadSweepUdp: coll.DetachProgram("fairlead_sweep_udp"), FairleadSweepTcp: coll.DetachProgram("fairlead_sweep_tcp"),
		FairleadSweepFind: find,
	}, nil
}

// loadAlone loads a program that may be missing: nil where the kernel refuses.
func loadAlone(spec *ebpf.CollectionSpec, maps map[string]*ebpf.Map, name string) *ebpf.Program {
	one := spec.Copy()
	one.Programs = map[string]*ebpf.ProgramSpec{name: one.Programs[name]}
	coll, err := ebpf.NewCollectionWithOptions(one, ebpf.CollectionOptions{MapReplacements: maps})
	if err != nil {
		return nil
	}
	defer coll.Close()
	return coll.DetachProgram(name)
}
