// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"

	"fairlead.dev/bpf"
	"fairlead.dev/dataplane"
)

// enum settings_flags of bpf/layout.h.
const (
	settingsLeaveUnknownFlows = 1 << iota
	settingsDraining
)

// Present reports whether programs of this dataplane are in force.
func Present(o Options) (bool, error) {
	o = o.withDefaults()
	_, err := os.Stat(filepath.Join(o.pinDir(), "maps", "frontends"))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for pinned maps: %w", err)
	}
	return true, nil
}

// LeaveUnknownFlows says whether TCP segments of no known flow to a Frontend
// are left to the kernel instead of being reset: while the kernel's conntrack
// has flows of another dataplane, they may be of these.
func (d *Dataplane) LeaveUnknownFlows(leave bool) error {
	s, err := d.readSettings()
	if err != nil {
		return err
	}
	d.options.LeaveUnknownFlows = leave
	s.Flags = d.options.settingsFlags()
	return d.writeSettings(s)
}

func (o Options) settingsFlags() (flags uint16) {
	if o.LeaveUnknownFlows {
		flags |= settingsLeaveUnknownFlows
	}
	if o.Draining {
		flags |= settingsDraining
	}
	return flags
}

// IsDraining reports whether what is pinned belongs to a dataplane that another
// one replaces, so that its Table is not what is in force.
func IsDraining(o Options) (bool, error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(o.withDefaults().pinDir(), "maps", "settings"), &ebpf.LoadPinOptions{ReadOnly: true})
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open pinned map settings: %w", err)
	}
	defer m.Close()
	var s bpf.FairleadNodeSettings
	if err := m.Lookup(uint32(0), &s); err != nil {
		return false, fmt.Errorf("read map settings: %w", err)
	}
	return s.Flags&settingsDraining != 0, nil
}

// Draining is a dataplane of an earlier agent that another dataplane replaces:
// its flows go on and end as they would, and it decides no new ones. It is a
// handover.Predecessor.
type Draining struct {
	options Options
	d       *Dataplane
}

// NewDraining is for what is pinned where o says; see Present.
func NewDraining(o Options) *Draining {
	o.Draining, o.LeaveUnknownFlows = true, true
	return &Draining{options: o}
}

// Name is "ebpf".
func (*Draining) Name() string { return "ebpf" }

// Begin replaces the programs by ones that decide nothing new.
func (r *Draining) Begin(ctx context.Context, t *dataplane.Table) (err error) {
	if r.d == nil {
		if r.d, err = New(ctx, r.options); err != nil {
			return err
		}
	}
	if _, err = r.d.Sync(ctx, t); err != nil {
		return err
	}
	if n, err := r.reserve(); err != nil {
		r.d.options.Logger.Warn("new connections may get ports of ones that are carried", "reserved", n, "error", err)
	}
	return nil
}

// Apply follows a Change: flows and sockets of removed Backends end.
func (r *Draining) Apply(ctx context.Context, c dataplane.Change) error { return r.d.Apply(ctx, c) }

// datagramIdle is how long the flow of a protocol without an end may be silent
// before a replaced dataplane lets it go: its next datagram asks the successor.
const datagramIdle = 30 * time.Second

// Carries reports whether there are flows of the packet path that are neither
// over nor idle: TCP for longer than its timeout, UDP for 30 s.
func (r *Draining) Carries() (bool, error) {
	carries, d := false, r.d
	now, timeouts := monotonicSeconds(), r.d.options.Timeouts
	timeouts.UDP, timeouts.UDPStream = min(timeouts.UDP, datagramIdle), min(timeouts.UDPStream, datagramIdle)
	err := eachEntry(d.maps["conntrack"], func(k bpf.FairleadTuple, e *bpf.FairleadConntrackEntry) {
		over := e.Flags&(conntrackClosing|conntrackPeerClosing) != 0 || timeouts.expired(&k, e, now)
		alive := int(e.Backend) < len(d.states) && d.states[e.Backend].Generation == e.Generation
		carries = carries || alive && !over
	})
	if err != nil {
		return false, fmt.Errorf("read map conntrack: %w", err)
	}
	return carries, nil
}

// End removes all of it. Connected UDP sockets are ended first, since nothing
// would move them off a Backend that goes: their next call fails once, and a
// new socket asks the new dataplane.
func (r *Draining) End(ctx context.Context) error {
	r.d.stop()
	r.d.workers.Wait()
	_, err := r.d.Sync(ctx, &dataplane.Table{})
	r.d.sweeper.sweep(r.d.sweeper.of(sweepUDP))
	err = errors.Join(err, r.d.Close())
	_, cerr := Cleanup(r.options)
	return errors.Join(err, cerr)
}

// Close lets go of it and leaves it as it is.
func (r *Draining) Close() error {
	if r.d == nil {
		return nil
	}
	return r.d.Close()
}
