// SPDX-License-Identifier: Apache-2.0

package podrunner

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

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

// BenchmarkHundredPods starts 100 Pods at once (FAIRLEAD_PODS: another number),
// and reports how long that takes, what it costs to have them, and how long a
// new agent takes to know them all.
func BenchmarkHundredPods(b *testing.B) {
	n := 100
	if s := os.Getenv("FAIRLEAD_PODS"); s != "" {
		n, _ = strconv.Atoi(s)
	}
	g := newRig(b)
	for b.Loop() {
		base := rss()
		var keys []types.NamespacedName
		begin := time.Now()
		for i := range n {
			keys = append(keys, g.pod(benchPod(fmt.Sprint("p", i))))
		}
		g.awaitAll(keys, n)
		b.ReportMetric(time.Since(begin).Seconds(), "start-s")
		time.Sleep(15 * time.Second) // the pace of the lists slows down
		used, wall := cpu(), time.Now()
		time.Sleep(10 * time.Second)
		b.ReportMetric(100*(cpu()-used).Seconds()/time.Since(wall).Seconds(), "idle-cpu-%")
		debug.FreeOSMemory()
		b.ReportMetric(float64(rss()-base)/(1<<20), "rss-more-MB")
		b.ReportMetric(float64(rss())/(1<<20), "rss-MB")
		g.stop()
		g.mu.Lock()
		clear(g.told)
		g.mu.Unlock()
		begin = time.Now()
		g.run()
		g.awaitAll(keys, n)
		b.ReportMetric(ms(time.Since(begin)), "recovery-ms")
		begin = time.Now()
		for _, key := range keys {
			g.remove(key)
		}
		g.until("all are removed", 10*patience, func() bool { return len(g.r.Pods()) == 0 })
		b.ReportMetric(time.Since(begin).Seconds(), "removal-s")
	}
	b.ReportMetric(0, "ns/op")
}

func (g *rig) awaitAll(keys []types.NamespacedName, n int) {
	g.until(fmt.Sprint(n, " Pods are ready"), 10*patience, func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		for _, key := range keys {
			if all := g.told[key]; len(all) == 0 || !ready(&all[len(all)-1]) || all[len(all)-1].Phase != corev1.PodRunning {
				return false
			}
		}
		return true
	})
}

// cpu is what this process has used.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// rss of this process in bytes.
func rss() int {
	runtime.GC()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		panic(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmRSS:" {
			kb, _ := strconv.Atoi(f[1])
			return kb << 10
		}
	}
	return 0
}
