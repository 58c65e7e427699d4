// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"fairlead.dev/controller/source"
)

// BenchmarkEndpointFlip is from the Source's call until the Dataplane's Apply
// is called, for one EndpointSlice of 10 endpoints that changed among so many
// Services.
func BenchmarkEndpointFlip(b *testing.B) {
	for _, n := range []int{100, 1_000, 10_000} {
		b.Run(fmt.Sprintf("services=%d", n), func(b *testing.B) {
			a := newAgent(b, nil)
			a.model.Forget()
			ten := func(i, last int) []string {
				out := make([]string, 10)
				for j := range out {
					out[j] = fmt.Sprintf("10.%d.%d.%d", 128+i>>8, i&255, j+1)
				}
				out[9] = fmt.Sprintf("10.%d.%d.%d", 128+i>>8, i&255, last)
				return out
			}
			a.source.do(func(h source.Handler) {
				for i := 1; i <= n; i++ {
					give(h, i, ten(i, 10)...)
				}
				h.OnSynced()
			})
			eventually(b, "first Sync", func() bool { return a.progress.condition().synced })
			applied := make(chan struct{}, 1)
			a.model.OnCall(func() { applied <- struct{}{} })
			took := make([]time.Duration, 0, b.N)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				b.StopTimer()
				i++
				s := testSlice(1+i%n, ten(1+i%n, 100+i%2+i/n%100)...)
				key := keyOf(s.Name)
				b.StartTimer()
				begin := time.Now()
				a.OnEndpointSlice(key, s)
				<-applied
				took = append(took, time.Since(begin))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
		})
	}
}
