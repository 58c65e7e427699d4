// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"context"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
)

func (l *lab) present() bool {
	l.T.Helper()
	there, err := Present(l.options)
	if err != nil {
		l.T.Fatal(err)
	}
	return there
}

func TestCleanupLeavesNothing(t *testing.T) {
	l := newLab(t)
	if l.present() {
		t.Fatal("present before it was made")
	}
	d := l.open()
	local := clusterIP("a", "127.0.0.1:30080", dataplane.TCP, backends("10.244.1.1:80")...)
	local.Frontends[0].Kind = dataplane.NodePort
	l.Sync(d, table(local), 1)
	if b, _ := os.ReadFile(routeLocalnet); strings.TrimSpace(string(b)) != "1" || !l.present() {
		t.Fatalf("route_localnet is %q with a Frontend on 127.0.0.1, present %t", b, l.present())
	}
	d.Close()
	removed, err := Cleanup(l.options)
	if err != nil || len(removed) != 3 {
		t.Errorf("Cleanup removed %v, error %v; want two tables and route_localnet", removed, err)
	}
	if b, _ := os.ReadFile(routeLocalnet); strings.TrimSpace(string(b)) != "0" || l.present() {
		t.Errorf("route_localnet is %q after Cleanup, present %t", b, l.present())
	}
	if removed, err := Cleanup(l.options); err != nil || len(removed) != 0 {
		t.Errorf("second Cleanup removed %v, error %v", removed, err)
	}
	if _, err := Read(l.options); err == nil || !strings.Contains(err.Error(), "there is no nftables table fairlead") {
		t.Errorf("Read after Cleanup: %v", err)
	}
}

func TestRouteLocalnetIsOnlyOnWhileItIsNeeded(t *testing.T) {
	l := newLab(t)
	at := func(address string) *dataplane.Service {
		s := clusterIP("a", address, dataplane.TCP, backends("10.244.1.1:80")...)
		s.Frontends[0].Kind = dataplane.NodePort
		return s
	}
	is := func(want string) {
		t.Helper()
		if b, _ := os.ReadFile(routeLocalnet); strings.TrimSpace(string(b)) != want {
			t.Fatalf("route_localnet is %q, want %q", b, want)
		}
	}
	d := l.open()
	l.Sync(d, table(at("192.0.2.1:30080")), 1)
	is("0")
	l.Apply(d, at("127.0.0.1:30080"))
	is("1")
	d.Close()
	d = l.open()
	l.Sync(d, table(at("127.0.0.1:30080")), 0)
	is("1")
	l.Apply(d, at("192.0.2.1:30080"))
	is("0")
	// Who had it on before keeps it.
	if err := setLocalnet(true); err != nil {
		t.Fatal(err)
	}
	l.Apply(d, at("127.0.0.1:30080"))
	l.Apply(d, at("192.0.2.1:30080"))
	is("1")
	l.Sync(d, table(at("192.0.2.1:30080")), 0)
}

func TestEstablishedConnectionsOutliveEmpty(t *testing.T) {
	l := newLab(t)
	l.addresses("10.244.1.1", "10.244.1.2")
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{10, 244, 1, 2}, Port: 8080}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 1); err != nil {
		t.Fatal(err)
	}
	d := l.open()
	web := clusterIP("web", "10.96.0.10:80", dataplane.TCP, backends("10.244.1.2:8080")...)
	l.Sync(d, table(web), 1)
	client, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(client)
	if err := unix.Connect(client, &unix.SockaddrInet4{Addr: [4]byte{10, 96, 0, 10}, Port: 80}); err != nil {
		t.Fatal(err)
	}
	server, _, err := unix.Accept(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(server)
	d.Close()
	if removed, err := Empty(l.options); err != nil || len(removed) != 2 {
		t.Fatalf("Empty removed %v, error %v", removed, err)
	}
	if l.present() {
		t.Error("present after Empty")
	}
	for _, s := range []int{client, server} {
		_ = unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 2})
	}
	for _, way := range [][2]int{{client, server}, {server, client}} {
		b := make([]byte, 8)
		if _, err := unix.Write(way[0], []byte("still")); err != nil {
			t.Fatal(err)
		}
		if n, err := unix.Read(way[1], b); err != nil || string(b[:n]) != "still" {
			t.Fatalf("over an established connection came %q, %v", b[:max(n, 0)], err)
		}
	}
	if got, err := connect(netip.MustParseAddrPort("10.96.0.10:80")); err == nil {
		t.Errorf("a new connection was answered by %q after Empty", got)
	}
	if removed, err := Cleanup(l.options); err != nil || len(removed) != 2 {
		t.Errorf("Cleanup removed %v, error %v", removed, err)
	}
}

func TestCheckFindsWhatIsHereAndLeavesNothing(t *testing.T) {
	l := newLab(t)
	checks := Check(l.options)
	if ok, reason := dataplane.Usable(checks); !ok {
		t.Errorf("not usable here: %s", reason)
	}
	if removed, err := Cleanup(l.options); err != nil || len(removed) > 0 {
		t.Errorf("Check left %v, error %v", removed, err)
	}
}

func TestAffinityAndCountersAreRead(t *testing.T) {
	l := newLab(t)
	l.addresses("10.244.1.1", "10.244.1.2", "10.244.1.3")
	l.listen("10.244.1.2:8080", "10.244.1.3:8080")
	d := l.open()
	sticky := clusterIP("sticky", "10.96.0.10:80", dataplane.TCP, backends("10.244.1.2:8080", "10.244.1.3:8080")...)
	sticky.Frontends[0].AffinitySeconds = 600
	// The same port by another way: the client stays with its Backend.
	second := sticky.Frontends[0]
	second.Kind, second.Address = dataplane.ExternalIP, netip.MustParseAddr("10.96.0.11")
	sticky.Frontends = append(sticky.Frontends, second)
	empty := clusterIP("empty", "10.96.0.12:80", dataplane.TCP)
	l.Sync(d, table(sticky, empty), 3)
	seen := map[string]int{}
	for i := range 12 {
		got, err := connect(netip.MustParseAddrPort([]string{"10.96.0.10:80", "10.96.0.11:80"}[i%2]))
		if err != nil {
			t.Fatal(err)
		}
		seen[got]++
	}
	if len(seen) != 1 {
		t.Errorf("answers of %v, want one Backend for one client, whatever Frontend it asks", seen)
	}
	if _, err := connect(netip.MustParseAddrPort("10.96.0.12:80")); err != unix.ECONNREFUSED {
		t.Errorf("no Backends: %v, want refused", err)
	}
	r, err := Read(l.options)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	affinity, err := r.Affinity()
	if err != nil || len(affinity) != 1 || seen[affinity[0].Backend.String()] != 12 || affinity[0].Service != "default/sticky" || affinity[0].Client != "10.244.1.1" {
		t.Errorf("affinity %+v, error %v; connected to %v", affinity, err, seen)
	}
	counters, drops, err := r.Counters()
	if err != nil || !slices.Contains(counters, dataplane.CounterRow{Service: "default/sticky", PortName: "http", Connections: 12}) {
		t.Errorf("counters %+v, error %v; want 12 connections of default/sticky", counters, err)
	}
	if !slices.Contains(drops, dataplane.DropRow{Reason: "no_backends", Count: 1}) {
		t.Errorf("drops %+v, want one for no_backends", drops)
	}
}

func TestForeignChangesAreNoticedAndOwnOnesNot(t *testing.T) {
	l := newLab(t)
	d := l.open()
	l.Sync(d, syntheticTable(500, 5), 500) // large enough for nobody to listen meanwhile
	one := clusterIP("s00000", "10.96.0.0:80", dataplane.TCP, backends("10.244.1.1:80")...)
	l.Apply(d, one)
	k, err := openSocket()
	if err != nil {
		t.Fatal(err)
	}
	defer k.close()
	other := families[0].in("somebody-else")
	if err := k.commit(func(m *messages) { _ = other.addDrain(m, &guardState{}) }); err != nil {
		t.Fatal(err)
	}
	select {
	case <-d.Drifted():
		t.Error("own changes, or somebody's own table, were taken for drift")
	case <-time.After(200 * time.Millisecond):
	}
	if err := k.commit(func(m *messages) {
		var tr transaction
		tr.slot(setSlots, one.Frontends[0].FrontendKey, 0, nil)
		tr.write(m)
	}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-d.Drifted():
	case <-time.After(time.Second):
		t.Error("a slot was deleted, and nobody noticed within a second")
	}
	if _, err := d.Sync(context.Background(), table(one)); err != nil {
		t.Fatal(err)
	}
	l.Holds(table(one))
}
