// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"fairlead.dev/bpf"
	"fairlead.dev/dataplane"
)

// Dataplane implements dataplane.Dataplane with eBPF.
type Dataplane struct {
	options  Options
	maps     map[string]*ebpf.Map
	programs *bpf.FairleadPrograms
	slots    []bpf.FairleadSlot         // the mapped slots map
	states   []bpf.FairleadBackendState // the mapped backend_states map
	switches *uint32                    // the mapped frontend_switches map
	mapped   [][]byte
	cpus     int

	shadow      *shadow
	dirty       bool          // the shadow may be wrong: the next Apply has to Sync
	sweepWanted sweeps        // removed Backends had sockets
	sweepDoubt  sweeps        // others were removed, which a socket may just have been choosing
	slotsUsed   atomic.Uint32 // for metrics, which read at any time
	slotBuffer  []bpf.FairleadSlot

	devices *devices
	sweeper *sweeper
	stop    context.CancelFunc
	workers sync.WaitGroup
}

var _ dataplane.Dataplane = (*Dataplane)(nil)

// New loads the programs, adopts or creates the pinned maps, and attaches or
// atomically replaces the programs. Until Sync the kernel goes on with what it
// held. Close it to let go of its file descriptors.
func New(ctx context.Context, o Options) (*Dataplane, error) {
	d := &Dataplane{options: o.withDefaults()}
	if err := d.open(ctx); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

func (d *Dataplane) open(ctx context.Context) (err error) {
	o := d.options
	if err := rlimit.RemoveMemlock(); err != nil { // only matters before 5.11
		return fmt.Errorf("raise the memlock limit: %w", err)
	}
	if d.cpus, err = ebpf.PossibleCPU(); err != nil {
		return err
	}
	if err := prepareBPFFS(o); err != nil {
		return err
	}
	spec, err := bpf.LoadFairlead()
	if err != nil {
		return err
	}
	sizeMaps(spec, o)
	var moved map[string]*ebpf.Map
	if d.maps, moved, err = openMaps(spec, o.pinDir()); err != nil {
		return err
	}
	if err := spec.Variables["draining"].Set(o.Draining); err != nil {
		return fmt.Errorf("set draining: %w", err)
	}
	if err := o.Timeouts.tell(spec); err != nil {
		return err
	}
	if d.programs, err = loadPrograms(spec, d.maps); err != nil {
		return err
	}
	if err := d.mapMemory(); err != nil {
		return err
	}
	if err := d.initSettings(); err != nil {
		return err
	}
	if err := publish(o.pinDir(), moved); err != nil {
		return err
	}
	if err := attachSocketHooks(o, d.programs); err != nil {
		return err
	}
	return d.start(ctx)
}

// start attaches the packet path and runs what goes on beside Apply.
func (d *Dataplane) start(ctx context.Context) error {
	ctx, d.stop = context.WithCancel(context.WithoutCancel(ctx))
	var err error
	if d.devices, err = newDevices(d.options, d.programs); err != nil {
		return err
	}
	if d.sweeper, err = newSweeper(d.programs, d.maps, d.options.Logger); err != nil {
		return err
	}
	ager := newAger(d.maps["conntrack"], d.programs.FairleadAge, d.options.Timeouts, d.options.Logger)
	for _, run := range []func(context.Context){d.devices.run, d.sweeper.run, ager.run} {
		d.workers.Go(func() { run(ctx) })
	}
	return nil
}

func prepareBPFFS(o Options) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(o.BPFFS, &fs); err != nil {
		return fmt.Errorf("bpffs %s: %w: mount one with `mount -t bpf bpf %s` or give --bpffs", o.BPFFS, err, o.BPFFS)
	}
	if fs.Type != unix.BPF_FS_MAGIC {
		return fmt.Errorf("%s is not a bpffs: mount one with `mount -t bpf bpf %s` or give --bpffs", o.BPFFS, o.BPFFS)
	}
	for _, sub := range []string{"maps", "links"} {
		if err := os.MkdirAll(filepath.Join(o.pinDir(), sub), 0o700); err != nil {
			return fmt.Errorf("make pin directory: %w", err)
		}
	}
	return nil
}

func (d *Dataplane) mapMemory() error {
	for _, m := range []struct {
		name string
		use  func(mem []byte)
	}{
		{"slots", func(mem []byte) { d.slots = sliceOf[bpf.FairleadSlot](mem, d.options.SlotsMax) }},
		{"backend_states", func(mem []byte) { d.states = sliceOf[bpf.FairleadBackendState](mem, d.options.SlotsMax) }},
		{"frontend_switches", func(mem []byte) { d.switches = &sliceOf[uint32](mem, 1)[0] }},
	} {
		mem, err := mapArray(d.maps[m.name], unix.PROT_READ|unix.PROT_WRITE)
		if err != nil {
			return err
		}
		d.mapped = append(d.mapped, mem)
		m.use(mem)
	}
	return nil
}

// mapArray maps an array map into memory, with PROT_ flags.
func mapArray(m *ebpf.Map, protection int) ([]byte, error) {
	page := os.Getpagesize()
	size := (int(m.ValueSize())*int(m.MaxEntries()) + page - 1) / page * page
	mem, err := unix.Mmap(m.FD(), 0, size, protection, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s into memory: %w", m, err)
	}
	return mem, nil
}

// Name implements dataplane.Dataplane.
func (d *Dataplane) Name() string { return "ebpf" }

// Sync implements dataplane.Dataplane.
func (d *Dataplane) Sync(ctx context.Context, t *dataplane.Table) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if err := d.applyNode(t.Node); err != nil {
		return 0, err
	}
	strays, err := d.adopt()
	if err != nil {
		return 0, err
	}
	d.dirty = false
	c := dataplane.Change{Services: maps.Clone(t.Services)}
	if c.Services == nil {
		c.Services = map[dataplane.ServiceName]*dataplane.Service{}
	}
	for name := range d.shadow.services {
		if _, ok := t.Services[name]; !ok {
			c.Services[name] = nil
		}
	}
	changed, err := d.apply(c)
	defer d.switching()()
	for _, key := range strays {
		if e := d.maps["frontends"].Delete(key); e == nil {
			changed++
		}
	}
	return changed, err
}

// Apply implements dataplane.Dataplane.
func (d *Dataplane) Apply(ctx context.Context, c dataplane.Change) error {
	if d.shadow == nil {
		return errors.New("ebpf: Apply before Sync")
	}
	if c.Node != nil {
		if err := d.applyNode(*c.Node); err != nil {
			return err
		}
	}
	if d.dirty {
		if _, err := d.adopt(); err != nil {
			return err
		}
		d.dirty = false
	}
	_, err := d.apply(c)
	return err
}

func (d *Dataplane) apply(c dataplane.Change) (changed int, err error) {
	failed := map[dataplane.ServiceName]error{}
	var plans []*plan
	room := d.options.FrontendsMax - d.shadow.frontends
	// Removals first: what they free may be what the others need.
	for name, s := range c.Services {
		if s == nil {
			for _, p := range d.shadow.services[name] {
				plans = append(plans, planRemoval(p))
				room += len(p.frontends)
			}
		}
	}
	for name, s := range c.Services {
		if s == nil {
			continue
		}
		ps, grows, err := d.planService(s, room)
		if err != nil {
			failed[name] = err
			continue
		}
		room -= grows
		plans = append(plans, ps...)
	}
	for _, p := range plans {
		changed += len(p.puts) + len(p.deletes)
	}
	err = d.write(plans)
	var ae *dataplane.ApplyError
	if errors.As(err, &ae) {
		maps.Copy(failed, ae.Failed)
	} else if err != nil {
		return changed, err
	}
	d.shadow.ranges.release(d.shadow.ranges.now().Add(-quarantine))
	d.slotsUsed.Store(d.shadow.ranges.used)
	d.sweeper.soon(d.sweepWanted)
	d.sweeper.later(d.sweepDoubt &^ d.sweepWanted)
	d.sweepWanted, d.sweepDoubt = 0, 0
	if len(failed) > 0 {
		return changed, &dataplane.ApplyError{Failed: failed}
	}
	return changed, nil
}

// planService plans every port of a Service, or none. grows is how many more
// entries the frontends map will hold.
func (d *Dataplane) planService(s *dataplane.Service, room int) (plans []*plan, grows int, err error) {
	groups, anyPort := groupByPort(s)
	for _, g := range groups {
		p, err := d.planPort(portID{s.Name, g.name}, g.frontends, anyPort[g.name])
		if err != nil {
			for _, q := range plans {
				d.abandon(q)
			}
			return nil, 0, err
		}
		plans = append(plans, p)
		grows += len(p.new.frontends)
		if p.old != nil {
			grows -= len(p.old.frontends)
		}
	}
	if grows > room {
		for _, q := range plans {
			d.abandon(q)
		}
		return nil, 0, fmt.Errorf("map frontends is full (%d entries, %d more wanted): raise --frontends-max", d.options.FrontendsMax, grows)
	}
	for _, old := range d.shadow.services[s.Name] {
		if !slices.ContainsFunc(groups, func(g portGroup) bool { return g.name == old.portName }) {
			plans = append(plans, planRemoval(old))
		}
	}
	return plans, grows, nil
}

type portGroup struct {
	name      string
	frontends []*dataplane.Frontend
}

// groupByPort splits a Service by port name, and says which port's entries
// include the one that claims all other ports of a ClusterIP: the first port
// that is there.
func groupByPort(s *dataplane.Service) (groups []portGroup, anyPort map[string][]bpf.FairleadFrontendKey) {
	anyPort = map[string][]bpf.FairleadFrontendKey{}
	var claimed []bpf.FairleadAddress
	for i := range s.Frontends {
		f := &s.Frontends[i]
		k := slices.IndexFunc(groups, func(g portGroup) bool { return g.name == f.PortName })
		if k < 0 {
			k = len(groups)
			groups = append(groups, portGroup{name: f.PortName})
		}
		groups[k].frontends = append(groups[k].frontends, f)
		if f.Kind != dataplane.ClusterIP {
			continue
		}
		if a := encodeAddress(f.Address); !slices.Contains(claimed, a) {
			claimed = append(claimed, a)
			anyPort[f.PortName] = append(anyPort[f.PortName], bpf.FairleadFrontendKey{Address: a})
		}
	}
	return groups, anyPort
}

// Close implements dataplane.Dataplane: the kernel state stays in force.
func (d *Dataplane) Close() error {
	if d.stop != nil {
		d.stop()
		d.workers.Wait()
	}
	if d.sweeper != nil {
		d.sweeper.close()
	}
	if d.devices != nil {
		d.devices.close()
	}
	for _, m := range d.mapped {
		unix.Munmap(m)
	}
	d.mapped, d.slots, d.states = nil, nil, nil
	if d.programs != nil {
		d.programs.Close()
	}
	closeMaps(d.maps)
	d.maps = nil
	return nil
}
