// SPDX-License-Identifier: Apache-2.0

// Package uplink says which devices of a network namespace lead out of the
// node, and follows them as devices, routes and addresses change. All
// Dataplanes ask it, so that a packet is from outside for each of them or for
// none. It knows nothing of Services, and changes nothing.
package uplink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Uplinks are the devices that lead out: those with a default route or the
// node's primary address, physical ones and tunnels; or those that patterns
// name. Its methods may be called by several goroutines.
type Uplinks struct {
	patterns []string
	log      *slog.Logger
	route    *netlink.Handle
	events   *nl.NetlinkSocket
	wake     chan struct{}
	changed  chan struct{}

	looking sync.Mutex // one look at a time, so that the last one is the newest
	mu      sync.Mutex
	primary []netip.Addr
	devices []Device
	names   []string
}

// lookAgain is when a look that failed is tried again.
const lookAgain = time.Second

// groups are those whose events can change which devices lead out.
var groups = []uint{
	unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
}

// Open looks at the devices of the calling thread's network namespace. Where
// there are patterns, they alone say which devices lead out: names, of which a
// trailing '*' matches any suffix. Later calls may come from any thread.
func Open(patterns []string, log *slog.Logger) (*Uplinks, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	// Before the first look: what happens after it is not missed.
	events, err := nl.Subscribe(unix.NETLINK_ROUTE, groups...)
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("watch devices: %w", err)
	}
	u := &Uplinks{
		patterns: slices.Clone(patterns), log: log, route: h, events: events,
		wake: make(chan struct{}, 1), changed: make(chan struct{}, 1),
	}
	if err := u.look(); err != nil {
		u.Close()
		return nil, err
	}
	signalled(u.changed) // nobody has seen others
	return u, nil
}

// Close closes the sockets; a Run or Watch ends.
func (u *Uplinks) Close() {
	u.events.Close()
	u.route.Close()
}

// SetPrimary tells the node's primary addresses, of which invalid ones are
// ignored, and looks at once.
func (u *Uplinks) SetPrimary(addrs []netip.Addr) {
	u.mu.Lock()
	known := slices.Equal(u.primary, addrs)
	u.primary = slices.Clone(addrs)
	u.mu.Unlock()
	if !known {
		if err := u.look(); err != nil {
			u.log.Warn("find the devices that lead out", "error", err)
		}
	}
	signal(u.wake)
}

// Names are the names of the uplinks, sorted.
func (u *Uplinks) Names() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.names
}

// Devices are all devices of the namespace but loopback ones, by index.
func (u *Uplinks) Devices() []Device {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.devices
}

// Changed has a value when Names changed since the last one. It has one slot,
// and needs a Run or Watch. It is never closed.
func (u *Uplinks) Changed() <-chan struct{} { return u.changed }

// Run follows changes until ctx ends. It can't be run again.
func (u *Uplinks) Run(ctx context.Context) { u.Watch(ctx, func() {}) }

// Watch is Run that calls looked in its own goroutine at its start and after
// each look, whatever it found.
func (u *Uplinks) Watch(ctx context.Context, looked func()) {
	stop := context.AfterFunc(ctx, u.events.Close)
	defer stop()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		u.listen()
	}()
	for {
		again := (<-chan time.Time)(nil)
		if err := u.look(); err != nil && ctx.Err() == nil {
			u.log.Warn("find the devices that lead out", "error", err)
			again = time.After(lookAgain)
		}
		looked()
		select {
		case <-ended:
			return
		case <-u.wake:
		case <-again:
		}
	}
}

// listen turns events into one wake-up, which serves all that came until the
// next look. Events that were lost since they came too fast are events.
func (u *Uplinks) listen() {
	for {
		if _, _, err := u.events.Receive(); err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR) {
			return // closed
		}
		signal(u.wake)
	}
}

// look finds out what is there now.
func (u *Uplinks) look() error {
	u.looking.Lock()
	defer u.looking.Unlock()
	u.mu.Lock()
	primary := u.primary
	u.mu.Unlock()
	devices, err := u.classify(primary)
	if err != nil {
		return err
	}
	var names []string
	for _, d := range devices {
		if d.Uplink {
			names = append(names, d.Name)
		}
	}
	slices.Sort(names)
	u.mu.Lock()
	defer u.mu.Unlock()
	if !slices.Equal(u.names, names) {
		signal(u.changed)
	}
	u.devices, u.names = devices, names
	return nil
}

// named reports whether a pattern names a device.
func named(patterns []string, device string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		prefix, any := strings.CutSuffix(p, "*")
		return p == device || any && strings.HasPrefix(device, prefix)
	})
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// signalled takes a signal that is there.
func signalled(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
