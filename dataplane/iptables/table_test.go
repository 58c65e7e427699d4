// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"fairlead.dev/dataplane"
)

func TestASyncOfTheSameTableChangesNothing(t *testing.T) {
	forEachFlavour(t, func(t *testing.T, l *lab) {
		tab := tableOf(
			clusterIP("a", "10.96.0.1:80", backends("10.244.1.1:8080", "10.244.1.2:8080")...),
			clusterIP("six", "[fd00:10:96::1]:80", backends("[fd00:10:244:1::1]:8080")...),
			clusterIP("empty", "10.96.0.2:80"), clusterIP("elsewhere", "10.99.0.2:80", backends("10.244.1.1:1")...),
			large("large", 150))
		l.sync(l.open(), tab, 5)
		before := l.rules()
		l.sync(l.open(), tab, 0) // another process
		if after := l.rules(); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
		l.holds(t, tab)
	})
}

// large is a Service with n Backends, every third of them terminating.
func large(name string, n int) *dataplane.Service {
	s := clusterIP(name, "10.96.7.7:80")
	for i := range n {
		b := dataplane.Backend{Address: netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i)}), Port: 8080, Local: i%2 == 0}
		if i%3 == 0 {
			b.State = dataplane.Terminating
		}
		s.Frontends[0].Internal.Backends = append(s.Frontends[0].Internal.Backends, b)
	}
	slices.SortFunc(s.Frontends[0].Internal.Backends, dataplane.CompareBackends)
	s.Frontends[0].External = s.Frontends[0].Internal
	return s
}

// drawService draws a Service with a few Frontends of every kind.
func drawService(t *rapid.T, n int) *dataplane.Service {
	v6 := rapid.IntRange(0, 3).Draw(t, "family") == 0
	at := func(v4 netip.Addr) netip.Addr {
		if !v6 {
			return v4
		}
		b := netip.MustParseAddr("fd00:10:96::").As16()
		copy(b[12:], v4.AsSlice())
		return netip.AddrFrom16(b)
	}
	pool := make([]dataplane.Backend, rapid.IntRange(0, 6).Draw(t, "backends"))
	for i := range pool {
		pool[i] = dataplane.Backend{
			Address: at(netip.AddrFrom4([4]byte{10, 244, byte(rapid.IntRange(1, 2).Draw(t, "node")), byte(i + 1)})), Port: 8080,
			State: dataplane.BackendState(rapid.IntRange(0, 1).Draw(t, "state")), Local: rapid.Bool().Draw(t, "local"),
		}
	}
	slices.SortFunc(pool, dataplane.CompareBackends)
	local := slices.DeleteFunc(slices.Clone(pool), func(b dataplane.Backend) bool { return !b.Local })
	s := &dataplane.Service{Name: dataplane.ServiceName{Namespace: "default", Name: fmt.Sprintf("s%d", n)}}
	protocol := rapid.SampledFrom([]dataplane.Protocol{dataplane.TCP, dataplane.UDP, dataplane.SCTP}).Draw(t, "protocol")
	ports := rapid.SampledFrom([]int{0, 1, 2, 3, 20}).Draw(t, "ports")
	for port := range ports {
		set := dataplane.BackendSet{Backends: pool}
		f := dataplane.Frontend{
			FrontendKey: dataplane.FrontendKey{Address: at(netip.AddrFrom4([4]byte{10, 96, 0, byte(n)})), Port: uint16(80 + port), Protocol: protocol},
			Kind:        dataplane.ClusterIP, PortName: rapid.SampledFrom([]string{"", "p1", "p2"}).Draw(t, "name"),
			Internal: set, External: set,
			AffinitySeconds: uint32(rapid.SampledFrom([]int{0, 0, 10800}).Draw(t, "affinity")), MasqueradeExternal: true,
		}
		s.Frontends = append(s.Frontends, f)
		if rapid.Bool().Draw(t, "external") {
			f.Kind, f.Address, f.MasqueradeExternal = dataplane.LoadBalancer, at(netip.AddrFrom4([4]byte{198, 51, 100, byte(n)})), false
			f.External = dataplane.BackendSet{Backends: local, OnEmpty: dataplane.Drop}
			if !v6 {
				f.SourceRanges = rapid.SampledFrom([][]netip.Prefix{nil, {netip.MustParsePrefix("0.0.0.0/0")}, {netip.MustParsePrefix("192.0.2.0/25"), netip.MustParsePrefix("203.0.113.7/32")}}).Draw(t, "ranges")
			}
			s.Frontends = append(s.Frontends, f)
			f.SourceRanges = nil
		}
		for i := range rapid.IntRange(0, 3).Draw(t, "node ports") {
			f.Kind, f.Port = dataplane.NodePort, uint16(30000+n*256+port)
			f.Address = at(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}))
			s.Frontends = append(s.Frontends, f)
		}
	}
	return s
}

func TestKernelFollowsAnyChangeAndSurvivesAnyRestart(t *testing.T) {
	forEachFlavour(t, func(t *testing.T, l *lab) {
		ctx := context.Background()
		d, err := New(ctx, l.options)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { d.Close() }()
		runs := 0
		rapid.Check(t, func(rt *rapid.T) {
			if runs++; runs > 12 && !rapidReplays() {
				return // each step starts a dozen processes
			}
			tab := tableOf()
			if _, err := d.Sync(ctx, tab); err != nil { // what the run before left goes
				rt.Fatal(err)
			}
			for range rapid.IntRange(1, 4).Draw(rt, "steps") {
				c := dataplane.Change{Services: map[dataplane.ServiceName]*dataplane.Service{}}
				for range rapid.IntRange(1, 3).Draw(rt, "services") {
					s := drawService(rt, rapid.IntRange(1, 20).Draw(rt, "service"))
					if c.Services[s.Name] = s; rapid.IntRange(0, 3).Draw(rt, "remove") == 0 {
						c.Services[s.Name] = nil
					}
				}
				if rapid.IntRange(0, 5).Draw(rt, "node") == 0 {
					tab.Node.InternalSources = rapid.SampledFrom([][]netip.Prefix{nil, node().InternalSources}).Draw(rt, "internal")
					tab.Node.ServiceCIDRs = rapid.SampledFrom([][]netip.Prefix{nil, node().ServiceCIDRs}).Draw(rt, "CIDRs")
					n := tab.Node
					c.Node = &n
				}
				maps.Copy(tab.Services, c.Services)
				maps.DeleteFunc(tab.Services, func(_ dataplane.ServiceName, s *dataplane.Service) bool { return s == nil })
				if rapid.IntRange(0, 5).Draw(rt, "restart") == 0 { // the agent dies before the Change, and finds it after its start
					d.Close()
					if d, err = New(ctx, l.options); err != nil {
						rt.Fatal(err)
					}
					if _, err := d.Sync(ctx, tab); err != nil {
						rt.Fatal(err)
					}
				} else if err := d.Apply(ctx, c); err != nil {
					rt.Fatal(err)
				}
				l.holds(rt, tab)
				if n, err := d.Sync(ctx, tab); n != 0 || err != nil {
					rt.Fatalf("full check after Apply changed %d Frontends, error %v", n, err)
				}
				if signalled(d) {
					rt.Fatalf("own changes signalled drift")
				}
			}
		})
	})
}

// rapidReplays: rapid tries one failure again and again, to make it small.
func rapidReplays() bool {
	return slices.ContainsFunc(os.Args, func(a string) bool { return strings.HasPrefix(a, "-rapid.") })
}

func TestDriftIsRepairedAndCounted(t *testing.T) {
	forEachFlavour(t, func(t *testing.T, l *lab) {
		tab := tableOf(
			clusterIP("a", "10.96.0.1:80", backends("10.244.1.1:80", "10.244.1.2:80")...),
			clusterIP("b", "10.96.0.2:80", backends("10.244.1.1:80")...), clusterIP("c", "10.96.0.3:80"))
		d := l.open()
		l.sync(d, tab, 3)
		want := l.rules()
		one := command(l.options.Flavour, false, "")
		for _, tc := range []struct {
			what  string
			spoil func()
			count int
		}{
			{"a Backend's rule is gone", func() { l.run(one, "-t", "nat", "-D", set(tab, "a"), "1") }, 1},
			{"two Frontends are gone", func() { l.run(one, "-t", "nat", "-F", treeAddresses) }, 3},
			{"the jump is gone", func() { l.run(one, "-t", "nat", "-D", "PREROUTING", "1") }, 1},
			{"the jump is there twice", func() {
				l.run(one, "-t", "nat", "-A", "OUTPUT", "-m", "comment", "--comment", "fairlead: Services", "-j", chainServices)
			}, 1},
			{"a foreign Backend", func() {
				l.run(one, "-t", "nat", "-I", set(tab, "b"), "-p", "tcp", "-j", "DNAT", "--to-destination", "10.9.9.9:9")
			}, 1},
			{"a chain that looks like ours", func() { l.run(one, "-t", "nat", "-N", prefixSet+"abcdefghijkl-0") }, 1},
			{"the filter table is empty", func() { l.run(one, "-F") }, 1},
		} {
			tc.spoil()
			l.sync(d, tab, tc.count)
			if got := l.rules(); got != want {
				t.Errorf("%s: after the repair\n%s\nwant\n%s", tc.what, got, want)
			}
			l.holds(t, tab)
		}
	})
}

// set is the chain of the first set of the Service's port "http".
func set(t *dataplane.Table, name string) string {
	return numbered(prefixSet, portHash(dataplane.ServiceName{Namespace: "default", Name: name}, "http"), 0)
}

func TestAServiceThatCanNotBeWrittenDoesNotHoldUpOthers(t *testing.T) {
	l := newLab(t, NFT)
	d := l.open()
	good, better := clusterIP("a", "10.96.0.1:80", backends("10.244.1.1:80")...), clusterIP("a", "10.96.0.1:80", backends("10.244.1.2:80")...)
	l.sync(d, tableOf(good), 1)
	bad, other := clusterIP("b\"quoted", "10.96.0.2:80", backends("10.244.1.1:80")...), clusterIP("c", "10.96.0.3:80", backends("10.244.1.1:80")...)
	err := d.Apply(context.Background(), dataplane.Change{Services: map[dataplane.ServiceName]*dataplane.Service{good.Name: better, bad.Name: bad, other.Name: other}})
	var ae *dataplane.ApplyError
	if !errors.As(err, &ae) || len(ae.Failed) != 1 || ae.Failed[bad.Name] == nil {
		t.Fatalf("error %v, want one for %s alone", err, bad.Name)
	}
	l.holds(t, tableOf(better, other))
	// What only iptables-restore refuses: a Backend of the other family.
	refused := clusterIP("d", "10.96.0.4:80", backends("[fd00:10:244:1::1]:80")...)
	third := clusterIP("e", "10.96.0.5:80", backends("10.244.1.1:80")...)
	err = d.Apply(context.Background(), dataplane.Change{Services: map[dataplane.ServiceName]*dataplane.Service{good.Name: good, refused.Name: refused, third.Name: third}})
	if !errors.As(err, &ae) || len(ae.Failed) != 1 || ae.Failed[refused.Name] == nil {
		t.Fatalf("error %v, want one for %s alone", err, refused.Name)
	}
	l.holds(t, tableOf(good, other, third))
	l.sync(d, tableOf(good, other, third), 0)
}

func TestAnAddressThatMovesBetweenServicesIsNeverGone(t *testing.T) {
	forEachFlavour(t, func(t *testing.T, l *lab) {
		d := l.open()
		a, b := clusterIP("a", "10.96.0.1:80", backends("10.244.1.1:80")...), clusterIP("b", "10.96.0.1:80", backends("10.244.1.2:80")...)
		l.sync(d, tableOf(a), 1)
		err := d.Apply(context.Background(), dataplane.Change{Services: map[dataplane.ServiceName]*dataplane.Service{a.Name: nil, b.Name: b}})
		if err != nil {
			t.Fatal(err)
		}
		l.holds(t, tableOf(b))
		l.sync(d, tableOf(b), 0)
	})
}

func TestCleanupLeavesForeignRulesAndNothingElse(t *testing.T) {
	forEachFlavour(t, func(t *testing.T, l *lab) {
		one := command(l.options.Flavour, false, "")
		foreign := func() {
			l.run(one, "-t", "nat", "-N", "FOREIGN")
			l.run(one, "-t", "nat", "-A", "FOREIGN", "-p", "tcp", "--dport", "1", "-j", "DNAT", "--to-destination", "10.9.9.9:9")
			l.run(one, "-t", "nat", "-A", "PREROUTING", "-j", "FOREIGN")
			l.run(one, "-A", "INPUT", "-m", "comment", "--comment", `not " -j FAIRLEAD-SERVICES`, "-j", "ACCEPT")
			for _, f := range []bool{false, true} { // the tables that we would make
				for _, table := range tableNames {
					l.run(command(l.options.Flavour, f, ""), "-t", table, "-P", "OUTPUT", "ACCEPT")
				}
			}
		}
		foreign()
		before := l.rules()
		d := l.open()
		loopback := clusterIP("a", "127.0.0.1:30080", backends("10.244.1.1:80")...)
		loopback.Frontends[0].Kind = dataplane.NodePort
		l.sync(d, tableOf(loopback, clusterIP("b", "[fd00:10:96::1]:80")), 2)
		if v, _ := os.ReadFile(routeLocalnet); strings.TrimSpace(string(v)) != "1" {
			t.Errorf("route_localnet is %q while a node port is on 127.0.0.1", v)
		}
		d.Close()
		if ok, err := Present(l.options); !ok || err != nil {
			t.Errorf("Present is %t, error %v, before Cleanup", ok, err)
		}
		removed, err := Cleanup(l.options)
		if err != nil || len(removed) < 10 {
			t.Errorf("Cleanup removed %v, error %v", removed, err)
		}
		if after := l.rules(); after != before {
			t.Errorf("before:\n%s\nafter Cleanup:\n%s", before, after)
		}
		if v, _ := os.ReadFile(routeLocalnet); strings.TrimSpace(string(v)) != "0" {
			t.Errorf("route_localnet is %q after Cleanup", v)
		}
		if removed, err := Cleanup(l.options); err != nil || len(removed) != 0 {
			t.Errorf("second Cleanup removed %v, error %v", removed, err)
		}
		if ok, err := Present(l.options); ok || err != nil {
			t.Errorf("Present is %t, error %v, after Cleanup", ok, err)
		}
		if _, err := Read(l.options); !errors.Is(err, errNothing) {
			t.Errorf("Read after Cleanup: %v", err)
		}
	})
}

func TestRouteLocalnetOfOthersIsLeftAlone(t *testing.T) {
	l := newLab(t, NFT)
	if err := setLocalnet("1"); err != nil {
		t.Fatal(err)
	}
	d := l.open()
	s := clusterIP("a", "127.0.0.1:30080", backends("10.244.1.1:80")...)
	s.Frontends[0].Kind = dataplane.NodePort
	l.sync(d, tableOf(s), 1)
	l.sync(d, tableOf(), 1)
	if strings.Contains(l.rules(), chainLocalnet) || !localnetOpen() {
		t.Errorf("route_localnet was set before: want no guard and no change, have %t and\n%s", localnetOpen(), l.rules())
	}
}

func TestAHeldLockIsAnErrorThatNamesTheHolder(t *testing.T) {
	l := newLab(t, Legacy)
	t.Setenv("XTABLES_LOCKFILE", t.TempDir()+"/xtables.lock")
	d := l.open()
	l.sync(d, tableOf(), 0)
	lock, err := os.Create(os.Getenv("XTABLES_LOCKFILE"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	d.families[0].lockWait = 1
	s := clusterIP("a", "10.96.0.1:80", backends("10.244.1.1:80")...)
	err = d.Apply(context.Background(), dataplane.Change{Services: map[dataplane.ServiceName]*dataplane.Service{s.Name: s}})
	if !errors.Is(err, errLocked) || !strings.Contains(err.Error(), fmt.Sprintf("(process %d)", os.Getpid())) {
		t.Errorf("error %v, want one that names process %d", err, os.Getpid())
	}
	lock.Close()
	l.apply(d, s) // and what failed is made good
	l.holds(t, tableOf(s))
}
