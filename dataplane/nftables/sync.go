// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/netfilter"
)

const (
	// readAttempts is how often the table is read anew when somebody changes
	// the rule set meanwhile.
	readAttempts = 8
	// pieceBytes is about how much of the first load of an empty table goes
	// into one transaction: more saves no time, and takes memory.
	pieceBytes = 1 << 20
)

// sync makes the kernel equal t. What is right is left alone.
func (d *Dataplane) sync(ctx context.Context, t *dataplane.Table) (changed int, err error) {
	failed := map[dataplane.ServiceName]error{}
	wanted := d.wanted(t, failed)
	d.uplinks.SetPrimary(primaries(t.Node))
	d.guarding = nil
	d.watch.forget()
	changed, err = d.look(ctx, wanted, t.Node, false)
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENOENT) {
		// Somebody left elements that no Frontend told of: look at all there is.
		changed, err = d.look(ctx, wanted, t.Node, true)
	}
	if err != nil {
		return changed, err
	}
	if first := !d.synced; first || changed > 0 {
		err = d.endStale(netfilter.AllRules(t))
	}
	d.synced = true
	return changed, errors.Join(err, applyError(failed))
}

// look compares the kernel with what is wanted, and repairs it.
func (d *Dataplane) look(ctx context.Context, wanted []*dataplane.Service, n dataplane.Node, deep bool) (changed int, err error) {
	var a *adoption
	for attempt := range readAttempts {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		a, err = d.adopt(wanted, n, deep)
		if err == nil || !errors.Is(err, errInterrupted) || attempt == readAttempts-1 {
			break
		}
	}
	if err != nil {
		return 0, fmt.Errorf("read the nftables of this node: %w", err)
	}
	d.dirty = true
	if changed, err = d.repair(a, wanted, n); err != nil {
		return changed, err
	}
	d.shadow, d.node, d.dirty = a.shadow, n, false
	return changed, nil
}

// wanted is the Table but for Services that can't be programmed, which stay as
// they were.
func (d *Dataplane) wanted(t *dataplane.Table, failed map[dataplane.ServiceName]error) []*dataplane.Service {
	wanted := make([]*dataplane.Service, 0, len(t.Services))
	for name, s := range t.Services {
		if err := valid(s); err != nil {
			failed[name] = err
			s = nil
			if d.shadow != nil {
				s = specOf(d.shadow.services[name])
			}
		}
		if s != nil {
			wanted = append(wanted, s)
		}
	}
	return wanted
}

// repair writes what the adoption found missing or wrong.
func (d *Dataplane) repair(a *adoption, wanted []*dataplane.Service, n dataplane.Node) (changed int, err error) {
	for _, act := range a.shadow.actions {
		if err := act.make(a.head); err != nil {
			return 0, err
		}
	}
	if !a.replaces {
		if err := d.watch.own(d.kernel, a.head); err != nil {
			return 0, err
		}
		a.head = newBatch()
	}
	if err := d.keepGuard(a); err != nil {
		return 0, err
	}
	flush := func(atLeast int) error {
		if a.t.bytes < atLeast {
			return nil
		}
		a.t.write(a.head)
		err := d.watch.own(d.kernel, a.head)
		a.head, a.t = newBatch(), &transaction{}
		return err
	}
	for _, s := range wanted {
		a.shadow.services[s.Name] = a.complete(s)
		if a.empty {
			if err := flush(pieceBytes); err != nil {
				return 0, err
			}
		}
	}
	a.completeShared()
	if err := flush(0); err != nil {
		return 0, err
	}
	d.uplinkNames = a.uplinks
	if a.replaces {
		if err := d.guardLoopback(a.shadow); err != nil {
			return 0, err
		}
	}
	return a.changed(), d.retirePicks(a.shadow)
}

// keepGuard switches the guard of loopback as needed or, where the table is to be
// replaced, lets the new one have that of the old one until then.
func (d *Dataplane) keepGuard(a *adoption) error {
	if !a.replaces {
		return d.guardLoopback(a.shadow)
	}
	s, err := readGuard(d.kernel, tableName)
	if err != nil || !s.there {
		return err
	}
	c := guard(s.ours)
	return c.put(a.head, families[0])
}

func newBatch() *messages {
	m := &messages{}
	m.header(unix.NFNL_MSG_BATCH_BEGIN, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	m.end()
	return m
}

// retirePicks removes the chains that no Frontend needs any more.
func (d *Dataplane) retirePicks(sh *shadow) error {
	for _, a := range sh.actions {
		clear(a.used)
	}
	for _, s := range sh.services {
		for i := range s.frontends {
			f, state := &s.spec.Frontends[i], &s.frontends[i]
			for _, scope := range state.scopes() {
				p := pick{backends: len(f.Set(scope).Eligible()), affinitySeconds: f.AffinitySeconds, scope: scope}
				sh.actions[familyOf(f.Address).index].used[p]++
			}
		}
	}
	return d.commit(func(m *messages) error {
		for _, a := range sh.actions {
			a.retire(m)
		}
		return nil
	})
}

func primaries(n dataplane.Node) []netip.Addr { return []netip.Addr{n.PrimaryIPv4, n.PrimaryIPv6} }

// complete plans what is missing of a Service, and gives its state.
func (a *adoption) complete(s *dataplane.Service) *serviceState {
	state := &serviceState{spec: s, frontends: make([]frontendState, len(s.Frontends))}
	for i := range s.Frontends {
		state.frontends[i] = a.completeFrontend(s, &s.Frontends[i], state)
	}
	return state
}

func (a *adoption) completeFrontend(s *dataplane.Service, f *dataplane.Frontend, state *serviceState) frontendState {
	found := a.frontends[f.FrontendKey]
	now := frontendState{split: found.split}
	first, rest, _ := comments(s.Name, f)
	before := a.t.bytes
	if !found.named {
		a.t.service(f.FrontendKey, first, true)
	}
	for _, scope := range now.scopes() {
		now.actions[scope] = a.shadow.action(f, scope)
		if !found.acts[scope] {
			if scope == dataplane.External {
				rest = ""
			}
			a.t.tupleTo(frontendSets[scope], f.FrontendKey, idle(f, scope), now.actions[scope], rest, true)
		}
		set := f.Set(scope)
		found.need(&set, scope)
		now.orders[scope] = fillPlaces(a.t, slotSet(f, scope), f.FrontendKey, &set, found.orders[scope], found.placed[scope])
		if f.AffinitySeconds > 0 {
			for i := range set.Eligible() {
				if !found.eligible[scope][i] {
					a.t.eligible(eligibleSets[scope], f.FrontendKey, &set.Backends[i], true)
				}
			}
		}
	}
	if f.AffinitySeconds > 0 {
		if now.stickyID = found.stickyID; now.stickyID == 0 {
			now.stickyID = a.stickyID(f, s.Name, state)
			a.t.tupleTo(setStickyIDs, f.FrontendKey, 0, now.stickyID, "", true)
		}
	}
	a.completeFacts(f, found)
	if a.t.bytes != before {
		found.wrong = true
	}
	if found.wrong {
		a.differing++
	}
	return now
}

// stickyID is what other Frontends of the Service port have, or a new number.
func (a *adoption) stickyID(f *dataplane.Frontend, name dataplane.ServiceName, state *serviceState) uint32 {
	p := stickyPort{name, f.PortName, familyOf(f.Address)}
	id, ok := a.stickyIDs[p]
	if !ok {
		id = a.shadow.stickyID(f, state)
		a.stickyIDs[p] = id
	}
	return id
}

func (a *adoption) completeFacts(f *dataplane.Frontend, found *adopted) {
	if len(f.SourceRanges) > 0 && !found.restricted {
		a.t.tuple(setRestricted, f.FrontendKey, true)
	}
	if !f.MasqueradeExternal && !found.keepsSource {
		a.t.tuple(setKeepSource, f.FrontendKey, true)
	}
	for _, p := range rangesOf(f) {
		if !slices.Contains(found.ranges, p) {
			a.t.allowed(f.FrontendKey, p, true)
		}
	}
}

// completeShared plans what is missing of the sets that Frontends share.
func (a *adoption) completeShared() {
	for addr := range a.shadow.clusterIPs {
		if !a.seenClusterIPs[addr] {
			a.t.address(setClusterIPs, addr, true)
			a.shared++
		}
	}
	for addr := range a.shadow.local {
		if !a.seenLocal[addr] {
			a.t.address(setLocalBackends, addr, true)
			a.shared++
		}
	}
	for _, f := range families {
		for _, name := range a.uplinks {
			if !slices.Contains(a.seenUplinks[f.index], name) {
				a.t.add(f, setUplinks, &element{key: deviceName(name)})
			}
		}
	}
}

// changed is how many Frontends were not as they should be; what belongs to no
// Frontend counts as one.
func (a *adoption) changed() int {
	n := a.differing + len(a.strays)
	if a.shared > 0 && n == 0 || a.repaired {
		n++
	}
	return n
}
