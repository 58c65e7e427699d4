// SPDX-License-Identifier: Apache-2.0

package dataplanetest

import (
	"context"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"fairlead.dev/dataplane"
)

// FollowOptions say how Follows reaches a Dataplane and how long it plays.
type FollowOptions struct {
	// Open opens the Dataplane. What an earlier one left is to be found.
	Open func() (dataplane.Dataplane, error)
	// Read opens a reader of what the kernel holds.
	Read func() (dataplane.Reader, error)
	// Check looks for more than a reader sees, after each Change. May be nil.
	Check func(t Failer, d dataplane.Dataplane)
	Shape Shape
	// Runs is how many times it plays, where a step takes long. Default: as
	// often as rapid likes.
	Runs int
	// Steps is how many Changes a run has at the most.
	Steps int
	// RestartOneIn is how many steps there are to one restart of the agent, or
	// some fewer.
	RestartOneIn int
}

// Follows plays Changes, restarts and full checks to a Dataplane. After each
// Change a reader has to find just the Table, full checks have nothing to
// repair, and a Watcher signals no own change as drift.
func Follows(t testing.TB, o FollowOptions) {
	t.Helper()
	f := &follower{FollowOptions: o}
	f.open(t)
	defer func() { f.d.Close() }()
	runs, failed := 0, false
	rapid.Check(t, func(rt *rapid.T) {
		// A failure is tried again and again, to make it small.
		if runs++; o.Runs > 0 && runs > o.Runs && !failed && !asked() {
			return
		}
		defer func() { failed = failed || rt.Failed() }()
		f.table = Table()
		f.table.Node = Node()
		f.sync(rt) // what the run before left goes
		for steps := rapid.IntRange(1, o.Steps).Draw(rt, "steps"); steps > 0; steps-- {
			f.step(rt, steps == 1)
		}
	})
	t.Logf("%d Changes, %d restarts, %d full checks", f.changes, f.restarts, f.checks)
}

// asked: a flag of rapid's says what to run.
func asked() bool {
	return slices.ContainsFunc(os.Args, func(a string) bool { return strings.HasPrefix(a, "-rapid.") })
}

// follower is a Dataplane and the Table that its kernel is to hold.
type follower struct {
	FollowOptions
	d     dataplane.Dataplane
	table *dataplane.Table

	changes, restarts, checks int
}

func (f *follower) open(t Failer) {
	t.Helper()
	d, err := f.Open()
	if err != nil {
		t.Fatalf("open the Dataplane: %v", err)
	}
	f.d = d
}

func (f *follower) restart(t Failer) {
	t.Helper()
	f.restarts++
	if err := f.d.Close(); err != nil {
		t.Fatalf("close the Dataplane: %v", err)
	}
	f.open(t)
}

func (f *follower) sync(t Failer) int {
	t.Helper()
	n, err := f.d.Sync(context.Background(), f.table)
	if err != nil {
		t.Fatalf("Sync: %v", err)
	}
	return n
}

func (f *follower) step(t *rapid.T, last bool) {
	f.changes++
	c := f.change(t)
	restart := rapid.IntRange(0, f.RestartOneIn-1).Draw(t, "restart") == 0
	missed := restart && rapid.Bool().Draw(t, "the agent dies before the Change, and finds it after its start")
	if missed {
		f.restart(t)
		f.sync(t)
	} else if err := f.d.Apply(context.Background(), c); err != nil {
		t.Fatalf("Apply: %v", err)
	}
	f.holds(t)
	if restart && !missed {
		f.restart(t)
	}
	if rapid.Bool().Draw(t, "full check") || restart || last {
		f.checks++
		if n := f.sync(t); n != 0 {
			t.Fatalf("a full check after the Change changed %d Frontends", n)
		}
		f.holds(t)
	}
	if w, is := f.d.(dataplane.Watcher); is {
		select {
		case <-w.Drifted():
			t.Fatalf("own changes signalled drift")
		default:
		}
	}
}

// change draws a Change and makes the Table follow it.
func (f *follower) change(t *rapid.T) dataplane.Change {
	shape := f.Shape.withDefaults()
	c := dataplane.Change{Services: map[dataplane.ServiceName]*dataplane.Service{}}
	for range rapid.IntRange(1, 3).Draw(t, "services") {
		n := rapid.IntRange(1, shape.Services).Draw(t, "service")
		s := DrawService(t, n, shape)
		for _, name := range names(n) { // the keys are the number's: what else had them goes
			if f.table.Services[name] != nil || c.Services[name] != nil {
				c.Services[name] = nil
			}
		}
		if c.Services[s.Name] = s; rapid.IntRange(0, 3).Draw(t, "remove") == 0 {
			c.Services[s.Name] = nil
		}
	}
	maps.Copy(f.table.Services, c.Services)
	maps.DeleteFunc(f.table.Services, func(_ dataplane.ServiceName, s *dataplane.Service) bool { return s == nil })
	if rapid.IntRange(0, 5).Draw(t, "node") == 0 {
		node := &f.table.Node
		node.InternalSources = rapid.SampledFrom([][]netip.Prefix{nil, Node().InternalSources}).Draw(t, "internal")
		node.ServiceCIDRs = rapid.SampledFrom([][]netip.Prefix{nil, Node().ServiceCIDRs}).Draw(t, "CIDRs")
		n := *node
		c.Node = &n
	}
	return c
}

func (f *follower) holds(t Failer) {
	t.Helper()
	Holds(t, f.Read, f.table)
	if f.Check != nil {
		f.Check(t, f.d)
	}
}
