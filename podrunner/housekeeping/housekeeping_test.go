// SPDX-License-Identifier: Apache-2.0

package housekeeping

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestOptionsThatMakeNoSenseAreRefused(t *testing.T) {
	good := Options{Pods: new(world), Volumes: new(world), NodeName: "node"}
	if _, err := New(good); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Options){
		"must be set":      func(o *Options) { o.NodeName = "" },
		"absolute":         func(o *Options) { o.LogRoot = "logs" },
		"LogMaxFiles 1":    func(o *Options) { o.LogMaxFiles = 1 },
		"ImageLowPercent":  func(o *Options) { o.ImageLowPercent = 90 },
		"a time is":        func(o *Options) { o.Interval = -1 },
		"a threshold":      func(o *Options) { o.LeastImagePercent = 101 },
		"ImageHighPercent": func(o *Options) { o.ImageHighPercent = 101 },
	} {
		o := good
		change(&o)
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want something about %q", err, want)
		}
	}
}

// BenchmarkRoundAtRest is what is done every 10 s with 100 Pods when there is
// nothing to do, without what the runtime takes to list them. A tenth of the
// Pods have a limit.
func BenchmarkRoundAtRest(b *testing.B) {
	w := &world{volumes: nil}
	k, err := New(Options{Pods: w, Volumes: w, NodeName: "node", Root: b.TempDir(), LogRoot: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	k.memory = func() (int64, error) { return gib, nil }
	k.disk = func(dir string) (disk, error) {
		_, err := measureDisk("/")
		return disk{device: 1, capacity: 100, available: 50}, err
	}
	w.image("x", 1)
	for i := range 100 {
		uid := fmt.Sprintf("pod%d", i)
		p := pod(uid, corev1.PodRunning, corev1.Container{Name: "c"})
		if i%10 == 0 {
			p.Spec.Volumes = []corev1.Volume{emptyDir("v", "1Mi", "")}
		}
		w.pods = append(w.pods, p)
		path := k.logPath(w.container(uid, uid, "c", "x", running))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		k.round(b.Context())
	}
}
