// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"time"

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
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				if err := d.Apply(context.Background(), changes[i&1]); err != nil {
					b.Fatal(err)
				}
				i++
			}
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
				start := time.Now()
				if got, err := d.Sync(context.Background(), tab); got != want || err != nil {
					b.Fatalf("%s: %d Frontends changed, error %v", what, got, err)
				}
				b.ReportMetric(float64(time.Since(start).Microseconds())/1000, "ms/"+what)
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
