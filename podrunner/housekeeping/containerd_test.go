// SPDX-License-Identifier: Apache-2.0

package housekeeping

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"fairlead.dev/podrunner"
	"fairlead.dev/podrunner/containerdtest"
	"fairlead.dev/podrunner/cri"
	"fairlead.dev/podrunner/objects"
	"fairlead.dev/podrunner/podspec"
	"fairlead.dev/podrunner/volume"
)

func TestMain(m *testing.M) { containerdtest.Main(m) }

// machine is a real containerd with a Keeper whose Pods are the test's.
type machine struct {
	t      *testing.T
	rt     *containerdtest.Runtime
	client *cri.Client
	pods   []*corev1.Pod
	*Keeper
}

func (m *machine) Pods() []*corev1.Pod                            { return m.pods }
func (m *machine) Runtime() *cri.Client                           { return m.client }
func (m *machine) Evict(types.UID, string, string, time.Duration) { m.t.Error("a Pod was evicted") }
func (m *machine) Usage(types.UID) (map[string]int64, error)      { return nil, nil }
func (m *machine) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func newMachine(t *testing.T, o Options) *machine {
	rt := containerdtest.Start(t)
	m := &machine{t: t, rt: rt}
	var err error
	m.client, err = cri.Open(t.Context(), rt.Socket, 20*time.Second)
	m.must(err)
	t.Cleanup(func() { m.client.Close() })
	o.Pods, o.Volumes, o.NodeName, o.Root, o.LogRoot = m, m, "node", rt.Root, rt.LogRoot
	o.Logger = slog.New(slog.DiscardHandler)
	m.Keeper, err = New(o)
	m.must(err)
	m.memory = func() (int64, error) { return gib, nil }
	m.disk = func(string) (disk, error) {
		return disk{device: 1, capacity: 100 * gib, available: 50 * gib, inodes: 100, inodesFree: 50}, nil
	}
	return m
}

// run starts a container of a Pod in the node's network.
func (m *machine) run(uid string, args ...string) (id string) {
	m.t.Helper()
	labels := map[string]string{
		podspec.LabelPodName: uid, podspec.LabelPodNamespace: "default", podspec.LabelPodUID: uid, podspec.LabelContainerName: "c",
	}
	host := &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE}}
	sandbox := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: uid, Namespace: "default", Uid: uid}, Labels: labels,
		LogDirectory: filepath.Join(m.rt.LogRoot, "default_"+uid+"_"+uid),
		Linux:        &runtimeapi.LinuxPodSandboxConfig{CgroupParent: m.rt.CgroupRoot, SecurityContext: host},
	}
	ctx := cri.Quiet(m.t.Context())
	s, err := m.client.Runtime.RunPodSandbox(ctx, sandbox, "")
	m.must(err)
	m.must(os.MkdirAll(filepath.Join(sandbox.LogDirectory, "c"), 0o755))
	id, err = m.client.Runtime.CreateContainer(ctx, s, &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: containerdtest.Image},
		Args: args, Labels: labels, LogPath: "c/0.log",
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: host.NamespaceOptions}},
	}, sandbox)
	m.must(err)
	m.must(m.client.Runtime.StartContainer(ctx, id))
	return id
}

func (m *machine) state(id string) runtimeapi.ContainerState {
	s, err := m.client.Runtime.ContainerStatus(cri.Quiet(m.t.Context()), id, false)
	if cri.IsNotFound(err) {
		return runtimeapi.ContainerState_CONTAINER_UNKNOWN
	}
	m.must(err)
	return s.Status.State
}

// until waits for a condition; machines of tests are slow.
func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !cond(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// whole joins what the runtime wrote as parts (P) of one line: it closes a file
// within a line where it has read no more of it.
func whole(parts []string) (lines []string) {
	begun := ""
	for _, p := range parts {
		f := strings.SplitN(p, " ", 4) // time, stream, tag, text
		if len(f) != 4 {
			lines = append(lines, p)
			continue
		}
		if begun += f[3]; f[2] == "F" {
			lines, begun = append(lines, begun), ""
		}
	}
	return lines
}

func TestNoLineIsLostWhileContainerdWrites(t *testing.T) {
	const lines, blocks = 4000, 5
	m := newMachine(t, Options{LogMaxBytes: 64 << 10, LogMaxFiles: 1000})
	args := []string{"then"}
	for i := range blocks {
		args = append(args, "lines", fmt.Sprint(lines), ";", "wait", fmt.Sprint("/go", i), ";")
	}
	id := m.run("writer", append(args, "sleep")...)
	path := filepath.Join(m.rt.LogRoot, "default_writer_writer", "c", "0.log")
	var got, files []string
	for i := range blocks {
		// A block is larger than a file may be; the next waits for its rotation.
		until(t, fmt.Sprintf("block %d is written and rotated", i), func() bool {
			m.round(t.Context())
			got, files = readAll(t, path)
			got = whole(got)
			return len(got) >= lines*(i+1) && len(files) >= i+2
		})
		_, _, err := m.client.Runtime.ExecSync(cri.Quiet(t.Context()), id, []string{"/guest", "write", fmt.Sprint("/go", i), "x"}, time.Minute)
		m.must(err)
	}
	got, files = readAll(t, path) // the last line may have been half there
	if got = whole(got); len(got) != lines*blocks {
		t.Errorf("%d lines in %d files, want %d", len(got), len(files), lines*blocks)
	}
	for i := range min(len(got), lines*blocks) {
		if want := fmt.Sprintf("line %d", i%lines); got[i] != want {
			t.Fatalf("line %d is %q, want %q", i, got[i], want)
		}
	}
	for i, f := range files[:len(files)-2] { // all but the present and the one before it
		if !strings.HasSuffix(f, compressed) {
			t.Errorf("file %d of %d, %s, is not compressed", i, len(files), f)
		}
	}
	if s := m.state(id); s != running {
		t.Errorf("the container is %v", s)
	}
	t.Logf("%d lines in %d files", len(got), len(files))
}

// otherImage is the guest's image with another configuration, and so another ID.
func otherImage(t *testing.T, name string) []byte {
	t.Helper()
	archive, err := containerdtest.ImageTar(name)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		b, err2 := io.ReadAll(r)
		b = bytes.ReplaceAll(b, []byte("FROM_IMAGE=yes"), []byte("FROM_IMAGE="+name))
		if err == nil {
			h.Size = int64(len(b))
		}
		if err := errors.Join(err, err2, w.WriteHeader(h)); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestContainerdLosesOnlyWhatNobodyUses(t *testing.T) {
	m := newMachine(t, Options{StatusKept: true})
	has := func(image string) bool {
		s, err := m.client.Images.ImageStatus(cri.Quiet(t.Context()), &runtimeapi.ImageSpec{Image: image}, false)
		m.must(err)
		return s.Image != nil
	}
	now := time.Now()
	m.now = func() time.Time { return now }
	m.round(t.Context())
	m.must(m.rt.Import(otherImage(t, "fairlead.test/other:1")))
	lives, ended := m.run("lives", "sleep"), m.run("ended", "echo", "x")
	until(t, "a container has ended", func() bool { return m.state(ended) == exited })
	m.pods = []*corev1.Pod{pod("lives", corev1.PodRunning), pod("ended", corev1.PodSucceeded)}
	m.imagesDue = now
	m.round(t.Context())
	m.disk = func(string) (disk, error) { return disk{device: 1, capacity: 100 * gib, available: 16 * gib}, nil }
	m.o.ImageHighPercent = 84

	now = now.Add(119 * time.Second)
	m.imagesDue = now
	m.round(t.Context())
	if !has("fairlead.test/other:1") {
		t.Fatal("an image was removed before it was two minutes old")
	}
	now = now.Add(time.Second)
	m.imagesDue, m.o.KeepImported = now, true
	m.round(t.Context())
	if !has("fairlead.test/other:1") {
		t.Fatal("an image that was imported by hand was removed")
	}
	m.imagesDue, m.o.KeepImported = now, false
	m.round(t.Context())
	if has("fairlead.test/other:1") {
		t.Error("the image that nobody uses is still there")
	}
	if !has(containerdtest.Image) {
		t.Error("the image of what runs, and of the sandboxes, was removed")
	}
	if s := m.state(ended); s != exited {
		t.Errorf("the dead container is %v before the disk is short", s)
	}

	log := filepath.Join(m.rt.LogRoot, "default_ended_ended", "c", "0.log")
	m.disk = func(string) (disk, error) {
		if m.state(ended) == exited {
			return disk{device: 1, capacity: 100, available: 1}, nil
		}
		return disk{device: 1, capacity: 100, available: 50}, nil
	}
	m.round(t.Context())
	if s := m.state(ended); s != runtimeapi.ContainerState_CONTAINER_UNKNOWN {
		t.Errorf("the dead container is %v, want it removed", s)
	}
	if _, err := os.Stat(log); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its log: %v, want none", err)
	}
	if s := m.state(lives); s != running || !has(containerdtest.Image) {
		t.Errorf("the other container is %v, its image there %v", s, has(containerdtest.Image))
	}
}

// sink takes the status of a real Runner's Pods.
type sink struct {
	mu     sync.Mutex
	status map[string]corev1.PodStatus
}

func (s *sink) SetPodStatus(key types.NamespacedName, _ types.UID, status corev1.PodStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status[key.Name] = status
}
func (s *sink) PodFinished(types.NamespacedName, types.UID) {}
func (s *sink) of(name string) corev1.PodStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status[name]
}

func TestARunnersPodsAreEvictedForTheirLimits(t *testing.T) {
	rt := containerdtest.Start(t)
	store, status := new(objects.Static), &sink{status: map[string]corev1.PodStatus{}}
	volumes := volume.New(rt.Root, store, slog.New(slog.DiscardHandler))
	r, err := podrunner.New(podrunner.Options{
		NodeName: "node", Root: rt.Root, Socket: rt.Socket, Objects: store, Status: status, Volumes: volumes, Logger: slog.New(slog.DiscardHandler),
		Facts: func() podspec.Facts {
			return podspec.Facts{NodeName: "node", HostIPs: []netip.Addr{netip.MustParseAddr("10.88.0.1")}, LogRoot: rt.LogRoot,
				CgroupRoot: rt.CgroupRoot + "/kubepods", MemoryCapacity: 8 << 30}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	k, err := New(Options{Pods: r, Volumes: volumes, NodeName: "node", Root: rt.Root, LogRoot: rt.LogRoot, Interval: 100 * time.Millisecond,
		Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	k.memory = func() (int64, error) { return gib, nil }
	k.disk = func(string) (disk, error) {
		return disk{device: 1, capacity: 100, available: 50, inodes: 100, inodesFree: 50}, nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() { _ = r.Run(ctx) })
	group.Go(func() { _ = k.Run(ctx) })
	storage := corev1.ResourceEphemeralStorage
	volumePod := pod("volume", "", ask("c", "", "", storage))
	volumePod.Spec.Volumes = []corev1.Volume{emptyDir("v", "1Mi", "")}
	layerPod := pod("layer", "", ask("c", "", "2Ki", storage))
	layerPod.Spec.Containers[0].Args = []string{"then", "write", "/file", "x", ";", "sleep"}
	for _, p := range []*corev1.Pod{volumePod, layerPod, pod("peaceful", "", ask("c", "", "1Gi", storage))} {
		p.Spec.HostNetwork, p.Spec.Containers[0].Image = true, containerdtest.Image
		if p.Spec.Containers[0].Args == nil {
			p.Spec.Containers[0].Args = []string{"sleep"}
		}
		p.CreationTimestamp = metav1.Now()
		r.OnPod(types.NamespacedName{Namespace: "default", Name: p.Name}, p)
	}
	r.OnSynced()
	t.Cleanup(func() {
		for _, name := range []string{"volume", "layer", "peaceful"} {
			r.OnPod(types.NamespacedName{Namespace: "default", Name: name}, nil)
		}
		until(t, "all Pods are removed", func() bool { return len(r.Pods()) == 0 })
		cancel()
		group.Wait()
	})
	until(t, "the Pods run", func() bool {
		return status.of("volume").Phase == corev1.PodRunning && status.of("peaceful").Phase == corev1.PodRunning
	})
	file := filepath.Join(rt.Root, "pods", "volume", "volumes", "kubernetes.io~empty-dir", "v", "file")
	if err := os.WriteFile(file, make([]byte, 2<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, message := range map[string]string{
		"volume": `Usage of EmptyDir volume "v" exceeds the limit "1Mi". `,
		"layer":  "Pod ephemeral local storage usage exceeds the total limit of containers 2Ki. ",
	} {
		until(t, name+" is evicted", func() bool { return status.of(name).Phase == corev1.PodFailed })
		if s := status.of(name); s.Reason != "Evicted" || s.Message != message {
			t.Errorf("%s: %s %q, want Evicted %q", name, s.Reason, s.Message, message)
		}
	}
	if s := status.of("peaceful"); s.Phase != corev1.PodRunning {
		t.Errorf("the Pod that keeps its limit is %s %s", s.Phase, s.Message)
	}
}
