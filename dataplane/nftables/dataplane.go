// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/netfilter"
	"fairlead.dev/dataplane/uplink"
)

// Dataplane implements dataplane.Dataplane with nf_tables.
type Dataplane struct {
	options Options

	mu        sync.Mutex // of all below: the uplinks change by themselves
	kernel    *socket
	shadow    *shadow
	node      dataplane.Node
	synced    bool
	dirty     bool // the kernel may hold something else than the shadow says
	conntrack *netfilter.Conntrack
	reader    *Reader // for metrics, which are asked for at any time
	watch     *watch
	uplinks   *uplink.Uplinks
	guarding  *guardState // nil: not known yet
	// uplinkNames are those in the kernel.
	uplinkNames []string

	stop    context.CancelFunc
	workers sync.WaitGroup
}

var (
	_ dataplane.Dataplane = (*Dataplane)(nil)
	_ dataplane.Watcher   = (*Dataplane)(nil)
)

// New opens what it needs to talk to the kernel of the calling thread's network
// namespace. Until Sync the kernel goes on with what it held. Close it to let go
// of its sockets.
func New(ctx context.Context, o Options) (*Dataplane, error) {
	d := &Dataplane{options: o.withDefaults()}
	if err := d.open(ctx); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

func (d *Dataplane) open(ctx context.Context) (err error) {
	if d.kernel, err = openSocket(); err != nil {
		return err
	}
	if d.conntrack, err = netfilter.Open(); err != nil {
		return err
	}
	d.reader = &Reader{conntrack: d.conntrack}
	if d.reader.kernel, err = openSocket(); err != nil {
		return err
	}
	if d.uplinks, err = uplink.Open(d.options.Devices, d.options.Logger); err != nil {
		return err
	}
	if d.watch, err = openWatch(d.kernel.port); err != nil {
		return err
	}
	ctx, d.stop = context.WithCancel(context.WithoutCancel(ctx))
	d.workers.Go(d.watch.run)
	d.workers.Go(func() { d.uplinks.Watch(ctx, d.followUplinks) })
	return nil
}

// Name implements dataplane.Dataplane.
func (d *Dataplane) Name() string { return "nftables" }

// Drifted implements dataplane.Watcher.
func (d *Dataplane) Drifted() <-chan struct{} { return d.watch.drifted }

// Sync implements dataplane.Dataplane.
func (d *Dataplane) Sync(ctx context.Context, t *dataplane.Table) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.sync(ctx, t)
}

// Apply implements dataplane.Dataplane.
func (d *Dataplane) Apply(ctx context.Context, c dataplane.Change) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.shadow == nil {
		return errors.New("nftables: Apply before Sync")
	}
	if d.dirty {
		_, err := d.sync(ctx, d.tableWith(c))
		return err
	}
	failed := map[dataplane.ServiceName]error{}
	if err := d.apply(c, failed); err != nil {
		d.dirty = true // what the transaction was to change is not known any more
		return err
	}
	return applyError(failed)
}

// tableWith is what the Dataplane was last asked for, with a Change.
func (d *Dataplane) tableWith(c dataplane.Change) *dataplane.Table {
	t := &dataplane.Table{Services: map[dataplane.ServiceName]*dataplane.Service{}, Node: d.node}
	for name, s := range d.shadow.services {
		t.Services[name] = s.spec
	}
	maps.Copy(t.Services, c.Services)
	maps.DeleteFunc(t.Services, func(_ dataplane.ServiceName, s *dataplane.Service) bool { return s == nil })
	if c.Node != nil {
		t.Node = *c.Node
	}
	return t
}

func applyError(failed map[dataplane.ServiceName]error) error {
	if len(failed) == 0 {
		return nil
	}
	return &dataplane.ApplyError{Failed: failed}
}

func (d *Dataplane) apply(c dataplane.Change, failed map[dataplane.ServiceName]error) error {
	t := &transaction{}
	var stale []netfilter.FlowRule
	states := make(map[dataplane.ServiceName]*serviceState, len(c.Services))
	for name, s := range c.Services {
		old := d.shadow.services[name]
		if s != nil {
			if err := valid(s); err != nil {
				failed[name] = err
				continue
			}
		}
		if old == nil && s == nil {
			continue
		}
		states[name], _ = d.shadow.plan(t, old, s)
		stale = append(stale, netfilter.StaleRules(specOf(old), s)...)
	}
	if err := d.prepare(); err != nil {
		return err
	}
	if err := d.guardLoopback(d.shadow); err != nil {
		return err
	}
	err := d.commit(func(m *messages) error {
		t.write(m)
		return d.writeNode(m, c.Node)
	})
	if err != nil {
		return err
	}
	for name, state := range states {
		d.shadow.set(name, state)
	}
	if c.Node != nil {
		d.node = *c.Node
		d.uplinks.SetPrimary(primaries(d.node))
	}
	return d.endStale(stale)
}

func specOf(s *serviceState) *dataplane.Service {
	if s == nil {
		return nil
	}
	return s.spec
}

func (sh *shadow) set(name dataplane.ServiceName, s *serviceState) {
	if s == nil {
		delete(sh.services, name)
	} else {
		sh.services[name] = s
	}
}

// endStale ends the flows that the Change left without a Backend. Its failure
// is reported, but what was programmed is in force.
func (d *Dataplane) endStale(rules []netfilter.FlowRule) error {
	if len(rules) == 0 {
		return nil
	}
	if _, err := d.conntrack.EndStale(rules); err != nil {
		return fmt.Errorf("end flows to removed Backends: %w", err)
	}
	return nil
}

// prepare makes the chains that the next transaction needs.
func (d *Dataplane) prepare() error {
	return d.commit(func(m *messages) error {
		for _, a := range d.shadow.actions {
			if err := a.make(m); err != nil {
				return err
			}
		}
		return nil
	})
}

// commit commits what fill writes, if anything.
func (d *Dataplane) commit(fill func(*messages) error) error {
	m := newBatch()
	if err := fill(m); err != nil {
		return err
	}
	return d.watch.own(d.kernel, m)
}

// writeNode appends what a change of the node's facts changes.
func (d *Dataplane) writeNode(m *messages, n *dataplane.Node) error {
	if n == nil {
		return nil
	}
	for _, f := range families {
		if f.sameChains(d.node, *n) {
			continue
		}
		for _, c := range append(f.choice(*n), f.masquerading(*n)...) {
			if c.name != chainScope && c.name != chainMasquerade {
				continue
			}
			if err := c.put(m, f); err != nil {
				return err
			}
		}
	}
	return nil
}

// followUplinks puts the names of the uplinks into the kernel.
func (d *Dataplane) followUplinks() {
	d.mu.Lock()
	defer d.mu.Unlock()
	names := d.uplinks.Names()
	if d.shadow == nil || d.dirty || slices.Equal(names, d.uplinkNames) {
		return // before the first Sync, and after a failure, the next one does it
	}
	t := &transaction{}
	for _, f := range families {
		for _, name := range d.uplinkNames {
			if !slices.Contains(names, name) {
				t.remove(f, setUplinks, &element{key: deviceName(name)})
			}
		}
		for _, name := range names {
			if !slices.Contains(d.uplinkNames, name) {
				t.add(f, setUplinks, &element{key: deviceName(name)})
			}
		}
	}
	err := d.commit(func(m *messages) error {
		t.write(m)
		return nil
	})
	if err != nil {
		d.dirty = true
		d.watch.signal()
		d.options.Logger.Warn("program the devices that lead out", "error", err)
		return
	}
	d.uplinkNames = names
}

// Close implements dataplane.Dataplane: the kernel state stays in force.
func (d *Dataplane) Close() error {
	if d.stop != nil {
		d.stop()
	}
	var errs []error
	if d.watch != nil {
		errs = append(errs, d.watch.close())
	}
	d.workers.Wait()
	if d.uplinks != nil {
		d.uplinks.Close()
	}
	if d.conntrack != nil {
		errs = append(errs, d.conntrack.Close())
	}
	if d.reader != nil && d.reader.kernel != nil {
		errs = append(errs, d.reader.kernel.close())
	}
	if d.kernel != nil {
		errs = append(errs, d.kernel.close())
	}
	d.reader, d.uplinks, d.conntrack, d.kernel = nil, nil, nil, nil
	return errors.Join(errs...)
}
