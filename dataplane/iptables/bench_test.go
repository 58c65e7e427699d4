// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
)

// cpu is what this process and its commands used of CPUs so far.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var sum time.Duration
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var r unix.Rusage
		if err := unix.Getrusage(who, &r); err != nil {
			b.Fatal(err)
		}
		sum += time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	return sum
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// benchmarkSizes are numbers of Services, of ten Backends each.
var benchmarkSizes = []int{1000, 10000}

func forEachSize(b *testing.B, f func(b *testing.B, l *lab, services int)) {
	for _, flavour := range bothFlavours {
		for _, n := range benchmarkSizes {
			b.Run(fmt.Sprintf("%s/services=%d", flavour, n), func(b *testing.B) { f(b, newLab(b, flavour), n) })
		}
	}
}

// BenchmarkLoad is a first Sync, and then the full check that finds nothing.
func BenchmarkLoad(b *testing.B) {
	forEachSize(b, func(b *testing.B, l *lab, services int) {
		tab := synthetic(services, 10)
		for b.Loop() {
			d := l.open()
			for _, unit := range []string{"load", "check"} {
				start, used := time.Now(), cpu(b)
				n, err := d.Sync(context.Background(), tab)
				if err != nil || (n == 0) != (unit == "check") {
					b.Fatal(n, err)
				}
				b.ReportMetric(milliseconds(time.Since(start)), "ms/"+unit)
				b.ReportMetric(milliseconds(cpu(b)-used), "CPUms/"+unit)
			}
			d.Close()
			if _, err := Cleanup(l.options); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkApplyOneChange is an endpoint that comes and goes.
func BenchmarkApplyOneChange(b *testing.B) {
	forEachSize(b, func(b *testing.B, l *lab, services int) {
		d := l.open()
		if _, err := d.Sync(context.Background(), synthetic(services, 10)); err != nil {
			b.Fatal(err)
		}
		changes := []dataplane.Change{{Services: synthetic(1, 9).Services}, {Services: synthetic(1, 10).Services}}
		used, i := cpu(b), 0
		for b.Loop() {
			if err := d.Apply(context.Background(), changes[i&1]); err != nil {
				b.Fatal(err)
			}
			i++
		}
		b.ReportMetric(milliseconds(cpu(b)-used)/float64(b.N), "CPUms/op")
	})
}

// BenchmarkApplyAChangeAlone is the same with time between, as changes of users
// come: what the kernel does of one afterwards is not in the way of the next.
func BenchmarkApplyAChangeAlone(b *testing.B) {
	forEachSize(b, func(b *testing.B, l *lab, services int) {
		d := l.open()
		if _, err := d.Sync(context.Background(), synthetic(services, 10)); err != nil {
			b.Fatal(err)
		}
		changes := []dataplane.Change{{Services: synthetic(1, 9).Services}, {Services: synthetic(1, 10).Services}}
		var took []time.Duration
		for b.Loop() {
			time.Sleep(100 * time.Millisecond)
			start := time.Now()
			if err := d.Apply(context.Background(), changes[len(took)&1]); err != nil {
				b.Fatal(err)
			}
			took = append(took, time.Since(start))
		}
		slices.Sort(took)
		b.ReportMetric(milliseconds(took[len(took)/2]), "ms/median")
	})
}

// BenchmarkFirstPacket sends datagrams from new ports to Services, and to an
// address that is none, by the tree and by a list as long as there are
// Services. The nearest there is to a packet's way through the rules alone: a
// new flow through loopback, less one without any rule.
func BenchmarkFirstPacket(b *testing.B) {
	forEachSize(b, func(b *testing.B, l *lab, services int) {
		toLoopback(b)
		tab := synthetic(services, 1)
		local := dataplane.Backend{Address: netip.MustParseAddr("127.0.0.1"), Port: 9}
		for _, s := range tab.Services {
			f := &s.Frontends[0]
			f.Protocol = dataplane.UDP
			f.Internal = dataplane.BackendSet{Backends: []dataplane.Backend{local}}
			f.External = f.Internal
		}
		measure := func(name string, to netip.Addr) {
			b.Run(name, func(b *testing.B) {
				for b.Loop() {
					send(b, to)
				}
			})
		}
		last := netip.AddrFrom4([4]byte{10, 96, byte((services - 1) >> 8), byte(services - 1)})
		none := netip.MustParseAddr("198.51.100.7")
		measure("no rules", last)
		d := l.open()
		if _, err := d.Sync(context.Background(), tab); err != nil {
			b.Fatal(err)
		}
		measure("tree, last Service", last)
		measure("tree, no Service", none)
		l.restore(d, linear(tab))
		measure("list, last Service", last)
		measure("list, no Service", none)
	})
}

func send(b *testing.B, to netip.Addr) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Sendto(fd, []byte{0}, 0, &unix.SockaddrInet4{Addr: to.As4(), Port: 80})
		unix.Close(fd)
	}
	if err != nil {
		b.Fatal(err)
	}
}

// linear replaces the tree by one chain with all Services.
func linear(t *dataplane.Table) []byte {
	var in bytes.Buffer
	fmt.Fprintf(&in, "*nat\n:%s - [0:0]\n", treeAddresses)
	for i := range len(t.Services) {
		s := t.Services[dataplane.ServiceName{Namespace: "default", Name: fmt.Sprintf("s%05d", i)}]
		f := s.Frontends[0]
		fmt.Fprintf(&in, "-A %s %s %s -j %s\n", treeAddresses, destination(f.Address), portKey{f.Protocol, f.Port}.match(), numbered(prefixPort, portHash(s.Name, f.PortName), 0))
	}
	in.WriteString("COMMIT\n")
	return in.Bytes()
}

func (l *lab) restore(d *Dataplane, rules []byte) {
	l.T.Helper()
	if err := d.families[0].tool.restore(context.Background(), rules, DefaultLockWait); err != nil {
		l.T.Fatal(err)
	}
}
