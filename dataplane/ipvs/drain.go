// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"context"
	"net/netip"
	"time"
)

// drainEvery is how often it is looked whether connections have ended.
const drainEvery = time.Second

// drainKey is a destination that gets no new connections.
type drainKey struct {
	mark    uint32
	address netip.AddrPort
}

// drains are the destinations that wait for their connections to end, with the
// time until which they may; the zero time is for Backends that still exist,
// whose connections may last.
type drains map[drainKey]time.Time

// settle makes a server hold no other destinations than wanted ones and
// draining ones. keep are Backends that may keep their flows. wanted is nil
// for a server that goes; knowing nothing of it, an agent that starts leaves
// what drains already. It returns whether it changed what should not have been.
func (d *Dataplane) settle(mark uint32, s *server, wanted map[netip.AddrPort]int, keep map[netip.AddrPort]bool, known bool) (changed bool, err error) {
	for a, weight := range s.weights {
		key := drainKey{mark, a}
		if target, ok := wanted[a]; ok {
			delete(d.drains, key)
			if target == 0 && weight != 0 {
				if err := d.weigh(mark, s, a, 0); err != nil {
					return changed, err
				}
				changed = true
			}
			continue
		}
		if weight == 0 && !known {
			if _, ok := d.drains[key]; !ok {
				d.drains[key] = time.Now().Add(d.options.DrainTimeout)
			}
			continue
		}
		if isUDP(mark) && !keep[a] {
			if err := d.dropFlows(mark, s, a); err != nil {
				return changed, err
			}
			changed = true
			continue
		}
		if weight != 0 {
			if err := d.weigh(mark, s, a, 0); err != nil {
				return changed, err
			}
			changed = true
		}
		until, draining := d.drains[key]
		switch {
		case keep[a]:
			d.drains[key] = time.Time{}
		case !draining || until.IsZero():
			d.drains[key] = time.Now().Add(d.options.DrainTimeout)
		}
	}
	return changed, nil
}

func (d *Dataplane) weigh(mark uint32, s *server, a netip.AddrPort, weight int) error {
	_, there := s.weights[a]
	if err := d.kernel.weigh(mark, s.family, a, weight, there); err != nil {
		return err
	}
	s.weights[a] = weight
	return nil
}

func (d *Dataplane) drop(mark uint32, s *server, a netip.AddrPort) error {
	if err := d.kernel.drop(mark, s.family, a); err != nil {
		return err
	}
	delete(s.weights, a)
	delete(d.drains, drainKey{mark, a})
	return nil
}

// expireNodest is when IPVS has forgotten the flows of a destination that was
// deleted: it begins a tick later (expire_nodest_conn_work, since Linux 5.9). A
// packet of the node itself that comes sooner meets the old flow twice, on its
// way out and, not being for IPVS any more, on its way in, and is lost.
const expireNodest = 20 * time.Millisecond

// dropFlows is drop for a destination whose flows must not last.
func (d *Dataplane) dropFlows(mark uint32, s *server, a netip.AddrPort) error {
	busy, err := d.kernel.busy(mark, s.family)
	if err != nil {
		return err
	}
	d.expiring = d.expiring || busy[a]
	return d.drop(mark, s, a)
}

// awaitExpiry waits for IPVS to forget what dropFlows dropped.
func (d *Dataplane) awaitExpiry() {
	if d.expiring {
		time.Sleep(expireNodest)
		d.expiring = false
	}
}

// finishDrains deletes draining destinations without connections or beyond
// their time, and servers and addresses that are not needed any more.
func (d *Dataplane) finishDrains(only map[uint32]bool) error {
	now := time.Now()
	byMark := map[uint32][]netip.AddrPort{}
	for k := range d.drains {
		if only == nil || only[k.mark] {
			byMark[k.mark] = append(byMark[k.mark], k.address)
		}
	}
	for mark, list := range byMark {
		s := d.servers[mark]
		if s == nil {
			d.forgetDrains(mark)
			continue
		}
		busy, err := d.kernel.busy(mark, s.family)
		if err != nil {
			return err
		}
		for _, a := range list {
			until := d.drains[drainKey{mark, a}]
			if busy[a] && (until.IsZero() || now.Before(until)) {
				continue
			}
			if err := d.drop(mark, s, a); err != nil {
				return err
			}
		}
	}
	return d.removeEmpty()
}

func (d *Dataplane) forgetDrains(mark uint32) {
	for k := range d.drains {
		if k.mark == mark {
			delete(d.drains, k)
		}
	}
}

// removeEmpty removes servers that are not wanted and have no destinations
// left and then, when nothing drains, the addresses that lingered.
func (d *Dataplane) removeEmpty() error {
	for mark := range d.leaving {
		s := d.servers[mark]
		if s != nil && len(s.weights) > 0 {
			continue
		}
		if s != nil {
			if err := d.kernel.remove(mark, s.family); err != nil {
				return err
			}
		}
		delete(d.servers, mark)
		delete(d.leaving, mark)
		d.planner.number.free(numberOf(mark))
	}
	return d.removeLingering()
}

// removeLingering removes addresses of Services that are gone once the servers
// are that went with them.
func (d *Dataplane) removeLingering() error {
	gone := newEdit()
	var list []netip.Addr
	for a, marks := range d.lingering {
		for mark := range marks {
			if !d.leaving[mark] {
				delete(marks, mark)
			}
		}
		switch {
		case d.vipUses[a] > 0:
			delete(d.lingering, a)
		case len(marks) == 0:
			list = append(list, a)
			gone.deletes.put("vips"+familyOf(a).suffix, a.AsSlice(), element{})
		}
	}
	if len(list) == 0 {
		return nil
	}
	if err := d.table.apply(gone); err != nil {
		return err
	}
	for _, a := range list {
		if err := d.routes.remove(a); err != nil {
			return err
		}
		delete(d.lingering, a)
	}
	return nil
}

// runDrains goes on until ctx is done.
func (d *Dataplane) runDrains(ctx context.Context) {
	tick := time.NewTicker(drainEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		d.mu.Lock()
		if d.synced && len(d.drains)+len(d.leaving)+len(d.lingering) > 0 {
			if err := d.finishDrains(nil); err != nil && !d.drainFailed {
				d.options.Logger.Warn("end draining", "error", err)
				d.drainFailed = true
			} else if err == nil {
				d.drainFailed = false
			}
		}
		d.mu.Unlock()
	}
}
