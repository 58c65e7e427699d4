// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
)

func listenTCP(t testing.TB, address string) (netip.AddrPort, net.Listener) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Write([]byte("hello"))
			c.Close()
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort(), l
}

func TestConnectToAClusterIPReachesItsBackendAndSeesTheServiceAddress(t *testing.T) {
	for _, tc := range []struct{ name, frontend, backend, network string }{
		{"IPv4", "10.96.0.10:80", "127.0.0.1:0", "tcp4"},
		{"IPv6", "[fd00:10:96::a]:80", "[::1]:0", "tcp6"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLab(t)
			addr, _ := listenTCP(t, tc.backend)
			d := l.open()
			b := dataplane.Backend{Address: addr.Addr(), Port: addr.Port()}
			tab := table(clusterIP("web", tc.frontend, dataplane.TCP, b))
			if n, err := d.Sync(context.Background(), tab); err != nil || n != 2 {
				t.Fatalf("Sync: changed %d (want 2: the Frontend and its other ports), error %v", n, err)
			}
			l.holds(tab)
			c, err := dial(tc.network, tc.frontend)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if got := c.RemoteAddr().String(); got != tc.frontend {
				t.Errorf("getpeername says %s, want the Service's %s", got, tc.frontend)
			}
		})
	}
}

// dial connects on the test's own thread, which is in the lab's namespace.
func dial(network, address string) (net.Conn, error) {
	ap := netip.MustParseAddrPort(address)
	var sa unix.Sockaddr = &unix.SockaddrInet6{Port: int(ap.Port()), Addr: ap.Addr().As16()}
	family := unix.AF_INET6
	if ap.Addr().Is4() {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}
	}
	kind := unix.SOCK_STREAM
	if network[:3] == "udp" {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, sa); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return fileConn(fd)
}

func TestConnectIsRefusedAtOnce(t *testing.T) {
	l := newLab(t)
	d := l.open()
	tab := table(clusterIP("empty", "10.96.0.11:80", dataplane.TCP))
	if _, err := d.Sync(context.Background(), tab); err != nil {
		t.Fatal(err)
	}
	for name, address := range map[string]string{
		"a Service without Backends":  "10.96.0.11:80",
		"another port of a ClusterIP": "10.96.0.11:81",
	} {
		start := time.Now()
		_, err := dial("tcp4", address)
		if !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("connect to %s (%s): %v, want connection refused", address, name, err)
		}
		if took := time.Since(start); took > 50*time.Millisecond {
			t.Errorf("connect to %s (%s) took %v to be refused", address, name, took)
		}
	}
}

func TestConnectedUDPSocketOfARemovedBackendIsEnded(t *testing.T) {
	l := newLab(t)
	d := l.open()
	ctx := context.Background()
	server, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	addr := server.LocalAddr().(*net.UDPAddr).AddrPort()
	with := clusterIP("dns", "10.96.0.53:53", dataplane.UDP, dataplane.Backend{Address: addr.Addr(), Port: addr.Port()})
	if _, err := d.Sync(ctx, table(with)); err != nil {
		t.Fatal(err)
	}
	c, err := dial("udp4", "10.96.0.53:53")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("?")); err != nil {
		t.Fatal(err)
	}
	direct, err := dial("udp4", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close()
	without := clusterIP("dns", "10.96.0.53:53", dataplane.UDP, backends("127.0.0.2:53")...)
	if err := d.Apply(ctx, dataplane.Change{Services: map[dataplane.ServiceName]*dataplane.Service{with.Name: without}}); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(time.Second)
	for {
		if _, err := c.Write([]byte("?")); err != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a second after its Backend was removed the socket still sends to it")
		}
		time.Sleep(time.Millisecond)
	}
	if _, err := direct.Write([]byte("?")); err != nil {
		t.Errorf("a socket connected to the same address without the Service was ended too: %v", err)
	}
}

func fileConn(fd int) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	return net.FileConn(f)
}
