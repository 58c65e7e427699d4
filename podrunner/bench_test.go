// SPDX-License-Identifier: Apache-2.0

package podrunner

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"fairlead.dev/podrunner/containerdtest"
	"fairlead.dev/podrunner/podspec"
)

// BenchmarkPodStart compares the start of a Pod, from OnPod to the status that
// says that it is ready, with the bare calls that start the same: in one run,
// in turn. It reports the medians, and of the Pods' beyond the calls: those of a
// minimal client, and those with what the runner asks for too, which the runtime
// has to do (the sandbox's seccomp filter, /etc/hosts), without and with the
// filter. What is beyond the same calls is the runner's own.
func BenchmarkPodStart(b *testing.B) {
	g := newRig(b)
	bare := g.rt.NewBare(b)
	key := g.pod(benchPod("warm"))
	g.await(key, "ready", ready)
	image := g.r.Pod(key).Status.ContainerStatuses[0].ImageID
	g.remove(key)
	var calls, same, open, pods []time.Duration
	i := 0
	for b.Loop() {
		calls = append(calls, startBare(b, bare, i))
		same = append(same, g.startSame(bare, image, fmt.Sprint("same", i), true))
		open = append(open, g.startSame(bare, image, fmt.Sprint("open", i), false))
		begin := time.Now()
		key := g.pod(benchPod(fmt.Sprint("p", i)))
		g.await(key, "ready", ready)
		pods = append(pods, time.Since(begin))
		g.remove(key)
		g.until("it is removed", patience, func() bool { return len(g.r.Pods()) == 0 })
		i++
	}
	b.ReportMetric(ms(median(calls)), "calls-p50-ms")
	b.ReportMetric(ms(median(open)), "same-calls-unconfined-sandbox-p50-ms")
	b.ReportMetric(ms(median(same)), "same-calls-p50-ms")
	b.ReportMetric(ms(median(pods)), "pod-p50-ms")
	b.ReportMetric(ms(median(pods)-median(calls)), "beyond-p50-ms")
	b.ReportMetric(ms(median(pods)-median(same)), "beyond-same-p50-ms")
	b.ReportMetric(ratio(pods, calls), "pod/calls")
	b.ReportMetric(ratio(pods, same), "pod/same")
	b.ReportMetric(ratio(same, open), "same/unconfined")
	b.ReportMetric(0, "ns/op")
}

// startSame starts by bare calls what the runner would start, and removes it.
func (g *rig) startSame(bare *containerdtest.Bare, image, name string, confined bool) time.Duration {
	g.t.Helper()
	ctx := g.t.Context()
	pod := parsePod(g.t, benchPod(name))
	Default(pod)
	pod.UID = types.UID(name)
	f := g.o.Facts()
	f.Features = g.r.features()
	sandbox, err := podspec.Sandbox(pod, 0, &f)
	if err != nil {
		g.t.Fatal(err)
	}
	var mounts []*runtimeapi.Mount
	for _, inside := range []string{"/etc/hosts", "/dev/termination-log"} {
		file := filepath.Join(g.rt.Dir, name+"-"+filepath.Base(inside))
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			g.t.Fatal(err)
		}
		mounts = append(mounts, &runtimeapi.Mount{HostPath: file, ContainerPath: inside})
	}
	c, err := podspec.Container(ctx, pod, &pod.Spec.Containers[0], podspec.ContainerInput{ImageRef: image, Mounts: mounts}, &f, noObjects{})
	if err != nil {
		g.t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(filepath.Join(sandbox.LogDirectory, c.LogPath)), 0o755); err != nil {
		g.t.Fatal(err)
	}
	// The Runner would end what has a Pod's UID.
	delete(sandbox.Labels, podspec.LabelPodUID)
	delete(c.Labels, podspec.LabelPodUID)
	if !confined {
		sandbox.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
	}
	id, took, err := bare.StartAs(ctx, sandbox, c)
	if err != nil {
		g.t.Fatal(err)
	}
	err = errors.Join(bare.Remove(ctx, id), os.RemoveAll(sandbox.LogDirectory), g.r.cgroups.remove(pod.UID, sandbox.Linux.CgroupParent))
	if err != nil {
		g.t.Fatal(err)
	}
	return took
}

func benchPod(name string) string {
	return `{metadata: {name: ` + name + `}, spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: IMAGE, args: [sleep], resources: {requests: {cpu: 10m, memory: 8Mi}}}]}}`
}

func median(d []time.Duration) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[len(d)/2]
}

// ratio is the median of what the rounds say: a load that comes and goes is in
// both of a round.
func ratio(a, b []time.Duration) float64 {
	var r []float64
	for i := range a {
		r = append(r, float64(a[i])/float64(b[i]))
	}
	slices.Sort(r)
	return r[len(r)/2]
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
