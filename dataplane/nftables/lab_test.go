// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
)

// lab is a network namespace of one test's own, without a name: it ends with
// the test goroutine's thread, which is in it, and the sockets of the test.
type lab struct {
	t       testing.TB
	options Options
}

func newLab(t testing.TB) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces and rules in them")
	}
	runtime.LockOSThread() // not unlocked: the thread dies with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("make network namespace: %v", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	return &lab{t: t, options: Options{Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))}}
}

func (l *lab) open() *Dataplane {
	l.t.Helper()
	d, err := New(context.Background(), l.options)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { d.Close() })
	return d
}

// sync expects a Sync to change as many Frontends.
func (l *lab) sync(d *Dataplane, t *dataplane.Table, want int) {
	l.t.Helper()
	if n, err := d.Sync(context.Background(), t); err != nil || n != want {
		l.t.Fatalf("Sync changed %d Frontends, error %v; want %d", n, err, want)
	}
}

func (l *lab) apply(d *Dataplane, services ...*dataplane.Service) {
	l.t.Helper()
	c := dataplane.Change{Services: map[dataplane.ServiceName]*dataplane.Service{}}
	for _, s := range services {
		c.Services[s.Name] = s
	}
	if err := d.Apply(context.Background(), c); err != nil {
		l.t.Fatal(err)
	}
}

// holds expects the kernel, read without the agent, to hold just a Table.
func (l *lab) holds(t *dataplane.Table) {
	l.t.Helper()
	r, err := Read(l.options)
	if err != nil {
		l.t.Fatal(err)
	}
	defer r.Close()
	got, err := r.Table()
	if err != nil {
		l.t.Fatal(err)
	}
	want := t.Rows()
	if want == nil {
		want = []dataplane.Row{}
	}
	if diff := cmp.Diff(want, got.Frontends, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		l.t.Fatalf("the kernel does not hold the Table (-want +got):\n%s", diff)
	}
}

func table(services ...*dataplane.Service) *dataplane.Table {
	t := &dataplane.Table{Services: map[dataplane.ServiceName]*dataplane.Service{}}
	for _, s := range services {
		t.Services[s.Name] = s
	}
	return t
}

// clusterIP is a Service with one Frontend.
func clusterIP(name, at string, p dataplane.Protocol, backends ...dataplane.Backend) *dataplane.Service {
	ap := netip.MustParseAddrPort(at)
	set := dataplane.BackendSet{Backends: backends}
	return &dataplane.Service{Name: dataplane.ServiceName{Namespace: "default", Name: name}, Frontends: []dataplane.Frontend{{
		FrontendKey: dataplane.FrontendKey{Address: ap.Addr(), Port: ap.Port(), Protocol: p},
		Kind:        dataplane.ClusterIP, PortName: "http", Internal: set, External: set, MasqueradeExternal: true,
	}}}
}

func backends(at ...string) (out []dataplane.Backend) {
	for _, a := range at {
		ap := netip.MustParseAddrPort(a)
		out = append(out, dataplane.Backend{Address: ap.Addr(), Port: ap.Port()})
	}
	slices.SortFunc(out, dataplane.CompareBackends)
	return out
}

// syntheticTable is a Table of n Services with m Backends each.
func syntheticTable(n, m int) *dataplane.Table {
	t := table()
	for i := range n {
		bs := make([]dataplane.Backend, m)
		for k := range bs {
			bs[k] = dataplane.Backend{Address: netip.AddrFrom4([4]byte{10, 128 + byte(k), byte(i >> 8), byte(i)}), Port: 8080}
		}
		s := clusterIP(fmt.Sprintf("s%05d", i), netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}), 80).String(), dataplane.TCP, bs...)
		t.Services[s.Name] = s
	}
	return t
}
