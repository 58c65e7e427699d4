// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
)

// toLoopback routes the addresses of Services to loopback.
func toLoopback(t testing.TB) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	for _, cidr := range []string{"10.96.0.0/16", "198.51.100.0/24"} {
		_, dst, _ := net.ParseCIDR(cidr)
		route := &netlink.Route{LinkIndex: lo.Attrs().Index, Dst: dst, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST}
		if err := netlink.RouteAdd(route); err != nil {
			t.Fatal(err)
		}
	}
}

// connect makes a TCP connection in the thread's namespace.
func connect(to string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	at := netip.MustParseAddrPort(to)
	for {
		if err = unix.Connect(fd, &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}); err != unix.EINTR {
			return err
		}
	}
}

func TestCountersAndAffinityAreReadWithoutTheAgent(t *testing.T) {
	forEachFlavour(t, func(t *testing.T, l *lab) {
		toLoopback(t)
		server, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		backend := netip.MustParseAddrPort(server.Addr().String())
		web := clusterIP("web", "10.96.0.1:80", dataplane.TCP, dataplane.Backend{Address: backend.Addr(), Port: backend.Port(), HostNetwork: true})
		web.Frontends[0].AffinitySeconds = 600
		d := l.open()
		l.Sync(d, tableOf(web, clusterIP("empty", "10.96.0.2:80", dataplane.TCP)), 2)
		for range 3 {
			if err := connect("10.96.0.1:80"); err != nil {
				t.Fatalf("connect to the Service: %v", err)
			}
		}
		for _, to := range []string{"10.96.0.2:80", "10.96.0.1:81"} {
			if err := connect(to); err != unix.ECONNREFUSED {
				t.Fatalf("connect to %s: %v, want it refused", to, err)
			}
		}
		// Another Backend does not begin the count anew.
		web2 := *web
		web2.Frontends = append([]dataplane.Frontend{}, web.Frontends...)
		both := append(backends("10.244.1.9:1"), web.Frontends[0].Internal.Backends...)
		web2.Frontends[0].Internal, web2.Frontends[0].External = dataplane.BackendSet{Backends: both}, dataplane.BackendSet{Backends: both}
		l.Apply(d, &web2)
		d.Close()

		r, err := Read(l.options)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		rows, drops, err := r.Counters()
		if err != nil {
			t.Fatal(err)
		}
		if len(rows) != 2 || rows[0].Service != "default/empty" || rows[0].Connections != 0 || rows[1].PortName != "http" || rows[1].Connections != 3 {
			t.Errorf("counters %+v, want 3 connections of default/web", rows)
		}
		want := map[string]uint64{"no_backends": 1, "unknown_port": 1, "no_local_backends": 0, "source_range": 0}
		for _, drop := range drops {
			if drop.Count != want[drop.Reason] {
				t.Errorf("%d drops for %s, want %d", drop.Count, drop.Reason, want[drop.Reason])
			}
		}
		clients, err := r.Affinity()
		if err != nil {
			t.Fatal(err)
		}
		if len(clients) != 1 || clients[0].Service != "default/web" || clients[0].Backend != backend || clients[0].IdleSeconds > 60 {
			t.Errorf("affinity %+v, want one client on %s, idle for no minute", clients, backend)
		}
		flows, err := r.Conntrack()
		if err != nil || len(flows) != 3 || flows[0].Backend != backend {
			t.Errorf("flows %+v, error %v; want three to %s", flows, err, backend)
		}
	})
}

func TestTheCollectorTellsConnectionsFromAnyThread(t *testing.T) {
	l := newLab(t, NFT)
	toLoopback(t)
	d := l.open()
	l.Sync(d, tableOf(clusterIP("empty", "10.96.0.2:80", dataplane.TCP)), 1)
	if err := connect("10.96.0.2:80"); err != unix.ECONNREFUSED {
		t.Fatalf("connect: %v, want it refused", err)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(d.Collector())
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.Metric {
			if f.GetName() == "fairlead_drops_total" && m.Label[0].GetValue() == "no_backends" && m.Counter.GetValue() == 1 {
				return
			}
		}
	}
	t.Errorf("no drop for no_backends in %v", families)
}

func TestTheFlavourIsTheOneThatTheMachineUses(t *testing.T) {
	for _, tc := range []struct {
		name  string
		setUp [][]string
		want  Flavour
	}{
		{"nothing", nil, NFT},
		{"the kubelet's hint in legacy, more rules in nft", [][]string{
			{"iptables-legacy", "-t", "mangle", "-N", "KUBE-IPTABLES-HINT"}, {"iptables-nft", "-A", "INPUT", "-j", "ACCEPT"}}, Legacy},
		{"the kubelet's hint in nft, more rules in legacy", [][]string{
			{"iptables-nft", "-t", "mangle", "-N", "KUBE-KUBELET-CANARY"}, {"iptables-legacy", "-A", "INPUT", "-j", "ACCEPT"}}, NFT},
		{"more rules in legacy", [][]string{{"iptables-legacy", "-A", "INPUT", "-j", "ACCEPT"}}, Legacy},
		{"as many in both", [][]string{{"iptables-legacy", "-A", "INPUT", "-j", "ACCEPT"}, {"iptables-nft", "-A", "INPUT", "-j", "ACCEPT"}}, NFT},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLab(t, Auto)
			for _, c := range tc.setUp {
				l.run(c[0], c[1:]...)
			}
			if got, err := detect(); got != tc.want || err != nil {
				t.Errorf("detected %q, error %v; want %q", got, err, tc.want)
			}
		})
	}
}

func TestCheckFindsWhatIsThereAndLeavesNothing(t *testing.T) {
	forEachFlavour(t, func(t *testing.T, l *lab) {
		before := l.rules()
		checks := Check(l.options)
		if ok, reason := dataplane.Usable(checks); !ok {
			t.Errorf("not usable: %s", reason)
		}
		for _, c := range checks {
			if !c.OK && c.Cost == "" {
				t.Errorf("%s is missing and nothing says what that costs", c.Name)
			}
			t.Logf("%-36s %t %s %s", c.Name, c.OK, c.Detail, c.Cost)
		}
		if after := l.rules(); after != before {
			t.Errorf("Check left\n%s", after)
		}
		if err := probe(l.options.Flavour, false, natRule("-m nosuchmatch")); err == nil {
			t.Error("a match that does not exist was found")
		}
	})
}

func TestCloseLeavesNoSocketAndNoGoroutineWaiting(t *testing.T) {
	forEachFlavour(t, func(t *testing.T, l *lab) {
		l.options.Devices = nil // with uplinks that are followed
		for range 3 {
			d := l.open()
			l.Sync(d, tableOf(), 0)
			closed := make(chan error, 1)
			go func() { closed <- d.Close() }()
			select {
			case err := <-closed:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(5 * time.Second):
				t.Fatal("Close waits")
			}
		}
	})
}
