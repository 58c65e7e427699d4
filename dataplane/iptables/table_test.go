// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/dataplanetest"
)

func TestASyncOfTheSameTableChangesNothing(t *testing.T) {
	forEachFlavour(t, func(t *testing.T, l *lab) {
		tab := tableOf(
			clusterIP("a", "10.96.0.1:80", dataplane.TCP, backends("10.244.1.1:8080", "10.244.1.2:8080")...),
			clusterIP("six", "[fd00:10:96::1]:80", dataplane.TCP, backends("[fd00:10:244:1::1]:8080")...),
			clusterIP("empty", "10.96.0.2:80", dataplane.TCP), clusterIP("elsewhere", "10.99.0.2:80", dataplane.TCP, backends("10.244.1.1:1")...),
			large("large", 150))
		l.Sync(l.open(), tab, 5)
		before := l.rules()
		l.Sync(l.open(), tab, 0) // another process
		if after := l.rules(); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
		l.Holds(tab)
	})
}

// large is a Service with n Backends, every third of them terminating.
func large(name string, n int) *dataplane.Service {
	s := clusterIP(name, "10.96.7.7:80", dataplane.TCP)
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

func TestKernelFollowsAnyChangeAndSurvivesAnyRestart(t *testing.T) {
	forEachFlavour(t, func(t *testing.T, l *lab) {
		dataplanetest.Follows(t, dataplanetest.FollowOptions{
			Open:  func() (dataplane.Dataplane, error) { return New(context.Background(), l.options) },
			Read:  l.Read,
			Shape: dataplanetest.Shape{Services: 20},
			Runs:  12, Steps: 4, RestartOneIn: 6, // each step starts a dozen processes
		})
	})
}

func TestDriftIsRepairedAndCounted(t *testing.T) {
	forEachFlavour(t, func(t *testing.T, l *lab) {
		tab := tableOf(
			clusterIP("a", "10.96.0.1:80", dataplane.TCP, backends("10.244.1.1:80", "10.244.1.2:80")...),
			clusterIP("b", "10.96.0.2:80", dataplane.TCP, backends("10.244.1.1:80")...), clusterIP("c", "10.96.0.3:80", dataplane.TCP))
		d := l.open()
		l.Sync(d, tab, 3)
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
			l.Sync(d, tab, tc.count)
			if got := l.rules(); got != want {
				t.Errorf("%s: after the repair\n%s\nwant\n%s", tc.what, got, want)
			}
			l.Holds(tab)
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
	good, better := clusterIP("a", "10.96.0.1:80", dataplane.TCP, backends("10.244.1.1:80")...), clusterIP("a", "10.96.0.1:80", dataplane.TCP, backends("10.244.1.2:80")...)
	l.Sync(d, tableOf(good), 1)
	bad, other := clusterIP("b\"quoted", "10.96.0.2:80", dataplane.TCP, backends("10.244.1.1:80")...), clusterIP("c", "10.96.0.3:80", dataplane.TCP, backends("10.244.1.1:80")...)
	err := d.Apply(context.Background(), dataplane.Change{Services: map[dataplane.ServiceName]*dataplane.Service{good.Name: better, bad.Name: bad, other.Name: other}})
	var ae *dataplane.ApplyError
	if !errors.As(err, &ae) || len(ae.Failed) != 1 || ae.Failed[bad.Name] == nil {
		t.Fatalf("error %v, want one for %s alone", err, bad.Name)
	}
	l.Holds(tableOf(better, other))
	// What only iptables-restore refuses: a Backend of the other family.
	refused := clusterIP("d", "10.96.0.4:80", dataplane.TCP, backends("[fd00:10:244:1::1]:80")...)
	third := clusterIP("e", "10.96.0.5:80", dataplane.TCP, backends("10.244.1.1:80")...)
	err = d.Apply(context.Background(), dataplane.Change{Services: map[dataplane.ServiceName]*dataplane.Service{good.Name: good, refused.Name: refused, third.Name: third}})
	if !errors.As(err, &ae) || len(ae.Failed) != 1 || ae.Failed[refused.Name] == nil {
		t.Fatalf("error %v, want one for %s alone", err, refused.Name)
	}
	l.Holds(tableOf(good, other, third))
	l.Sync(d, tableOf(good, other, third), 0)
}

func TestAnAddressThatMovesBetweenServicesIsNeverGone(t *testing.T) {
	forEachFlavour(t, func(t *testing.T, l *lab) {
		d := l.open()
		a, b := clusterIP("a", "10.96.0.1:80", dataplane.TCP, backends("10.244.1.1:80")...), clusterIP("b", "10.96.0.1:80", dataplane.TCP, backends("10.244.1.2:80")...)
		l.Sync(d, tableOf(a), 1)
		err := d.Apply(context.Background(), dataplane.Change{Services: map[dataplane.ServiceName]*dataplane.Service{a.Name: nil, b.Name: b}})
		if err != nil {
			t.Fatal(err)
		}
		l.Holds(tableOf(b))
		l.Sync(d, tableOf(b), 0)
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
		loopback := clusterIP("a", "127.0.0.1:30080", dataplane.TCP, backends("10.244.1.1:80")...)
		loopback.Frontends[0].Kind = dataplane.NodePort
		l.Sync(d, tableOf(loopback, clusterIP("b", "[fd00:10:96::1]:80", dataplane.TCP)), 2)
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
	s := clusterIP("a", "127.0.0.1:30080", dataplane.TCP, backends("10.244.1.1:80")...)
	s.Frontends[0].Kind = dataplane.NodePort
	l.Sync(d, tableOf(s), 1)
	l.Sync(d, tableOf(), 1)
	if strings.Contains(l.rules(), chainLocalnet) || !localnetOpen() {
		t.Errorf("route_localnet was set before: want no guard and no change, have %t and\n%s", localnetOpen(), l.rules())
	}
}

func TestAHeldLockIsAnErrorThatNamesTheHolder(t *testing.T) {
	l := newLab(t, Legacy)
	t.Setenv("XTABLES_LOCKFILE", t.TempDir()+"/xtables.lock")
	d := l.open()
	l.Sync(d, tableOf(), 0)
	lock, err := os.Create(os.Getenv("XTABLES_LOCKFILE"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	d.families[0].lockWait = 1
	s := clusterIP("a", "10.96.0.1:80", dataplane.TCP, backends("10.244.1.1:80")...)
	err = d.Apply(context.Background(), dataplane.Change{Services: map[dataplane.ServiceName]*dataplane.Service{s.Name: s}})
	if !errors.Is(err, errLocked) || !strings.Contains(err.Error(), fmt.Sprintf("(process %d)", os.Getpid())) {
		t.Errorf("error %v, want one that names process %d", err, os.Getpid())
	}
	lock.Close()
	l.Apply(d, s) // and what failed is made good
	l.Holds(tableOf(s))
}
