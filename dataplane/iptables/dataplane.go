// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/vishvananda/netns"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/netfilter"
)

// Dataplane implements dataplane.Dataplane with iptables. Its commands run in
// the network namespace of the thread that calls Sync and Apply.
type Dataplane struct {
	options   Options
	flavour   Flavour
	namespace netns.NsHandle // where New was called, for Collector
	families  []*family
	uplinks   uplinks
	conntrack *netfilter.Conntrack
	watch     *watch
	node      dataplane.Node
	synced    bool
	// broken: the kernel may not hold what the families think.
	broken bool
	stop   context.CancelFunc
	worker sync.WaitGroup
}

var (
	_ dataplane.Dataplane = (*Dataplane)(nil)
	_ dataplane.Watcher   = (*Dataplane)(nil)
)

// New finds the commands and opens what watches the kernel, in the calling
// thread's network namespace. It changes no rule: until Sync the kernel goes on
// with what it held.
func New(ctx context.Context, o Options) (*Dataplane, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, err
	}
	d := &Dataplane{options: o, namespace: netns.None()}
	if err := d.open(ctx); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

func (d *Dataplane) open(ctx context.Context) (err error) {
	if d.namespace, err = netns.Get(); err != nil {
		return fmt.Errorf("open the network namespace: %w", err)
	}
	if d.flavour = d.options.Flavour; d.flavour == Auto {
		if d.flavour, err = detect(); err != nil {
			return err
		}
	}
	forgetful := probe(d.flavour, false, recentFeature) != nil
	for _, v6 := range []bool{false, true} {
		t, err := newTool(d.flavour, v6)
		if err == nil {
			_, err = t.save(ctx)
		}
		if err != nil && v6 {
			d.options.Logger.Warn("IPv6 Services are not served: no ip6tables", "error", err)
			continue
		}
		if err != nil {
			return err
		}
		f := newFamily(t, d.options)
		f.forgetful = forgetful
		d.families = append(d.families, f)
	}
	if d.conntrack, err = netfilter.Open(); err != nil {
		return err
	}
	if d.watch, err = newWatch(d.flavour, len(d.families) > 1); err != nil {
		return err
	}
	ctx, d.stop = context.WithCancel(context.WithoutCancel(ctx))
	if err := d.openUplinks(ctx); err != nil {
		return err
	}
	d.worker.Go(func() { d.watch.run(ctx) })
	return nil
}

// Name implements dataplane.Dataplane.
func (d *Dataplane) Name() string { return "iptables" }

// Flavour is the one in use.
func (d *Dataplane) Flavour() Flavour { return d.flavour }

// Drifted implements dataplane.Watcher. A device that became an uplink, or no
// longer is one, signals it too. In the legacy flavour so does any change that
// others make to a table that we use.
func (d *Dataplane) Drifted() <-chan struct{} { return d.watch.drifted }

// Sync implements dataplane.Dataplane.
func (d *Dataplane) Sync(ctx context.Context, t *dataplane.Table) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	first := !d.synced
	d.watch.begin()
	changed, failed, err := d.sync(ctx, t)
	d.watch.end(d.commits())
	if err != nil {
		d.broken = true
		return changed, err
	}
	d.synced, d.broken = true, false
	if first || changed > 0 {
		if err := d.endStale(netfilter.AllRules(t)); err != nil {
			return changed, err
		}
	}
	return changed, applyError(failed)
}

func (d *Dataplane) sync(ctx context.Context, t *dataplane.Table) (changed int, failed map[dataplane.ServiceName]error, err error) {
	d.node = t.Node
	d.setUplinks(t.Node)
	failed = map[dataplane.ServiceName]error{}
	touched := frontendSet{}
	structure := 0
	for _, f := range d.families {
		n, err := f.sync(ctx, t, failed, touched)
		if err != nil {
			return len(touched), failed, err
		}
		structure += n
	}
	if changed = len(touched); changed == 0 && structure > 0 {
		changed = 1
	}
	return changed, failed, nil
}

// commits takes the number of transactions since it was last asked.
func (d *Dataplane) commits() (n int) {
	for _, f := range d.families {
		n += f.commits
		f.commits = 0
	}
	return n
}

func applyError(failed map[dataplane.ServiceName]error) error {
	if len(failed) == 0 {
		return nil
	}
	return &dataplane.ApplyError{Failed: failed}
}

// Apply implements dataplane.Dataplane.
func (d *Dataplane) Apply(ctx context.Context, c dataplane.Change) error {
	if !d.synced {
		return errors.New("iptables: Apply before Sync")
	}
	failed := map[dataplane.ServiceName]error{}
	d.watch.begin()
	old, err := d.repairAndApply(ctx, c, failed)
	d.watch.end(d.commits())
	if err != nil {
		return err
	}
	var stale []netfilter.FlowRule
	for name, s := range c.Services {
		if failed[name] == nil {
			stale = append(stale, netfilter.StaleRules(old[name], s)...)
		}
	}
	if err := d.endStale(stale); err != nil {
		return err
	}
	return applyError(failed)
}

// repairAndApply gives the Services of the Change as they were.
func (d *Dataplane) repairAndApply(ctx context.Context, c dataplane.Change, failed map[dataplane.ServiceName]error) (old map[dataplane.ServiceName]*dataplane.Service, err error) {
	if err := d.repair(ctx); err != nil {
		return nil, err
	}
	if c.Node != nil {
		d.node = *c.Node
		d.setUplinks(d.node)
	}
	old = d.before(c)
	return old, d.apply(ctx, c, failed)
}

// apply applies a change, and where it is refused its halves: one Service whose
// rules the kernel does not take must not hold up the others.
func (d *Dataplane) apply(ctx context.Context, c dataplane.Change, failed map[dataplane.ServiceName]error) error {
	err := d.applyFamilies(ctx, c, failed)
	if err == nil {
		return nil
	}
	d.broken = true
	if errors.Is(err, errLocked) || ctx.Err() != nil || len(c.Services) == 0 {
		return err
	}
	if e := d.repair(ctx); e != nil {
		return errors.Join(err, e)
	}
	if len(c.Services) == 1 && c.Node == nil {
		for name := range c.Services {
			failed[name] = err
		}
		return nil
	}
	if c.Node != nil {
		if err := d.apply(ctx, dataplane.Change{Node: c.Node}, failed); err != nil {
			return err
		}
	}
	names := slices.SortedFunc(maps.Keys(c.Services), dataplane.ServiceName.Compare)
	for _, half := range [][]dataplane.ServiceName{names[:len(names)/2], names[len(names)/2:]} {
		if len(half) == 0 {
			continue
		}
		part := dataplane.Change{Services: map[dataplane.ServiceName]*dataplane.Service{}}
		for _, name := range half {
			part.Services[name] = c.Services[name]
		}
		if err := d.apply(ctx, part, failed); err != nil {
			return err
		}
	}
	return nil
}

func (d *Dataplane) applyFamilies(ctx context.Context, c dataplane.Change, failed map[dataplane.ServiceName]error) error {
	changes := make([]*change, len(d.families))
	for i, f := range d.families {
		changes[i] = f.plan(c.Services, c.Node, failed)
	}
	for i, f := range d.families {
		changes[i].without(failed) // a Service is applied in both families or in none
		if err := f.apply(ctx, changes[i]); err != nil {
			return err
		}
	}
	return nil
}

// repair makes the kernel what the families hold of it, after a failure.
func (d *Dataplane) repair(ctx context.Context) error {
	if !d.broken {
		return nil
	}
	if _, _, err := d.sync(ctx, &dataplane.Table{Services: d.services(), Node: d.node}); err != nil {
		return fmt.Errorf("repair after a failure: %w", err)
	}
	d.broken = false
	return nil
}

// services are those in force: where a family failed between them, the state
// of the first, in which they were before.
func (d *Dataplane) services() map[dataplane.ServiceName]*dataplane.Service {
	return maps.Clone(d.families[len(d.families)-1].services)
}

// before are the Services of a Change as they are in force.
func (d *Dataplane) before(c dataplane.Change) map[dataplane.ServiceName]*dataplane.Service {
	old := make(map[dataplane.ServiceName]*dataplane.Service, len(c.Services))
	for name := range c.Services {
		old[name] = d.families[0].services[name]
	}
	return old
}

func (d *Dataplane) endStale(rules []netfilter.FlowRule) error {
	if _, err := d.conntrack.EndStale(rules); err != nil {
		return fmt.Errorf("end flows to removed Backends: %w", err)
	}
	return nil
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
	d.closeUplinks()
	d.worker.Wait()
	for _, f := range d.families {
		f.tool.ending.Wait()
	}
	if d.conntrack != nil {
		errs = append(errs, d.conntrack.Close())
		d.conntrack = nil
	}
	if d.namespace.IsOpen() {
		errs = append(errs, d.namespace.Close())
	}
	d.watch = nil
	return errors.Join(errs...)
}
