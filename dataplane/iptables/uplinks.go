// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"net/netip"
	"slices"
	"sync"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/uplink"
)

// uplinks tells which devices lead out. Patterns go into the rules as they are,
// for iptables knows them; without any, the devices are followed.
type uplinks struct {
	patterns []string
	found    *uplink.Uplinks
	mu       sync.Mutex
	used     []string // what is in the rules
}

func (d *Dataplane) openUplinks(ctx context.Context) error {
	if len(d.options.Devices) > 0 {
		for _, p := range d.options.Devices {
			d.uplinks.patterns = append(d.uplinks.patterns, devicePattern(p))
		}
		return nil
	}
	var err error
	if d.uplinks.found, err = uplink.Open(nil, d.options.Logger); err != nil {
		return err
	}
	d.worker.Go(func() { d.uplinks.found.Run(ctx) })
	d.worker.Go(func() { d.followUplinks(ctx) })
	return nil
}

// followUplinks asks for a Sync, which writes the rules, when they changed.
func (d *Dataplane) followUplinks(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.uplinks.found.Changed():
		}
		d.uplinks.mu.Lock()
		changed := !slices.Equal(d.uplinks.used, d.uplinks.found.Names())
		d.uplinks.mu.Unlock()
		if changed {
			d.watch.signal()
		}
	}
}

// setUplinks gives the families the devices of now.
func (d *Dataplane) setUplinks(n dataplane.Node) {
	names := d.uplinks.patterns
	if d.uplinks.found != nil {
		d.uplinks.found.SetPrimary([]netip.Addr{n.PrimaryIPv4, n.PrimaryIPv6})
		names = d.uplinks.found.Names()
		d.uplinks.mu.Lock()
		d.uplinks.used = slices.Clone(names)
		d.uplinks.mu.Unlock()
	}
	for _, f := range d.families {
		f.uplinks = names
	}
}

func (d *Dataplane) closeUplinks() {
	if d.uplinks.found != nil {
		d.uplinks.found.Close()
	}
}
