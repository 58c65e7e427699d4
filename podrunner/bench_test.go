// SPDX-License-Identifier: Apache-2.0

package podrunner

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"fairlead.dev/podrunner/containerdtest"
)

// BenchmarkPodStart compares the start of a Pod, from OnPod to the status that
// says that it is ready, with the bare calls that start the same: in one run,
// in turn. It reports the medians, and of the Pods' beyond the calls.
func BenchmarkPodStart(b *testing.B) {
	g := newRig(b)
	bare := g.rt.NewBare(b)
	key := g.pod(benchPod("warm"))
	g.await(key, "ready", ready)
	g.remove(key)
	var calls, pods []time.Duration
	i := 0
	for b.Loop() {
		calls = append(calls, startBare(b, bare, i))
		begin := time.Now()
		key := g.pod(benchPod(fmt.Sprint("p", i)))
		g.await(key, "ready", ready)
		pods = append(pods, time.Since(begin))
		g.remove(key)
		g.until("it is removed", patience, func() bool { return len(g.r.Pods()) == 0 })
		i++
	}
	b.ReportMetric(ms(median(calls)), "calls-p50-ms")
	b.ReportMetric(ms(median(pods)), "pod-p50-ms")
	b.ReportMetric(ms(median(pods)-median(calls)), "beyond-p50-ms")
	b.ReportMetric(0, "ns/op")
}

func benchPod(name string) string {
	return `{metadata: {name: ` + name + `}, spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: IMAGE, args: [sleep], resources: {requests: {cpu: 10m, memory: 8Mi}}}]}}`
}

func median(d []time.Duration) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[len(d)/2]
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// startBare starts one Pod by the bare calls, and removes it.
func startBare(b *testing.B, bare *containerdtest.Bare, i int) time.Duration {
	sandbox, took, err := bare.Start(b.Context(), fmt.Sprint("bare", i))
	if err != nil {
		b.Fatal(err)
	}
	if err := bare.Remove(b.Context(), sandbox); err != nil {
		b.Fatal(err)
	}
	return took
}
