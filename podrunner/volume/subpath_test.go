// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/testing/protocmp"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/ptr"

	"fairlead.dev/podrunner/podspec"
)

// mounts returns the mounts of the Pod's first container, by mount path.
func (b *bench) mounts(pod *corev1.Pod, restarts int) map[string]*runtimeapi.Mount {
	b.t.Helper()
	list, err := b.Mounts(b.t.Context(), pod, &pod.Spec.Containers[0], restarts, b.facts)
	if err != nil {
		b.t.Fatalf("mounts: %v", err)
	}
	m := map[string]*runtimeapi.Mount{}
	for _, x := range list {
		m[x.ContainerPath] = x
	}
	return m
}

// subPathPod mounts subPath of the volume v at /m.
func subPathPod(v corev1.Volume, subPath string) *corev1.Pod {
	pod := testPod(v)
	pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: v.Name, MountPath: "/m", SubPath: subPath}}
	return pod
}

func TestMountsAreAsDeclared(t *testing.T) {
	b := newBench(t)
	b.configMap("conf", map[string]string{"a": "1"})
	pod := testPod(emptyDir("e", corev1.EmptyDirVolumeSource{}), configMapVolume("c", corev1.ConfigMapVolumeSource{LocalObjectReference: local("conf")}),
		volumeOf("h", corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/srv"}}))
	c := &pod.Spec.Containers[0]
	c.TerminationMessagePath = "/dev/termination-log"
	c.VolumeMounts = []corev1.VolumeMount{
		{Name: "e", MountPath: "/e"},
		{Name: "c", MountPath: "relative"},
		{Name: "h", MountPath: "/h", MountPropagation: ptr.To(corev1.MountPropagationBidirectional)},
		{Name: "h", MountPath: "/ro", ReadOnly: true, RecursiveReadOnly: ptr.To(corev1.RecursiveReadOnlyIfPossible), MountPropagation: ptr.To(corev1.MountPropagationNone)},
		{Name: "h", MountPath: "/slave", MountPropagation: ptr.To(corev1.MountPropagationHostToContainer)},
	}
	b.setUp(pod)
	podDir := filepath.Join(b.root, "pods/0b1c-2d")
	want := map[string]*runtimeapi.Mount{
		"/e":                   {HostPath: b.dir(pod, "e")},
		"/relative":            {HostPath: b.dir(pod, "c"), Readonly: true},
		"/h":                   {HostPath: "/srv", Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL},
		"/ro":                  {HostPath: "/srv", Readonly: true},
		"/slave":               {HostPath: "/srv", Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
		"/etc/hosts":           {HostPath: podDir + "/etc-hosts"},
		"/dev/termination-log": {HostPath: podDir + "/containers/main/2"},
	}
	for path, m := range want {
		m.ContainerPath = path
	}
	if d := cmp.Diff(want, b.mounts(pod, 2), protocmp.Transform()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if s := read(t, podDir+"/etc-hosts"); !strings.Contains(s, "10.1.0.5\tfront\n") {
		t.Errorf("hosts file:\n%s", s)
	}
	if got := statOf(t, podDir+"/containers/main/2"); got.Mode != 0o666 || b.TerminationLog(pod.UID, "main", 2) != podDir+"/containers/main/2" {
		t.Errorf("the termination log is %v", got)
	}
	b.facts.Features.RecursiveReadOnly = map[string]bool{"": true}
	if m := b.mounts(pod, 2)["/ro"]; !m.RecursiveReadOnly {
		t.Error("not recursively read-only though the runtime can")
	}
	c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "e", MountPath: "/etc/hosts"})
	if m := b.mounts(pod, 3)["/etc/hosts"]; m.HostPath != b.dir(pod, "e") {
		t.Errorf("the container's own /etc/hosts is %s", m.HostPath)
	}
	write(t, b.TerminationLog(pod.UID, "main", 2), "died")
	if err := b.ForgetTerminationLog(pod.UID, "main", 2); err != nil || b.ForgetTerminationLog(pod.UID, "main", 2) != nil {
		t.Error(err)
	}
	if _, err := os.Stat(b.TerminationLog(pod.UID, "main", 2)); err == nil {
		t.Error("the termination log is still there")
	}
}

func TestMountsThatCannotBeAreRefused(t *testing.T) {
	b := newBench(t)
	v := emptyDir("e", corev1.EmptyDirVolumeSource{})
	for want, m := range map[string]corev1.VolumeMount{
		`cannot find volume "x" to mount into container "main"`: {Name: "x", MountPath: "/m"},
		`invalid MountPropagation mode: "Odd"`:                  {Name: "e", MountPath: "/m", MountPropagation: ptr.To(corev1.MountPropagationMode("Odd"))},
		`failed to resolve recursive read-only mode: volume "e" requested recursive read-only mode, but it is not read-only`:                                     {Name: "e", MountPath: "/m", RecursiveReadOnly: ptr.To(corev1.RecursiveReadOnlyEnabled)},
		`failed to resolve recursive read-only mode: volume "e" requested recursive read-only mode, but it is not supported by the runtime`:                      {Name: "e", MountPath: "/m", ReadOnly: true, RecursiveReadOnly: ptr.To(corev1.RecursiveReadOnlyEnabled)},
		`failed to resolve recursive read-only mode: volume "e" requested recursive read-only mode, but it is not compatible with propagation "HostToContainer"`: {Name: "e", MountPath: "/m", ReadOnly: true, RecursiveReadOnly: ptr.To(corev1.RecursiveReadOnlyEnabled), MountPropagation: ptr.To(corev1.MountPropagationHostToContainer)},
		`volume "e" requested bind mount options, but they are not supported by the runtime`:                                                                     {Name: "e", MountPath: "/m", BindMountOptions: []string{"noexec"}},
		"missing value for NONE": {Name: "e", MountPath: "/m", SubPathExpr: "$(NONE)"},
		`failed to prepare subPath for volumeMount "e" of container "main"`: {Name: "e", MountPath: "/m", SubPath: "a/../../b"},
	} {
		pod := testPod(v)
		pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{m}
		b.setUp(pod)
		_, err := b.Mounts(t.Context(), pod, &pod.Spec.Containers[0], 0, b.facts)
		var r *podspec.Refused
		if !errors.As(err, &r) || r.Reason != podspec.ReasonContainerConfig || r.Message != want {
			t.Errorf("got %v\nwant %s", err, want)
		}
	}
}

func TestSubPathIsMountedAloneAndMadeWhereMissing(t *testing.T) {
	b := newBench(t)
	b.configMap("conf", map[string]string{"a": "1", "b": "2"})
	pod := testPod(emptyDir("e", corev1.EmptyDirVolumeSource{}), configMapVolume("c", corev1.ConfigMapVolumeSource{LocalObjectReference: local("conf")}))
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: ptr.To[int64](1234)}
	c := &pod.Spec.Containers[0]
	c.Env = []corev1.EnvVar{{Name: "POD", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}}}
	c.VolumeMounts = []corev1.VolumeMount{
		{Name: "e", MountPath: "/new", SubPath: "x//./y"},
		{Name: "e", MountPath: "/expr", SubPathExpr: "logs/$(POD)"},
		{Name: "c", MountPath: "/conf", SubPath: "a", ReadOnly: true},
	}
	b.setUp(pod)
	m := b.mounts(pod, 0)
	if got := read(t, m["/conf"].HostPath); got != "1" || !mounted(t, m["/conf"].HostPath) || !m["/conf"].Readonly {
		t.Errorf("/conf is %q, from %s", got, m["/conf"])
	}
	dir := b.dir(pod, "e")
	write(t, filepath.Join(dir, "x/y/f"), "seen")
	if got := read(t, filepath.Join(m["/new"].HostPath, "f")); got != "seen" {
		t.Errorf("/new has %q", got)
	}
	for _, made := range []string{"x", "x/y", "logs/front"} {
		if got, want := statOf(t, filepath.Join(dir, made)), (stat{0o777 | os.ModeSetgid, 0, 1234}); got != want {
			t.Errorf("%s is %v, want %v", made, got, want)
		}
	}
	// Again, and by another agent: the same mounts, once.
	before, _ := mountsBelow(b.root)
	b.Manager = b.restarted()
	if d := cmp.Diff(m, b.mounts(pod, 0), protocmp.Transform()); d != "" {
		t.Errorf("a second time (-want +got):\n%s", d)
	}
	// A restart of the container sees the new file; the running one kept its own.
	b.configMap("conf", map[string]string{"a": "changed", "b": "2"})
	if err := b.Refresh(t.Context(), pod, b.facts); err != nil {
		t.Fatal(err)
	}
	if got := read(t, m["/conf"].HostPath); got != "1" {
		t.Errorf("under the running container it became %q", got)
	}
	if got := read(t, b.mounts(pod, 1)["/conf"].HostPath); got != "changed" {
		t.Errorf("the restarted container has %q", got)
	}
	if after, _ := mountsBelow(b.root); len(after) != len(before) {
		t.Errorf("mounts were %v, are %v", before, after)
	}
	if err := b.TearDown(t.Context(), pod.UID); err != nil {
		t.Error(err)
	}
}

func TestSubPathNeverLeadsOutOfTheVolume(t *testing.T) {
	outside := t.TempDir()
	write(t, filepath.Join(outside, "secret"), "host data")
	for name, c := range map[string]struct {
		prepare func(dir string) error
		subPath string
	}{
		"absolute link":           {func(d string) error { return os.Symlink(outside, filepath.Join(d, "l")) }, "l"},
		"absolute link to a file": {func(d string) error { return os.Symlink(filepath.Join(outside, "secret"), filepath.Join(d, "l")) }, "l"},
		"link in the middle":      {func(d string) error { return os.Symlink(outside, filepath.Join(d, "l")) }, "l/secret"},
		"climbing link":           {func(d string) error { return os.Symlink("../../../../..", filepath.Join(d, "l")) }, "l"},
		"link to a link": {func(d string) error {
			return errors.Join(os.Symlink("/", filepath.Join(d, "k")), os.Symlink("k/etc", filepath.Join(d, "l")))
		}, "l"},
		"magic link":            {func(d string) error { return os.Symlink("/proc/self/root", filepath.Join(d, "l")) }, "l/etc"},
		"to be made behind one": {func(d string) error { return os.Symlink(outside, filepath.Join(d, "l")) }, "l/new/dir"},
		"dangling":              {func(d string) error { return os.Symlink(filepath.Join(outside, "new"), filepath.Join(d, "l")) }, "l"},
		"loop":                  {func(d string) error { return os.Symlink("l", filepath.Join(d, "l")) }, "l"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			pod := subPathPod(emptyDir("e", corev1.EmptyDirVolumeSource{}), c.subPath)
			b.setUp(pod)
			if err := c.prepare(b.dir(pod, "e")); err != nil {
				t.Fatal(err)
			}
			list, err := b.Mounts(t.Context(), pod, &pod.Spec.Containers[0], 0, b.facts)
			if err == nil {
				t.Errorf("mounted: %v", list)
			} else if strings.Contains(err.Error(), outside) || strings.Contains(err.Error(), b.root) {
				t.Errorf("the message tells of the host: %v", err)
			}
			if entries, _ := os.ReadDir(outside); len(entries) != 1 {
				t.Errorf("made outside of the volume: %v", entries)
			}
		})
	}
}

func TestSubPathFollowsLinksWithinTheVolume(t *testing.T) {
	b := newBench(t)
	pod := subPathPod(emptyDir("e", corev1.EmptyDirVolumeSource{}), "current/new/data")
	b.setUp(pod)
	dir := b.dir(pod, "e")
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "releases/7"), 0o755), os.Symlink("releases/7", filepath.Join(dir, "current"))); err != nil {
		t.Fatal(err)
	}
	m := b.mounts(pod, 0)["/m"]
	write(t, filepath.Join(dir, "releases/7/new/data/f"), "seen")
	if got := read(t, filepath.Join(m.HostPath, "f")); got != "seen" {
		t.Errorf("got %q", got)
	}
}

// A container of the Pod swaps a directory for a link to the host, back and
// forth, as fast as it can while the subPath is mounted.
func TestSubPathWinsTheRaceAgainstLinks(t *testing.T) {
	outside := t.TempDir()
	write(t, filepath.Join(outside, "sub/marker"), "host data")
	b := newBench(t)
	pod := subPathPod(emptyDir("e", corev1.EmptyDirVolumeSource{}), "d/sub/deep")
	b.setUp(pod)
	dir := b.dir(pod, "e")
	at := func(s string) string { return filepath.Join(dir, s) }
	if err := errors.Join(os.MkdirAll(at("d/sub"), 0o755), os.Symlink(outside, at("l"))); err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	swaps := make(chan int)
	go func() {
		n := 0
		for !stop.Load() {
			if unix.Renameat2(unix.AT_FDCWD, at("d"), unix.AT_FDCWD, at("l"), unix.RENAME_EXCHANGE) == nil {
				n++
			}
		}
		swaps <- n
	}()
	opened, refused := 0, 0
	for range 1500 {
		list, err := b.Mounts(t.Context(), pod, &pod.Spec.Containers[0], 0, b.facts)
		if err != nil {
			refused++
			continue
		}
		opened++
		host := list[0].HostPath
		var s, in unix.Stat_t
		if err := errors.Join(unix.Stat(host, &s), unix.Stat(dir, &in)); err != nil {
			t.Fatal(err)
		}
		// What is mounted is never the host's: that has no sub/deep, and
		// nothing may be made there.
		if entries, err := os.ReadDir(host); err != nil || len(entries) != 0 {
			t.Fatalf("mounted %v, %v", entries, err)
		}
	}
	stop.Store(true)
	n := <-swaps
	entries, err := os.ReadDir(filepath.Join(outside, "sub"))
	if err != nil || len(entries) != 1 {
		t.Errorf("something was made on the host: %v, %v", entries, err)
	}
	if opened == 0 || refused == 0 || n < 100 {
		t.Errorf("%d mounted, %d refused, %d swaps: the race was not run", opened, refused, n)
	}
	t.Logf("%d mounted, %d refused while links were swapped %d times", opened, refused, n)
}

func TestSubPathOfAHostPathIsOnlyUnmountedNeverRemoved(t *testing.T) {
	b := newBench(t)
	host := t.TempDir()
	write(t, filepath.Join(host, "db/precious"), "data")
	pod := subPathPod(volumeOf("h", corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: host}}), "db")
	b.setUp(pod)
	m := b.mounts(pod, 0)["/m"]
	if got := read(t, filepath.Join(m.HostPath, "precious")); got != "data" {
		t.Fatalf("got %q", got)
	}
	if err := b.TearDown(t.Context(), pod.UID); err != nil {
		t.Fatal(err)
	}
	if got := read(t, filepath.Join(host, "db/precious")); got != "data" {
		t.Errorf("got %q", got)
	}
}

func TestEnvFileReadsRegularFilesOfTheVolumeOnly(t *testing.T) {
	b := newBench(t)
	pod := testPod(emptyDir("e", corev1.EmptyDirVolumeSource{}))
	b.setUp(pod)
	dir := b.dir(pod, "e")
	write(t, filepath.Join(dir, "d/env"), "A='1'\n")
	big, err := os.Create(filepath.Join(dir, "big"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(big.Truncate(maxEnvFile+1), big.Close(), os.Symlink("/etc/passwd", filepath.Join(dir, "l")), unix.Mkfifo(filepath.Join(dir, "fifo"), 0o644)); err != nil {
		t.Fatal(err)
	}
	get := b.EnvFile(pod)
	if got, err := get("e", "d/env"); err != nil || string(got) != "A='1'\n" {
		t.Errorf("got %q, %v", got, err)
	}
	for _, path := range []string{"l", "fifo", "big", "d", "none", "../../../../../../../etc/passwd"} {
		if got, err := get("e", path); err == nil {
			t.Errorf("%s: %d bytes", path, len(got))
		} else if strings.Contains(err.Error(), b.root) {
			t.Errorf("%s: the message tells of the host: %v", path, err)
		}
	}
	if _, err := get("x", "d/env"); err == nil || err.Error() != fmt.Sprintf("cannot find the volume %q referenced by FileKeyRef", "x") {
		t.Errorf("unknown volume: %v", err)
	}
}
