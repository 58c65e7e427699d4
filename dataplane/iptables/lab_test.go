// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
)

var bothFlavours = []Flavour{NFT, Legacy}

// lab is a network namespace of one test's own, in which the test goroutine's
// thread is. It ends with the thread.
type lab struct {
	t       testing.TB
	options Options
}

func newLab(t testing.TB, f Flavour) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces and writes rules")
	}
	runtime.LockOSThread() // not unlocked: the thread stays in its namespace and dies with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("make network namespace: %v", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatal(err)
	}
	return &lab{t: t, options: Options{
		Flavour: f, Devices: []string{"eth*"},
		Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})),
	}}
}

// forEachFlavour runs a test in a lab of each flavour.
func forEachFlavour(t *testing.T, f func(t *testing.T, l *lab)) {
	for _, flavour := range bothFlavours {
		t.Run(string(flavour), func(t *testing.T) { f(t, newLab(t, flavour)) })
	}
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

// sync syncs and expects so many changes.
func (l *lab) sync(d *Dataplane, t *dataplane.Table, want int) {
	l.t.Helper()
	n, err := d.Sync(context.Background(), t)
	if err != nil {
		l.t.Fatal(err)
	}
	if n != want {
		l.t.Fatalf("Sync changed %d Frontends, want %d", n, want)
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

// holds expects a reader to find just a Table.
func (l *lab) holds(t interface{ Fatalf(string, ...any) }, want *dataplane.Table) {
	l.t.Helper()
	r, err := Read(l.options)
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	defer r.Close()
	got, err := r.Table()
	if err != nil {
		t.Fatalf("read the table: %v", err)
	}
	rows := want.Rows()
	if rows == nil {
		rows = []dataplane.Row{}
	}
	if diff := cmp.Diff(rows, got.Frontends, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Fatalf("the kernel holds another table (-want +got):\n%s", diff)
	}
}

// run runs a command in the lab's namespace.
func (l *lab) run(name string, args ...string) string {
	l.t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		l.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// rules lists all tables of both families, without counters.
func (l *lab) rules() string {
	l.t.Helper()
	var b strings.Builder
	for _, v6 := range []bool{false, true} {
		for line := range strings.Lines(l.run(command(l.options.Flavour, v6, "save"))) {
			if !strings.HasPrefix(line, "#") {
				if before, _, ok := strings.Cut(line, " ["); ok && line[0] == ':' {
					line = before + "\n"
				}
				b.WriteString(line)
			}
		}
	}
	return b.String()
}

// node is a Node of the tests.
func node() dataplane.Node {
	return dataplane.Node{
		Addresses:   []netip.Addr{netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("2001:db8::11")},
		PrimaryIPv4: netip.MustParseAddr("192.0.2.11"), PrimaryIPv6: netip.MustParseAddr("2001:db8::11"),
		InternalSources: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")},
		ServiceCIDRs:    []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")},
	}
}

func tableOf(services ...*dataplane.Service) *dataplane.Table {
	t := &dataplane.Table{Services: map[dataplane.ServiceName]*dataplane.Service{}, Node: node()}
	for _, s := range services {
		t.Services[s.Name] = s
	}
	return t
}

func backends(at ...string) []dataplane.Backend {
	var out []dataplane.Backend
	for _, a := range at {
		ap := netip.MustParseAddrPort(a)
		out = append(out, dataplane.Backend{Address: ap.Addr(), Port: ap.Port()})
	}
	slices.SortFunc(out, dataplane.CompareBackends)
	return out
}

func clusterIP(name, at string, bs ...dataplane.Backend) *dataplane.Service {
	ap := netip.MustParseAddrPort(at)
	set := dataplane.BackendSet{Backends: bs}
	return &dataplane.Service{Name: dataplane.ServiceName{Namespace: "default", Name: name}, Frontends: []dataplane.Frontend{{
		FrontendKey: dataplane.FrontendKey{Address: ap.Addr(), Port: ap.Port(), Protocol: dataplane.TCP},
		Kind:        dataplane.ClusterIP, PortName: "http", Internal: set, External: set, MasqueradeExternal: true,
	}}}
}

// synthetic is a Table of n Services with m Backends each.
func synthetic(n, m int) *dataplane.Table {
	t := tableOf()
	for i := range n {
		bs := make([]dataplane.Backend, m)
		for k := range bs {
			bs[k] = dataplane.Backend{Address: netip.AddrFrom4([4]byte{10, 128 + byte(k), byte(i >> 8), byte(i)}), Port: 8080}
		}
		s := clusterIP(fmt.Sprintf("s%05d", i), netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}), 80).String(), bs...)
		t.Services[s.Name] = s
	}
	return t
}
