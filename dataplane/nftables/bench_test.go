// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
)

var sizes = []int{1000, 10000, 40000}

// BenchmarkApply is one endpoint added or removed, of Services with ten.
func BenchmarkApply(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprintf("services=%d", n), func(b *testing.B) {
			l := newLab(b)
			d := l.open()
			if _, err := d.Sync(context.Background(), syntheticTable(n, 10)); err != nil {
				b.Fatal(err)
			}
			one, two := syntheticTable(1, 10), syntheticTable(1, 9)
			changes := []dataplane.Change{{Services: two.Services}, {Services: one.Services}}
			var took []time.Duration
			b.ReportAllocs()
			for b.Loop() {
				start := time.Now()
				if err := d.Apply(context.Background(), changes[len(took)&1]); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(start))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "us/median")
		})
	}
}

// BenchmarkSync is a load of an empty kernel, a full check of it, and what a new
// process does that finds it.
func BenchmarkSync(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprintf("services=%d", n), func(b *testing.B) {
			l := newLab(b)
			tab := syntheticTable(n, 10)
			clock := func(what string, d *Dataplane, want int) {
				start, cpu := time.Now(), cpuTime(b)
				if got, err := d.Sync(context.Background(), tab); got != want || err != nil {
					b.Fatalf("%s: %d Frontends changed, error %v", what, got, err)
				}
				b.ReportMetric(float64(time.Since(start).Microseconds())/1000, "ms/"+what)
				b.ReportMetric(float64((cpuTime(b)-cpu).Microseconds())/1000, "cpu-ms/"+what)
			}
			for b.Loop() {
				d := l.open()
				var before, after runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&before)
				clock("load", d, n)
				runtime.GC()
				runtime.ReadMemStats(&after)
				b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/1e6, "MB-kept")
				clock("check", d, 0)
				d.Close()
				d = l.open()
				clock("restart", d, 0)
				start := time.Now()
				if _, err := Cleanup(l.options); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(time.Since(start).Microseconds())/1000, "ms/cleanup")
				d.Close()
			}
		})
	}
}

// BenchmarkNftCommand is what the nft command takes for a change of two elements,
// for docs/decisions/0007: the commands of a Dataplane that would run it.
func BenchmarkNftCommand(b *testing.B) {
	if _, err := exec.LookPath("nft"); err != nil {
		b.Skip("no nft here")
	}
	for _, n := range sizes[:2] {
		b.Run(fmt.Sprintf("services=%d", n), func(b *testing.B) {
			l := newLab(b)
			d := l.open()
			if _, err := d.Sync(context.Background(), syntheticTable(n, 10)); err != nil {
				b.Fatal(err)
			}
			const key = "10.96.0.0 . tcp . 80 . 0x00000009"
			for b.Loop() {
				c := exec.Command("nft", "-f", "-")
				c.Stdin = strings.NewReader("delete element ip fairlead slots { " + key + " }\nadd element ip fairlead slots { " + key + " : 10.1.1.1 . 80 }\n")
				if out, err := c.CombinedOutput(); err != nil {
					b.Fatalf("%v: %s", err, out)
				}
			}
		})
	}
}

// BenchmarkVerdictMap is a change of one element of a map from Frontends to
// verdicts, which the kernel has to validate as a whole, for docs/decisions/0007.
func BenchmarkVerdictMap(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprintf("services=%d", n), func(b *testing.B) {
			newLab(b)
			k, err := openSocket()
			if err != nil {
				b.Fatal(err)
			}
			defer k.close()
			f := families[0]
			l := f.layout(1)[setFrontends]
			l.data = []field{{typeVerdict, 0}}
			element := func(i int) *element {
				key := appendTuple(nil, dataplane.FrontendKey{Address: netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}), Port: 80, Protocol: dataplane.TCP})
				return &element{key: key, chain: "pick-2"}
			}
			err = k.commit(func(m *messages) {
				m.begin(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, f.proto)
				m.text(unix.NFTA_TABLE_NAME, tableName)
				m.end()
				l.add(m, f, setFrontends)
				pick := chain{name: "pick-2", rules: []rule{line("", drop())}}
				base := chain{chainOutput, &hook{"nat", unix.NF_INET_LOCAL_OUT, priorityDNAT}, []rule{line("", f.tuple(), obey(0, setFrontends))}}
				for _, c := range []chain{pick, base} {
					c.add(m, f)
					if err := c.fill(m, f); err != nil {
						b.Fatal(err)
					}
				}
				var all elementList
				for i := range n {
					all.add(element(i))
				}
				all.change(m, msgAddElements, f, setFrontends)
			})
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				err := k.commit(func(m *messages) {
					var one elementList
					one.add(element(7))
					one.change(m, msgDeleteElements, f, setFrontends)
					one.change(m, msgAddElements, f, setFrontends)
				})
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// cpuTime is what the process took of CPUs: machines are shared.
func cpuTime(b *testing.B) time.Duration {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
