// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"fairlead.dev/podrunner/containerdtest"
)

// manifestOf a Pod that costs little.
func manifestOf(name string) string {
	return `{apiVersion: v1, kind: Pod, metadata: {name: ` + name + `}, spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: "` +
		containerdtest.Image + `", args: [sleep], resources: {requests: {cpu: 1m, memory: 1Mi}}}]}}`
}

// BenchmarkPodStart compares the start of a Pod by the agent, from the rename of
// its file to the answer of `fairlead pods`' socket that it is ready, with the
// bare calls that start the same: in one run, in turn.
func BenchmarkPodStart(b *testing.B) {
	n := newNode(b)
	n.start()
	n.await("the agent answers", func(pods map[string]*corev1.Pod) bool { return pods != nil })
	bare, asking := n.rt.NewBare(b), n.socket()
	var calls, pods []time.Duration
	for i := 0; b.Loop(); i++ {
		sandbox, took, err := bare.Start(b.Context(), fmt.Sprint("bare", i))
		if err != nil {
			b.Fatal(err)
		}
		if err := bare.Remove(b.Context(), sandbox); err != nil {
			b.Fatal(err)
		}
		file := fmt.Sprint("p", i, ".yaml")
		begin := time.Now()
		n.write(file, manifestOf(fmt.Sprint("p", i)))
		asking.until(n, "the Pod is ready", 3*time.Millisecond, func(all []corev1.Pod) bool { return len(all) == 1 && ready(&all[0]) })
		if i > 0 { // the first one warms up
			calls, pods = append(calls, took), append(pods, time.Since(begin))
		}
		n.remove(file)
		asking.until(n, "the Pod is gone", 3*time.Millisecond, func(all []corev1.Pod) bool { return len(all) == 0 })
	}
	b.ReportMetric(ms(median(calls)), "calls-p50-ms")
	b.ReportMetric(ms(median(pods)), "pod-p50-ms")
	b.ReportMetric(ms(median(pods)-median(calls)), "beyond-p50-ms")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkHundredPods fills a node: by the bare calls of a minimal client, all
// at once, and then by the agent. It reports what each took, and of the agent
// what it costs to have them and how long a new one takes to know them all.
func BenchmarkHundredPods(b *testing.B) {
	n := newNode(b)
	for b.Loop() {
		b.ReportMetric(n.fillBare().Seconds(), "bare-start-s")
		n.start()
		asking := n.socket()
		asking.until(n, "the agent answers", 10*time.Millisecond, func([]corev1.Pod) bool { return true })
		_, empty := n.memory()
		b.ReportMetric(empty, "rss-empty-MiB")
		begin, used := time.Now(), n.cpu()
		n.write("all.yaml", fill())
		// Not asked more often: 100 Pods are 300 kB of JSON.
		asking.until(n, "100 Pods are ready", 500*time.Millisecond, full)
		b.ReportMetric(time.Since(begin).Seconds(), "start-s")
		b.ReportMetric((n.cpu() - used).Seconds(), "start-cpu-s")
		time.Sleep(20 * time.Second) // the pace of the lists slows down
		wall := time.Now()
		used = n.cpu()
		time.Sleep(30 * time.Second)
		b.ReportMetric(100*(n.cpu()-used).Seconds()/time.Since(wall).Seconds(), "idle-cpu-%")
		anonymous, all := n.memory()
		b.ReportMetric(all, "rss-MiB")
		b.ReportMetric(anonymous, "rss-anon-MiB")
		n.kill()
		begin = time.Now()
		n.start()
		asking.until(n, "100 Pods are ready", 5*time.Millisecond, full)
		b.ReportMetric(ms(time.Since(begin)), "recovery-ms")
		begin = time.Now()
		n.remove("all.yaml")
		asking.until(n, "all Pods are gone", 500*time.Millisecond, func(all []corev1.Pod) bool { return len(all) == 0 })
		b.ReportMetric(time.Since(begin).Seconds(), "removal-s")
		n.stop()
	}
	b.ReportMetric(0, "ns/op")
}

// fillBare starts as many Pods by bare calls, all at once, and removes them.
func (n *node) fillBare() time.Duration {
	n.Helper()
	bare := n.rt.NewBare(n)
	ctx := context.Background()
	var group sync.WaitGroup
	sandboxes := make([]string, hundred)
	begin := time.Now()
	for i := range hundred {
		group.Go(func() {
			var err error
			if sandboxes[i], _, err = bare.Start(ctx, fmt.Sprint("bare", i)); err != nil {
				n.Error(err)
			}
		})
	}
	group.Wait()
	took := time.Since(begin)
	for _, s := range sandboxes {
		group.Go(func() {
			if err := bare.Remove(ctx, s); err != nil {
				n.Error(err)
			}
		})
	}
	group.Wait()
	return took
}

// remove removes a manifest.
func (n *node) remove(name string) {
	n.Helper()
	if err := os.Remove(filepath.Join(n.manifests, name)); err != nil {
		n.Fatal(err)
	}
}

// socket asks the agent as `fairlead pods` does, without a process each time.
type socket struct{ client *http.Client }

func (n *node) socket() *socket {
	path := filepath.Join(n.rt.Root, "pods.sock")
	return &socket{&http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
	}}}
}

// until asks at this pace until the Pods are as the condition wants them.
func (s *socket) until(n *node, what string, pace time.Duration, cond func([]corev1.Pod) bool) {
	n.Helper()
	for begin := time.Now(); ; time.Sleep(pace) {
		if resp, err := s.client.Get("http://fairlead/pods"); err == nil {
			var all []corev1.Pod
			err := json.NewDecoder(resp.Body).Decode(&all)
			resp.Body.Close()
			if err == nil && cond(all) {
				return
			}
		}
		select {
		case <-n.ended:
			n.Fatalf("the agent has ended while waiting until %s", what)
		default:
		}
		if time.Since(begin) > 10*patience {
			n.Fatalf("not within %v: %s", 10*patience, what)
		}
	}
}

// memory of the agent in MiB: what is its own, and all of it, with the pages of
// its binary.
func (n *node) memory() (anonymous, all float64) {
	n.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.agent.Process.Pid))
	if err != nil {
		n.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		kib, _ := strconv.ParseFloat(f[1], 64)
		switch f[0] {
		case "RssAnon:":
			anonymous = kib / 1024
		case "VmRSS:":
			all = kib / 1024
		}
	}
	return anonymous, all
}

// cpu is what the agent has used.
func (n *node) cpu() time.Duration {
	n.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.agent.Process.Pid))
	if err != nil {
		n.Fatal(err)
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	ticks := int64(0)
	for _, s := range f[11:13] {
		t, _ := strconv.ParseInt(s, 10, 64)
		ticks += t
	}
	return time.Duration(ticks) * (time.Second / 100) // USER_HZ: 0.03 % of 30 s
}

func median(d []time.Duration) time.Duration {
	d = slices.Sorted(slices.Values(d))
	if len(d) == 0 {
		return 0
	}
	return d[len(d)/2]
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
