// SPDX-License-Identifier: Apache-2.0

package dataplanetest

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"fairlead.dev/dataplane"
)

func service(name string, ports ...uint16) *dataplane.Service {
	s := &dataplane.Service{Name: dataplane.ServiceName{Namespace: "default", Name: name}}
	for _, p := range ports {
		s.Frontends = append(s.Frontends, dataplane.Frontend{
			FrontendKey: dataplane.FrontendKey{Address: netip.MustParseAddr("10.96.0.1"), Port: p, Protocol: dataplane.TCP}, Kind: dataplane.ClusterIP,
		})
	}
	return s
}

func TestSyncCountsTheFrontendsItHadToTouch(t *testing.T) {
	m, ctx := New(), context.Background()
	for _, c := range []struct {
		sentence string
		table    *dataplane.Table
		want     int
	}{
		{"all into an empty kernel", Table(service("a", 1, 2), service("b", 3)), 3},
		{"nothing into an equal one", Table(service("a", 1, 2), service("b", 3)), 0},
		{"one removed, one added", Table(service("a", 2, 4), service("b", 3)), 2},
		{"a Service removed", Table(service("a", 2, 4)), 1},
	} {
		if got, err := m.Sync(ctx, c.table); err != nil || got != c.want {
			t.Errorf("%s: %d, %v, want %d", c.sentence, got, err, c.want)
		}
	}
}

func TestFailureLeavesTheLastGoodState(t *testing.T) {
	m, ctx := New(), context.Background()
	if err := m.Apply(ctx, dataplane.Change{}); !errors.Is(err, ErrNotSynced) {
		t.Errorf("Apply before Sync: %v", err)
	}
	a := service("a", 1)
	if _, err := m.Sync(ctx, Table(a)); err != nil {
		t.Fatal(err)
	}
	boom := errors.New("full")
	m.Reject(a.Name, boom)
	err := m.Apply(ctx, dataplane.Change{Services: map[dataplane.ServiceName]*dataplane.Service{a.Name: service("a", 9), service("b").Name: service("b", 2)}})
	var partial *dataplane.ApplyError
	if !errors.As(err, &partial) || !errors.Is(partial.Failed[a.Name], boom) || len(partial.Failed) != 1 {
		t.Errorf("Apply: %v", err)
	}
	k := m.Kernel()
	if k.Services[a.Name].Frontends[0].Port != 1 || k.Services[service("b").Name] == nil {
		t.Errorf("kernel %v: want the old a and the new b", k.Services)
	}
}

func TestApplyEqualsSync(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ctx, m := context.Background(), New()
		if _, err := m.Sync(ctx, Table()); err != nil {
			t.Fatal(err)
		}
		want := Table()
		for range rapid.IntRange(0, 20).Draw(t, "changes") {
			name := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "name")
			s := service(name, rapid.SliceOfNDistinct(rapid.Uint16Range(1, 9), 1, 4, rapid.ID).Draw(t, "ports")...)
			c := dataplane.Change{Services: map[dataplane.ServiceName]*dataplane.Service{s.Name: s}}
			want.Services[s.Name] = s
			if rapid.Bool().Draw(t, "removed") {
				c.Services[s.Name] = nil
				delete(want.Services, s.Name)
			}
			if err := m.Apply(ctx, c); err != nil {
				t.Fatal(err)
			}
		}
		if n, err := m.Sync(ctx, want); n != 0 || err != nil {
			t.Fatalf("after the Applies Sync had to change %d Frontends (%v): %s", n, err, cmp.Diff(len(want.Services), len(m.Kernel().Services)))
		}
	})
}
