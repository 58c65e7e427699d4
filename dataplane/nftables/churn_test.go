// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"context"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
)

// listen serves on loopback addresses of the lab: each connection is told which.
func (l *lab) listen(at ...string) {
	l.T.Helper()
	for _, a := range at {
		ln, err := net.Listen("tcp", a)
		if err != nil {
			l.T.Fatal(err)
		}
		l.T.Cleanup(func() { ln.Close() })
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(c, a)
				c.Close()
			}
		}()
	}
}

// addresses gives loopback addresses, from which the lab's processes speak to
// those of Services: what is not translated reaches nobody.
func (l *lab) addresses(at ...string) {
	l.T.Helper()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		l.T.Fatal(err)
	}
	for _, a := range at {
		if err := netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(a), Mask: net.CIDRMask(32, 32)}}); err != nil {
			l.T.Fatal(err)
		}
	}
	_, services, _ := net.ParseCIDR("10.96.0.0/16")
	route := &netlink.Route{LinkIndex: lo.Attrs().Index, Dst: services, Scope: unix.RT_SCOPE_LINK, Src: net.ParseIP(at[0])}
	if err := netlink.RouteAdd(route); err != nil {
		l.T.Fatal(err)
	}
}

// connect asks from the calling thread's network namespace, and returns which
// Backend answered.
func connect(to netip.AddrPort) (string, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	// SYNs are repeated after a second: a packet that was lost is a failure here.
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Usec: 900000})
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 900000})
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	err = unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
	if err == unix.EINTR { // Go's scheduler; the connection goes on being made
		err = nil
	}
	if err != nil {
		return "", err
	}
	b := make([]byte, 64)
	n, err := unix.Read(fd, b)
	for deadline := time.Now().Add(time.Second); (err == unix.EINTR || err == unix.ENOTCONN) && time.Now().Before(deadline); {
		n, err = unix.Read(fd, b)
	}
	return string(b[:max(n, 0)]), err
}

func TestNoConnectionFailsWhileBackendsChange(t *testing.T) {
	l := newLab(t)
	l.addresses("10.244.1.1", "10.244.1.2", "10.244.1.3", "10.244.1.4", "10.244.1.5", "10.244.1.6")
	live := []string{"10.244.1.2:8080", "10.244.1.3:8080", "10.244.1.4:8080", "10.244.1.5:8080", "10.244.1.6:8080"}
	l.listen(live...)
	d := l.open()
	for _, affinity := range []uint32{0, 3600} {
		// How many there are changes each time, and which; one stays.
		var states []*dataplane.Service
		for _, at := range [][]string{live[:1], live[:3], {live[0], live[2]}, live, {live[0], live[3], live[4]}, live[:2]} {
			s := clusterIP("web", "10.96.0.10:80", dataplane.TCP, backends(at...)...)
			s.Frontends[0].AffinitySeconds = affinity
			states = append(states, s)
		}
		if _, err := d.Sync(context.Background(), table(states[0])); err != nil {
			t.Fatal(err)
		}
		stop, done := make(chan struct{}), make(chan error, 1)
		var applied atomic.Int64
		go func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					done <- nil
					return
				default:
				}
				s := states[i%len(states)]
				if err := d.Apply(context.Background(), dataplane.Change{Services: map[dataplane.ServiceName]*dataplane.Service{s.Name: s}}); err != nil {
					done <- err
					return
				}
				applied.Add(1)
				time.Sleep(time.Millisecond)
			}
		}()
		connections := 0
		for start := time.Now(); time.Since(start) < 3*time.Second; connections++ {
			if _, err := connect(netip.MustParseAddrPort("10.96.0.10:80")); err != nil {
				t.Errorf("connection %d, after %d Changes: %v", connections, applied.Load(), err)
			}
		}
		close(stop)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		t.Logf("affinity %d s: %d connections during %d Changes", affinity, connections, applied.Load())
		if connections < 100 || applied.Load() < 50 {
			t.Errorf("%d connections during %d Changes prove nothing", connections, applied.Load())
		}
	}
}

func TestRemovedBackendGetsNoConnectionAfterApply(t *testing.T) {
	l := newLab(t)
	l.addresses("10.244.1.1", "10.244.1.2", "10.244.1.3")
	l.listen("10.244.1.2:8080", "10.244.1.3:8080")
	d := l.open()
	both := clusterIP("web", "10.96.0.10:80", dataplane.TCP, backends("10.244.1.2:8080", "10.244.1.3:8080")...)
	one := clusterIP("web", "10.96.0.10:80", dataplane.TCP, backends("10.244.1.3:8080")...)
	l.Sync(d, table(both), 1)
	for range 50 {
		l.Apply(d, one)
		for range 4 {
			if got, err := connect(netip.MustParseAddrPort("10.96.0.10:80")); got != "10.244.1.3:8080" {
				t.Fatalf("answer of %q, %v; the Backend was removed", got, err)
			}
		}
		l.Apply(d, both)
	}
}
