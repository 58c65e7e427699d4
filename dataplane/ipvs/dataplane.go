// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"context"
	"errors"
	"net/netip"
	"sync"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/netfilter"
	"fairlead.dev/dataplane/uplink"
)

// Dataplane implements dataplane.Dataplane with IPVS.
type Dataplane struct {
	options   Options
	table     *table
	kernel    *kernel
	routes    *routes
	conntrack *netfilter.Conntrack
	uplinks   *uplink.Uplinks
	watch     *watch

	stop    context.CancelFunc
	workers sync.WaitGroup

	mu      sync.Mutex // of what follows, and of table, kernel and routes
	synced  bool
	planner *planner
	node    dataplane.Node
	rules   ruleset
	states  map[dataplane.ServiceName]*state
	nodes   elements // that come from the node's facts
	servers map[uint32]*server
	drains  drains
	// leaving are servers that go when their connections have ended, and
	// lingering the addresses that stay for those.
	leaving     map[uint32]bool
	lingering   map[netip.Addr]map[uint32]bool
	sharedUses  map[elementKey]int
	vipUses     map[netip.Addr]int
	timeoutUses map[uint32]int
	drainFailed bool
	expiring    bool // IPVS is to forget flows
}

var (
	_ dataplane.Dataplane = (*Dataplane)(nil)
	_ dataplane.Watcher   = (*Dataplane)(nil)
)

// New opens IPVS, nftables and rtnetlink in the calling thread's network
// namespace, and sets the sysctls that IPVS needs. Until Sync the kernel goes
// on with what it held. Close it to let go of its sockets.
func New(ctx context.Context, o Options) (*Dataplane, error) {
	d := &Dataplane{options: o.withDefaults(), drains: drains{}, leaving: map[uint32]bool{}, lingering: map[netip.Addr]map[uint32]bool{}}
	if err := d.open(ctx); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

func (d *Dataplane) open(ctx context.Context) (err error) {
	o := d.options
	if d.kernel, err = openKernel(o.marks()); err != nil {
		return err
	}
	if d.table, err = openTable(o.AffinityMax); err != nil {
		return err
	}
	if d.routes, err = openRoutes(); err != nil {
		return err
	}
	if d.conntrack, err = netfilter.Open(); err != nil {
		return err
	}
	if d.uplinks, err = uplink.Open(o.Devices, o.Logger); err != nil {
		return err
	}
	if err := d.prepare(); err != nil {
		return err
	}
	if d.watch, err = openWatch(d); err != nil {
		return err
	}
	ctx, d.stop = context.WithCancel(context.WithoutCancel(ctx))
	for _, run := range []func(context.Context){d.uplinks.Run, d.followUplinks, d.runDrains, d.watch.run} {
		d.workers.Go(func() { run(ctx) })
	}
	return nil
}

// prepare makes the table and the device where they are missing, and sets
// sysctls and timeouts.
func (d *Dataplane) prepare() error {
	intact, err := d.table.intact()
	if err != nil {
		return err
	}
	if !intact {
		if err := d.recreate(); err != nil {
			return err
		}
	}
	if _, err := d.routes.device(); err != nil {
		return err
	}
	if _, err := d.applySysctls(); err != nil {
		return err
	}
	return d.applyTimeouts()
}

func (d *Dataplane) recreate() error {
	if err := d.table.create(); err != nil {
		return err
	}
	return d.table.commit()
}

// Name implements dataplane.Dataplane.
func (d *Dataplane) Name() string { return "ipvs" }

// Drifted implements dataplane.Watcher.
func (d *Dataplane) Drifted() <-chan struct{} { return d.watch.drifted }

// Apply implements dataplane.Dataplane.
func (d *Dataplane) Apply(ctx context.Context, c dataplane.Change) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.states == nil {
		return errors.New("ipvs: Apply before Sync")
	}
	if c.Node != nil || !d.synced {
		// What the node is concerns every Service; and where an Apply failed,
		// what the kernel holds has to be looked at.
		t := d.tableNow()
		if c.Node != nil {
			t.Node = *c.Node
		}
		for name, s := range c.Services {
			if s == nil {
				delete(t.Services, name)
			} else {
				t.Services[name] = s
			}
		}
		_, err := d.sync(t)
		return err
	}
	return d.applyServices(c.Services)
}

// tableNow is the Table that was programmed last.
func (d *Dataplane) tableNow() *dataplane.Table {
	t := &dataplane.Table{Node: d.node, Services: make(map[dataplane.ServiceName]*dataplane.Service, len(d.states))}
	for name, st := range d.states {
		t.Services[name] = st.service
	}
	return t
}

// Close implements dataplane.Dataplane: the kernel state stays in force.
func (d *Dataplane) Close() error {
	if d.stop != nil {
		d.stop()
		d.workers.Wait()
	}
	var errs []error
	if d.watch != nil {
		errs = append(errs, d.watch.close())
	}
	if d.uplinks != nil {
		d.uplinks.Close()
	}
	if d.conntrack != nil {
		errs = append(errs, d.conntrack.Close())
	}
	if d.routes != nil {
		d.routes.close()
	}
	if d.table != nil {
		errs = append(errs, d.table.close())
	}
	if d.kernel != nil {
		d.kernel.close()
	}
	d.table, d.kernel, d.routes, d.conntrack, d.uplinks, d.watch, d.stop = nil, nil, nil, nil, nil, nil, nil
	return errors.Join(errs...)
}
