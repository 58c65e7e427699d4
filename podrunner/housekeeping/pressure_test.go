// SPDX-License-Identifier: Apache-2.0

package housekeeping

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"fairlead.dev/podrunner/node"
)

const mib = 1 << 20

func TestPodsAreEvictedForMemoryInTheKubeletsOrder(t *testing.T) {
	memory := corev1.ResourceMemory
	gauge := node.NewPressure(t.TempDir())
	w, k := newWorld(t, func(o *Options) { o.Pressure = gauge })
	for _, p := range []struct {
		name, request string
		priority      int32
		used          uint64 // MiB
	}{
		{"within", "500Mi", -5, 499},
		{"important", "10Mi", 5, 900},
		{"little-over", "10Mi", 0, 11},
		{"much-over", "100Mi", 0, 150},
		{"critical", "", 2_000_001_000, 999},
	} {
		made := pod(p.name, corev1.PodRunning, ask("c", p.request, "", memory))
		made.Spec.Priority = &p.priority
		w.pods = append(w.pods, made)
		w.container(p.name, p.name, "c", "x", running)
		w.stats[p.name] = uses(0, p.used*mib)
	}
	w.pods = append(w.pods, pod("pending", corev1.PodPending))
	w.image("unused", 1)
	w.memory = 100 * mib
	w.round(t, k, 0)
	if len(w.evicted) != 0 || gauge.Measure().Memory {
		t.Fatalf("evicted %v with just enough memory", w.evicted)
	}
	w.memory = 50 * mib
	var order []string
	seen := map[string]bool{}
	for range 5 {
		w.round(t, k, 10*time.Second)
		for _, p := range w.pods {
			if w.evicted[p.UID] != "" && !seen[p.Name] {
				seen[p.Name] = true
				order = append(order, p.Name)
				p.Status.Phase = corev1.PodFailed
			}
		}
	}
	if d := cmp.Diff([]string{"much-over", "little-over", "important", "within"}, order); d != "" {
		t.Errorf("order (-want +got):\n%s", d)
	}
	want := "Evicted 1s: The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. " +
		"Container c was using 150Mi, request is 100Mi, has larger consumption of memory. "
	if d := cmp.Diff(want, w.evicted["much-over"]); d != "" {
		t.Errorf("message (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]string{
		"Node node Warning EvictionThresholdMet: Attempting to reclaim memory",
		"Pod much-over Warning Evicted: " + strings.TrimPrefix(want, "Evicted 1s: "),
	}, w.events[:2]); d != "" {
		t.Errorf("events (-want +got):\n%s", d)
	}
	if w.removed != nil {
		t.Errorf("removed %v, which frees no memory", w.removed)
	}
	if p := gauge.Measure(); !p.Memory {
		t.Error("the Node's condition does not show the pressure")
	}
}

func TestOnePodIsEvictedAndTheOthersWaitForItsEnd(t *testing.T) {
	w, k := newWorld(t)
	for _, name := range []string{"a", "b"} {
		w.pods = append(w.pods, pod(name, corev1.PodRunning))
		w.container(name, name, "c", "x", running)
		w.stats[name] = uses(0, mib)
	}
	w.memory = 0
	for range 3 { // until 20 s after the eviction
		w.round(t, k, 10*time.Second)
	}
	if len(w.evicted) != 1 {
		t.Fatalf("evicted %v while the first one is ending", w.evicted)
	}
	w.round(t, k, 10*time.Second)
	if len(w.evicted) != 2 {
		t.Errorf("evicted %v after 30 s, want the second one, too", w.evicted)
	}
}

func TestImagesGoBeforePodsWhenTheDiskIsShort(t *testing.T) {
	w, k := newWorld(t)
	storage := corev1.ResourceEphemeralStorage
	w.pods = []*corev1.Pod{pod("layer", corev1.PodRunning, ask("c", "1Gi", "", storage)), pod("volume", corev1.PodRunning, ask("c", "", "", storage))}
	w.pods[1].Spec.Volumes = []corev1.Volume{emptyDir("v", "", "")}
	w.volumes["volume"] = map[string]int64{"v": gib}
	for _, p := range w.pods {
		w.container(p.Name, p.Name, "c", "x", running)
	}
	w.stats["layer"], w.stats["volume"] = uses(3*gib, 0), uses(0, 0)
	w.image("unused", 1)
	w.round(t, k, 0)
	w.before = func(string) { w.node.available, w.disk.available = 50*gib, 50*gib }
	w.node.available, w.disk.available = 14*gib, 14*gib // of the node's disk that would do
	w.round(t, k, 10*time.Second)
	if d := cmp.Diff([]string{"image unused"}, w.removed); d != "" || len(w.evicted) != 0 {
		t.Fatalf("evicted %v, removed (-want +got):\n%s", w.evicted, d)
	}
	w.node.available, w.disk.available = 9*gib, 9*gib
	w.round(t, k, 10*time.Second)
	want := "Evicted 1s: The node was low on resource: ephemeral-storage. Threshold quantity: 10Gi, available: 9Gi. " +
		"Container c was using 3Gi, request is 1Gi, has larger consumption of ephemeral-storage. "
	if d := cmp.Diff(want, w.evicted["layer"]); d != "" || len(w.evicted) != 1 {
		t.Errorf("evicted %v; message (-want +got):\n%s", w.evicted, d)
	}
}

func TestWithADiskOfItsOwnForImagesLayersCountThere(t *testing.T) {
	for _, c := range []struct {
		images bool
		want   string
	}{{true, "layer"}, {false, "volume"}} {
		w, k := newWorld(t)
		w.disk.device = 2
		w.pods = []*corev1.Pod{pod("layer", corev1.PodRunning), pod("volume", corev1.PodRunning)}
		w.pods[1].Spec.Volumes = []corev1.Volume{emptyDir("v", "", "")}
		w.volumes["volume"] = map[string]int64{"v": gib}
		w.container("layer", "layer", "c", "x", running)
		w.container("volume", "volume", "c", "x", running)
		w.stats["layer"], w.stats["volume"] = uses(3*gib, 0), uses(0, 0)
		w.image("unused", 1)
		w.round(t, k, 0)
		if c.images {
			w.disk.available = 0
		} else {
			w.node.available = 0
		}
		w.round(t, k, 10*time.Second)
		if len(w.evicted) != 1 || w.evicted[w.pods[0].UID] != "" != (c.want == "layer") {
			t.Errorf("images %v: evicted %v, want %s", c.images, w.evicted, c.want)
		}
		if freed := w.removed != nil; freed != c.images {
			t.Errorf("images %v: removed %v", c.images, w.removed)
		}
	}
}

func TestAThresholdCanBeSwitchedOff(t *testing.T) {
	w, k := newWorld(t, func(o *Options) {
		o.LeastMemoryBytes, o.LeastNodePercent, o.LeastImagePercent, o.LeastInodesPercent = -1, -1, -1, -1
	})
	w.pods = []*corev1.Pod{pod("p", corev1.PodRunning)}
	w.container("c", "p", "c", "x", running)
	w.stats["c"] = uses(1, 1)
	w.memory, w.node, w.disk = 0, disk{capacity: gib, inodes: 100}, disk{capacity: gib, inodes: 100}
	w.round(t, k, 0)
	if len(w.evicted) != 0 {
		t.Errorf("evicted %v", w.evicted)
	}
}

func TestInodesAreADiskToo(t *testing.T) {
	w, k := newWorld(t)
	w.pods = []*corev1.Pod{pod("p", corev1.PodRunning, corev1.Container{Name: "c"})}
	w.container("c", "p", "c", "x", running)
	w.stats["c"] = uses(7, 0)
	w.node.inodesFree = 49
	w.round(t, k, 0)
	if want := "Evicted 1s: The node was low on resource: inodes. Threshold quantity: 50, available: 49. "; w.evicted["p"] != want {
		t.Errorf("evicted %q, want %q", w.evicted["p"], want)
	}
}

func TestThisMachineCanBeMeasured(t *testing.T) {
	d, err := measureDisk(t.TempDir())
	if err != nil || d.capacity <= 0 || d.available > d.capacity || d.device == 0 {
		t.Errorf("disk %+v, %v", d, err)
	}
	if n, err := measureMemory(); err != nil || n < mib {
		t.Errorf("memory %d bytes, %v", n, err)
	}
}
