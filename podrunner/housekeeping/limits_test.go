// SPDX-License-Identifier: Apache-2.0

package housekeeping

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func pod(name string, phase corev1.PodPhase, containers ...corev1.Container) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name)}}
	p.Spec.Containers = containers
	p.Status.Phase = phase
	return p
}

func ask(name, request, limit string, r corev1.ResourceName) corev1.Container {
	c := corev1.Container{Name: name}
	if request != "" {
		c.Resources.Requests = corev1.ResourceList{r: resource.MustParse(request)}
	}
	if limit != "" {
		c.Resources.Limits = corev1.ResourceList{r: resource.MustParse(limit)}
	}
	return c
}

func emptyDir(name, limit string, medium corev1.StorageMedium) corev1.Volume {
	e := &corev1.EmptyDirVolumeSource{Medium: medium}
	if limit != "" {
		q := resource.MustParse(limit)
		e.SizeLimit = &q
	}
	return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{EmptyDir: e}}
}

func TestAPodIsEvictedForTheLimitItExceeds(t *testing.T) {
	storage := corev1.ResourceEphemeralStorage
	two := []corev1.Container{ask("a", "", "1Mi", storage), ask("b", "", "3Mi", storage)}
	for _, c := range []struct {
		name       string
		containers []corev1.Container
		volumes    []corev1.Volume
		used       map[string]int64 // by volumes
		layers     [2]uint64
		logs       int // of a
		dedicated  bool
		change     func(*corev1.Pod)
		want       string
	}{
		{name: "nothing too much", containers: two, volumes: []corev1.Volume{emptyDir("v", "1Mi", "")}, used: map[string]int64{"v": 1 << 20}, layers: [2]uint64{1 << 20, 2 << 20}},
		{name: "an emptyDir", volumes: []corev1.Volume{emptyDir("u", "", ""), emptyDir("v", "1Mi", "")}, used: map[string]int64{"u": 9 << 20, "v": 1<<20 + 1},
			want: `Usage of EmptyDir volume "v" exceeds the limit "1Mi". `},
		{name: "no limit", volumes: []corev1.Volume{emptyDir("v", "0", "")}, used: map[string]int64{"v": 9 << 20}},
		{name: "the Pod", containers: two, volumes: []corev1.Volume{emptyDir("v", "", "")}, used: map[string]int64{"v": 1}, layers: [2]uint64{1 << 20, 3 << 20},
			want: "Pod ephemeral local storage usage exceeds the total limit of containers 4Mi. "},
		{name: "memory is no disk", containers: two, volumes: []corev1.Volume{emptyDir("v", "", "Memory")}, used: map[string]int64{"v": 9 << 20}},
		{name: "a container", containers: two, layers: [2]uint64{1<<20 + 1, 0},
			want: `Container a exceeded its local ephemeral storage limit "1Mi". `},
		{name: "its logs", containers: two, layers: [2]uint64{1 << 20, 0}, logs: 1,
			want: `Container a exceeded its local ephemeral storage limit "1Mi". `},
		{name: "layers on another disk", containers: two, layers: [2]uint64{1<<20 + 1, 9 << 20}, dedicated: true},
		{name: "critical", containers: two, layers: [2]uint64{9 << 20, 0}, change: func(p *corev1.Pod) { p.Spec.Priority = new(int32(2_000_000_000)) }},
		{name: "finished", containers: two, layers: [2]uint64{9 << 20, 0}, change: func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, k := newWorld(t)
			p := pod("p", corev1.PodRunning, c.containers...)
			p.Spec.Volumes = c.volumes
			if c.change != nil {
				c.change(p)
			}
			w.pods, w.volumes["p"] = []*corev1.Pod{p}, c.used
			for i, name := range []string{"a", "b"} {
				w.container(name, "p", name, "x", running)
				w.stats[name] = uses(c.layers[i], 0)
			}
			w.container("dead", "p", "a", "x", exited)
			w.stats["dead"] = uses(99<<20, 0)
			if c.dedicated {
				w.disk.device = 2
			}
			dir := filepath.Join(k.o.LogRoot, "default_p_p", "a")
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "0.log"), make([]byte, c.logs), 0o600); err != nil {
				t.Fatal(err)
			}
			want := c.want
			if want != "" {
				want = "Evicted 1s: " + want
			}
			w.round(t, k, 0)
			if got := w.evicted["p"]; got != want {
				t.Errorf("evicted %q, want %q", got, want)
			}
			w.round(t, k, 10*time.Second)
			if events := strings.Join(w.events, "\n"); (want != "" && events != "Pod p Warning Evicted: "+c.want) || (want == "" && events != "") {
				t.Errorf("events:\n%s", events)
			}
		})
	}
}

func TestAPodThatTakesLongToMeasureIsMeasuredSeldom(t *testing.T) {
	w, k := newWorld(t)
	p := pod("p", corev1.PodRunning)
	p.Spec.Volumes = []corev1.Volume{emptyDir("v", "1Mi", "")}
	w.pods = []*corev1.Pod{p, pod("unlimited", corev1.PodRunning)}
	w.took = 1500 * time.Millisecond
	for range 9 { // 90 s
		w.round(t, k, 10*time.Second)
	}
	if w.walked != 3 {
		t.Errorf("a volume that takes 1.5 s was walked through %d times in 90 s, want 3: every 30 s", w.walked)
	}
	w.pods = nil
	w.round(t, k, 10*time.Second)
	if len(k.limitsDue) != 0 {
		t.Errorf("Pods that are gone are remembered: %v", k.limitsDue)
	}
}
