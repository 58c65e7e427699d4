// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fairlead.dev/bpf"
	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/dataplanetest"
)

// statesAreExact checks that exactly the Backends of ranges are alive, each
// eligible in exactly its sets, and that no slot is lost.
func statesAreExact(t dataplanetest.Failer, d *Dataplane) {
	t.Helper()
	want, slots := map[uint32]uint16{}, uint32(0)
	for _, r := range d.shadow.ranges.aging {
		slots += r.n
	}
	for _, ports := range d.shadow.services {
		for _, p := range ports {
			for _, s := range p.sets {
				slots += s.n
				for i, slot := range d.slots[s.base:s.end()] {
					want[slot.Backend] |= 0
					if i < int(s.eligible) {
						want[slot.Backend] |= 1 << s.index
					}
				}
			}
		}
	}
	if d.shadow.ranges.used != slots {
		t.Fatalf("%d slots are handed out or age; want %d", d.shadow.ranges.used, slots)
	}
	for i := range d.states {
		sets, alive := want[uint32(i)]
		if got := d.states[i]; (got.Generation&1 == 1) != alive || got.EligibleSets != sets {
			t.Fatalf("backend_states[%d] is %+v; want alive %t, eligible in %b", i, got, alive, sets)
		}
	}
}

func TestKernelFollowsAnyChangeAndSurvivesAnyRestart(t *testing.T) {
	for _, tc := range []struct {
		name            string
		slots, services int
		shape           dataplanetest.Shape
		runs            int
	}{
		// What is freed has to be used again.
		{"in small maps", 1024, 128, dataplanetest.Shape{Backends: 6, Ports: 3}, 0},
		{"in large maps", 65536, 1024, dataplanetest.Shape{}, 30},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLab(t)
			l.options.SlotsMax, l.options.ServicesMax = tc.slots, tc.services
			dataplanetest.Follows(t, dataplanetest.FollowOptions{
				Open:  func() (dataplane.Dataplane, error) { return New(context.Background(), l.options) },
				Read:  l.read,
				Check: func(t dataplanetest.Failer, d dataplane.Dataplane) { statesAreExact(t, d.(*Dataplane)) },
				Shape: tc.shape, Runs: tc.runs, Steps: 12, RestartOneIn: 41,
			})
		})
	}
}

func TestAgentKilledInTheMiddleOfAChangeIsMadeGoodAtItsStart(t *testing.T) {
	l := newLab(t)
	ctx := context.Background()
	before := clusterIP("web", "10.96.0.10:80", dataplane.TCP, backends("10.244.1.1:80", "10.244.1.2:80")...)
	after := clusterIP("web", "10.96.0.10:80", dataplane.TCP, backends("10.244.1.2:80", "10.244.1.3:80")...)
	steps := map[string]func(d *Dataplane, ps []*plan){
		"after the new range was written":     func(d *Dataplane, ps []*plan) { d.writeFresh(ps, nil) },
		"after the Frontends were switched":   func(d *Dataplane, ps []*plan) { d.writeFresh(ps, nil); d.switchFrontends(ps, nil) },
		"before anything was written":         func(*Dataplane, []*plan) {},
		"after a Frontend of it went missing": func(d *Dataplane, ps []*plan) { d.maps["frontends"].Delete(&ps[0].new.frontends[0].key) },
	}
	for name, die := range steps {
		t.Run(name, func(t *testing.T) {
			d := l.open()
			if _, err := d.Sync(ctx, table(before)); err != nil {
				t.Fatal(err)
			}
			ps, _, err := d.planService(after, 100)
			if err != nil {
				t.Fatal(err)
			}
			die(d, ps)
			d.Close()
			d = l.open()
			if _, err := d.Sync(ctx, table(after)); err != nil {
				t.Fatal(err)
			}
			l.holds(table(after))
			statesAreExact(t, d)
			d.Close()
		})
	}
}

func TestDriftIsRepairedAndCounted(t *testing.T) {
	l := newLab(t)
	d := l.open()
	ctx := context.Background()
	tab := table(clusterIP("a", "10.96.0.1:80", dataplane.TCP, backends("10.244.1.1:80")...), clusterIP("b", "10.96.0.2:80", dataplane.TCP, backends("10.244.1.1:80")...))
	if _, err := d.Sync(ctx, tab); err != nil {
		t.Fatal(err)
	}
	key := encodeKey(dataplane.FrontendKey{Address: netip.MustParseAddr("10.96.0.1"), Port: 80, Protocol: dataplane.TCP})
	foreign := encodeKey(dataplane.FrontendKey{Address: netip.MustParseAddr("10.96.0.99"), Port: 80, Protocol: dataplane.TCP})
	if err := d.maps["frontends"].Delete(&key); err != nil {
		t.Fatal(err)
	}
	if err := d.maps["frontends"].Put(&foreign, &bpf.FairleadFrontend{Service: 12345, Kind: 1}); err != nil {
		t.Fatal(err)
	}
	if n, err := d.Sync(ctx, tab); n != 2 || err != nil {
		t.Errorf("full check repaired %d Frontends, error %v; want 2: one missing, one foreign", n, err)
	}
	l.holds(tab)
}

func TestFreedSlotsAreNotCountedForEver(t *testing.T) {
	l := newLab(t)
	d := l.open()
	ctx := context.Background()
	if _, err := d.Sync(ctx, table(clusterIP("a", "10.96.0.1:80", dataplane.TCP, backends("10.244.1.1:80", "10.244.1.2:80")...))); err != nil {
		t.Fatal(err)
	}
	if n := d.slotsUsed.Load(); n != 2 {
		t.Fatalf("%d slots are in use, want 2", n)
	}
	if _, err := d.Sync(ctx, table()); err != nil {
		t.Fatal(err)
	}
	for i := range d.shadow.ranges.aging {
		d.shadow.ranges.aging[i].freed = time.Now().Add(-time.Minute)
	}
	if _, err := d.Sync(ctx, table()); err != nil {
		t.Fatal(err)
	}
	if n := d.slotsUsed.Load(); n != 0 {
		t.Errorf("%d slots are in use a minute after the last Service went, want 0", n)
	}
}

// The programs look twice at what is being switched (bpf/switch_test.go).
func TestProgramsAreToldWhenFrontendsAreSwitched(t *testing.T) {
	l := newLab(t)
	d := l.open()
	ctx := context.Background()
	for i, backend := range []string{"10.244.1.1:80", "10.244.1.2:80", "10.244.1.3:80"} {
		a := clusterIP("a", "10.96.0.1:80", dataplane.TCP, backends(backend)...)
		before := *d.switches
		var err error
		if i == 0 {
			_, err = d.Sync(ctx, table(a))
		} else {
			err = d.Apply(ctx, dataplane.Change{Services: map[dataplane.ServiceName]*dataplane.Service{a.Name: a}})
		}
		if err != nil {
			t.Fatal(err)
		}
		if n := *d.switches; n%2 != 0 || n == before {
			t.Errorf("frontend_switches was %d and is %d after Backend %s came, want another even number", before, n, backend)
		}
	}
}

func TestFullMapIsOneClearErrorAndTheRestIsInForce(t *testing.T) {
	ctx := context.Background()
	for _, tc := range []struct {
		name string
		size func(*Options)
		want string
	}{
		{"frontends", func(o *Options) { o.FrontendsMax = 4 }, "map frontends is full (4 entries, 2 more wanted): raise --frontends-max"},
		{"slots", func(o *Options) { o.SlotsMax = 5 }, "raise --slots-max"},
		{"services", func(o *Options) { o.ServicesMax = 2 }, "map services is full (2 Service ports): raise --services-max"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLab(t)
			tc.size(&l.options)
			d := l.open()
			two := backends("10.244.1.1:80", "10.244.1.2:80")
			good := table(clusterIP("a", "10.96.0.1:80", dataplane.TCP, two...), clusterIP("b", "10.96.0.2:80", dataplane.TCP, two...))
			if _, err := d.Sync(ctx, good); err != nil {
				t.Fatal(err)
			}
			more := clusterIP("c", "10.96.0.3:80", dataplane.TCP, two...)
			changed := clusterIP("a", "10.96.0.1:80", dataplane.TCP, backends("10.244.1.9:80")...)
			err := d.Apply(ctx, dataplane.Change{Services: map[dataplane.ServiceName]*dataplane.Service{more.Name: more}})
			var ae *dataplane.ApplyError
			if !errors.As(err, &ae) || len(ae.Failed) != 1 || !strings.Contains(ae.Failed[more.Name].Error(), tc.want) {
				t.Fatalf("error %v\nwant one for default/c that says: %s", err, tc.want)
			}
			if err := d.Apply(ctx, dataplane.Change{Services: map[dataplane.ServiceName]*dataplane.Service{changed.Name: changed}}); err != nil {
				t.Errorf("a change that fits: %v", err)
			}
			good.Services[changed.Name] = changed
			l.holds(good)
			statesAreExact(t, d)
		})
	}
}

func TestFrontendMovesBetweenServicesInOneChange(t *testing.T) {
	l := newLab(t)
	d := l.open()
	ctx := context.Background()
	a := clusterIP("a", "10.96.0.1:80", dataplane.TCP, backends("10.244.1.1:80")...)
	b := clusterIP("b", "10.96.0.1:80", dataplane.TCP, backends("10.244.1.2:80")...)
	if _, err := d.Sync(ctx, table(a)); err != nil {
		t.Fatal(err)
	}
	if err := d.Apply(ctx, dataplane.Change{Services: map[dataplane.ServiceName]*dataplane.Service{a.Name: nil, b.Name: b}}); err != nil {
		t.Fatal(err)
	}
	l.holds(table(b))
}

func TestMapsGrowToAnotherSizeAndKeepWhatTheyHold(t *testing.T) {
	l := newLab(t)
	ctx := context.Background()
	l.options.SlotsMax, l.options.FrontendsMax, l.options.ConntrackMax = 64, 64, 1024
	d := l.open()
	tab := table(clusterIP("a", "10.96.0.1:80", dataplane.TCP, backends("10.244.1.1:80", "10.244.1.2:80")...))
	if _, err := d.Sync(ctx, tab); err != nil {
		t.Fatal(err)
	}
	flow := bpf.FairleadTuple{SourcePort: 1, Protocol: 6}
	if err := d.maps["conntrack"].Put(&flow, &bpf.FairleadConntrackEntry{Service: 0, LastSeenSeconds: monotonicSeconds()}); err != nil {
		t.Fatal(err)
	}
	d.Close()
	l.options.SlotsMax, l.options.FrontendsMax, l.options.ConntrackMax = 128, 128, 4096
	d = l.open()
	l.holds(tab)
	var e bpf.FairleadConntrackEntry
	if err := d.maps["conntrack"].Lookup(&flow, &e); err != nil {
		t.Errorf("the flow did not move to the larger map: %v", err)
	}
	if n, err := d.Sync(ctx, tab); n != 0 || err != nil {
		t.Errorf("Sync after growing changed %d, error %v; want nothing to do", n, err)
	}
	d.Close()
	l.options.SlotsMax = 64
	if d, err := New(ctx, l.options); err == nil || !strings.Contains(err.Error(), "can grow but not shrink") {
		if d != nil {
			d.Close()
		}
		t.Errorf("a smaller slots map: error %v, want it refused", err)
	}
}

func TestCleanupLeavesNothing(t *testing.T) {
	l := newLab(t)
	d := l.open()
	if _, err := d.Sync(context.Background(), table(clusterIP("a", "10.96.0.1:80", dataplane.TCP))); err != nil {
		t.Fatal(err)
	}
	d.Close()
	removed, err := Cleanup(l.options)
	if err != nil || len(removed) < len(pinnedMaps) {
		t.Errorf("Cleanup removed %d pins, error %v", len(removed), err)
	}
	if left, _ := filepath.Glob(filepath.Join(l.options.BPFFS, "fairlead*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	deadline := time.Now().Add(time.Second) // the kernel lets go of a link in the background
	for {
		_, err := dial("tcp4", "10.96.0.1:80")
		if errors.Is(err, unix.ENETUNREACH) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("connect after Cleanup: %v, want no route; the socket hook still answers", err)
		}
		time.Sleep(time.Millisecond)
	}
	if removed, err := Cleanup(l.options); err != nil || len(removed) != 0 {
		t.Errorf("second Cleanup removed %v, error %v", removed, err)
	}
	if _, err := Read(l.options.BPFFS); err == nil || !strings.Contains(err.Error(), "nothing of fairlead is pinned") {
		t.Errorf("Read after Cleanup: %v", err)
	}
}

func BenchmarkSyncTenThousandServices(b *testing.B) {
	l := newLab(b)
	tab := syntheticTable(10000, 10)
	for b.Loop() {
		d, err := New(context.Background(), l.options)
		if err != nil {
			b.Fatal(err)
		}
		start := time.Now()
		if _, err := d.Sync(context.Background(), tab); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(time.Since(start).Microseconds())/1000, "ms/load")
		start = time.Now()
		if n, err := d.Sync(context.Background(), tab); n != 0 || err != nil {
			b.Fatal(n, err)
		}
		b.ReportMetric(float64(time.Since(start).Microseconds())/1000, "ms/check")
		d.Close()
		if _, err := Cleanup(l.options); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkApplyOneChange(b *testing.B) {
	for _, n := range []int{100, 1000, 10000} {
		b.Run(fmt.Sprintf("services=%d", n), func(b *testing.B) {
			l := newLab(b)
			d, err := New(context.Background(), l.options)
			if err != nil {
				b.Fatal(err)
			}
			defer d.Close()
			if _, err := d.Sync(context.Background(), syntheticTable(n, 10)); err != nil {
				b.Fatal(err)
			}
			one, two := syntheticTable(1, 10), syntheticTable(1, 9)
			changes := []dataplane.Change{{Services: one.Services}, {Services: two.Services}}
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				if err := d.Apply(context.Background(), changes[i&1]); err != nil {
					b.Fatal(err)
				}
				i++
			}
		})
	}
}
