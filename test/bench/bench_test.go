// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"fairlead.dev/controller/compile"
	"fairlead.dev/controller/source"
	"fairlead.dev/dataplane"
)

// table is a source.Handler that compiles what it gets.
type table struct {
	*compile.Compiler
	synced func()
}

func (c table) OnService(k types.NamespacedName, s *corev1.Service) { c.SetService(k, s) }
func (c table) OnEndpointSlice(k types.NamespacedName, s *discoveryv1.EndpointSlice) {
	c.SetEndpointSlice(k, s)
}
func (c table) OnNode(string, *corev1.Node)             {}
func (c table) OnPod(types.NamespacedName, *corev1.Pod) {}
func (c table) OnSynced()                               { c.synced() }

func rowsOf(t *testing.T, s source.Source) []dataplane.Row {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	c := table{compile.New(compile.Options{}), cancel}
	c.SetNode(compile.NodeFacts{Name: nodeName})
	if err := s.Run(ctx, c); err != nil {
		t.Fatal(err)
	}
	if p := s.State().Problems; len(p) > 0 {
		t.Errorf("problems: %q", p)
	}
	if r := c.Compile(); len(r.Problems) > 0 {
		t.Errorf("problems: %v", r.Problems)
	}
	return c.Table().Rows()
}

func TestADirectoryIsTheSameClusterAsTheObjectsInMemory(t *testing.T) {
	const n = servicesPerFile + 20
	dir := t.TempDir()
	if err := writeManifests(dir, n); err != nil {
		t.Fatal(err)
	}
	files, err := source.NewDirectory(source.DirectoryOptions{Path: dir, NodeName: nodeName})
	if err != nil {
		t.Fatal(err)
	}
	want, got := rowsOf(t, &made{services: n}), rowsOf(t, files)
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("-in memory, +directory:\n%s", diff)
	}
	if len(want) != n+3 {
		t.Errorf("%d Frontends, want %d", len(want), n+3)
	}
	for _, r := range want {
		if len(r.Backends) != backends {
			t.Errorf("%s %s has %d Backends, want %d", r.Service, r.Address, len(r.Backends), backends)
		}
	}
}

func TestTheAPIServerHasTheSameClusterAndTellsOfChanges(t *testing.T) {
	const n = 20
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	api := serveAPI(listener, n)
	defer api.close()
	all, err := source.NewAPIServer(source.APIServerOptions{Config: &rest.Config{Host: api.url}, NodeName: nodeName})
	if err != nil {
		t.Fatal(err)
	}
	want, got := rowsOf(t, &made{services: n}), rowsOf(t, all)
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("-in memory, +API server:\n%s", diff)
	}

	again, err := source.NewAPIServer(source.APIServerOptions{Config: &rest.Config{Host: api.url}, NodeName: nodeName})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), 10*time.Second)
	defer stop()
	f := follower{table: table{compile.New(compile.Options{}), func() { api.change("endpointslices", newSlices(0, firstAfter)[0]) }}, stop: stop}
	if err := again.Run(ctx, f); err != nil {
		t.Fatal(err)
	}
	if context.Cause(ctx) != context.Canceled {
		t.Errorf("the change did not come: %v", context.Cause(ctx))
	}
}

// follower stops when the probed Service has its other Backends.
type follower struct {
	table
	stop func()
}

func (f follower) OnEndpointSlice(_ types.NamespacedName, s *discoveryv1.EndpointSlice) {
	if s != nil && s.Endpoints[0].Addresses[0] == podIPv4(firstAfter).String() {
		f.stop()
	}
}

func TestTheFiguresOfTheGoBenchmarkAreRead(t *testing.T) {
	out := "goos: linux\n" +
		"BenchmarkNorthSouth-2   \t       1\t         0 ns/op\t        37.94 bounce-ns/packet\t       136.3 forward-ns/packet\t         3.592 forward-x/bounce\n" +
		"PASS\n"
	want := []packetRow{{Name: "bounce", NsPerPacket: 37.94}, {Name: "forward", NsPerPacket: 136.3, Ratio: 3.592}}
	if diff := cmp.Diff(want, packetRows(out)); diff != "" {
		t.Error(diff)
	}
}

func TestRatiosAreTakenBlockByBlock(t *testing.T) {
	// The machine was twice as slow in the second block.
	if r := medianRatio([]float64{11, 22, 11}, []float64{10, 20, 10}); r != 1.1 {
		t.Errorf("%v, want 1.1", r)
	}
}

func TestPercentilesAreOfTheSortedValues(t *testing.T) {
	for p, want := range map[int]float64{0: 1, 50: 3, 99: 5, 100: 5} {
		if got := percentile([]float64{5, 3, 1, 4, 2}, p); got != want {
			t.Errorf("p%d: %v, want %v", p, got, want)
		}
	}
}

func TestTheNumberOfAServerIsReadFromEitherFamily(t *testing.T) {
	for last := firstBefore; last < firstBefore+2*backends; last++ {
		mapped := netip.AddrFrom16(podIPv4(last).As16())
		for _, a := range []netip.Addr{mapped, podIPv6(last)} {
			if got := lastByte(sockaddr(netip.AddrPortFrom(a, 1))); int(got) != last {
				t.Errorf("%s: %d, want %d", a, got, last)
			}
		}
	}
}
