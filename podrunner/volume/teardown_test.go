// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// fullPod has a volume of each kind that is mounted or made.
func (b *bench) fullPod() *corev1.Pod {
	b.secret("cred", map[string]string{"key": "s"})
	b.configMap("conf", map[string]string{"a": "1"})
	pod := testPod(emptyDir("disk", corev1.EmptyDirVolumeSource{}), emptyDir("mem", corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}),
		volumeOf("sec", corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "cred"}}), configMapVolume("conf", corev1.ConfigMapVolumeSource{LocalObjectReference: local("conf")}))
	c := &pod.Spec.Containers[0]
	c.TerminationMessagePath = "/dev/termination-log"
	c.VolumeMounts = []corev1.VolumeMount{{Name: "mem", MountPath: "/m", SubPath: "s"}, {Name: "sec", MountPath: "/k", SubPath: "key"}}
	b.setUp(pod)
	b.mounts(pod, 0)
	return pod
}

func TestTearDownLeavesNothing(t *testing.T) {
	b := newBench(t)
	pod := b.fullPod()
	if points, _ := mountsBelow(b.root); len(points) != 4 {
		t.Fatalf("mounted before: %v, want 4", points)
	}
	b.Manager = b.restarted() // it knows nothing but the disk
	for range 2 {
		if err := b.TearDown(t.Context(), pod.UID); err != nil {
			t.Fatal(err)
		}
	}
	if points, _ := mountsBelow(b.root); len(points) != 0 {
		t.Errorf("still mounted: %v", points)
	}
	if entries, _ := os.ReadDir(filepath.Join(b.root, "pods")); len(entries) != 0 {
		t.Errorf("left: %v", entries)
	}
	if err := New(filepath.Join(b.root, "never"), b.store, nil).TearDown(t.Context(), "uid"); err != nil {
		t.Errorf("of a Pod that never was: %v", err)
	}
}

func TestTearDownEndsMountsOfOthersAndKeepsTheirData(t *testing.T) {
	b := newBench(t)
	pod := b.fullPod()
	host := t.TempDir()
	write(t, filepath.Join(host, "precious"), "data")
	write(t, filepath.Join(host, "sub/precious"), "data")
	// Left over in the volume: two on top of each other, one with an odd name.
	odd := filepath.Join(b.dir(pod, "disk"), "odd \\ name\n")
	if err := errors.Join(os.Mkdir(filepath.Join(b.dir(pod, "disk"), "x"), 0o755), os.Mkdir(odd, 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, m := range [][2]string{{host, "x"}, {filepath.Join(host, "sub"), "x"}} {
		if err := unix.Mount(m[0], filepath.Join(b.dir(pod, "disk"), m[1]), "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount(host, odd, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if err := b.TearDown(t.Context(), pod.UID); err != nil {
		t.Error(err)
	}
	if read(t, filepath.Join(host, "precious")) != "data" || read(t, filepath.Join(host, "sub/precious")) != "data" {
		t.Error("the data that was mounted is gone")
	}
	if points, _ := mountsBelow(b.root); len(points) != 0 {
		t.Errorf("still mounted: %v", points)
	}
}

func TestTearDownRemovesNothingWhileAMountIsInUse(t *testing.T) {
	b := newBench(t)
	pod := b.fullPod()
	busy, err := os.Create(filepath.Join(b.dir(pod, "mem"), "open"))
	if err != nil {
		t.Fatal(err)
	}
	err = b.TearDown(t.Context(), pod.UID)
	if !errors.Is(err, unix.EBUSY) || !strings.HasPrefix(err.Error(), "unmount the volumes of pod 0b1c-2d: umount ") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(filepath.Join(b.dir(pod, "mem"), "open")); err != nil {
		t.Errorf("removed though in use: %v", err)
	}
	busy.Close()
	if err := b.TearDown(t.Context(), pod.UID); err != nil {
		t.Errorf("after it was let go: %v", err)
	}
}

// A mount that the mount table did not show in time: removal itself must stop.
func TestRemovalCrossesNoMount(t *testing.T) {
	for name, c := range map[string]struct {
		from, at string
	}{
		"a directory":                  {".", "tree/m"},
		"a directory deep down":        {".", "tree/deep/m"},
		"a file":                       {"precious", "tree/file"},
		"of the tree's own filesystem": {"../own", "tree/m"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			host := filepath.Join(b.root, "host")
			for _, f := range []string{"host/precious", "own/precious", "tree/a/f"} {
				write(t, filepath.Join(b.root, f), "data")
			}
			from, at := filepath.Join(host, c.from), filepath.Join(b.root, c.at)
			info, err := os.Stat(from)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(makeTarget(at, info.IsDir()), unix.Mount(from, at, "", unix.MS_BIND, "")); err != nil {
				t.Fatal(err)
			}
			dir := filepath.Join(b.root, "tree")
			if err := removeTree(t.Context(), dir); err == nil {
				t.Error("removed with a mount in it")
			}
			for _, f := range []string{"host/precious", "own/precious"} {
				if got := read(t, filepath.Join(b.root, f)); got != "data" {
					t.Errorf("%s became %q", f, got)
				}
			}
			if err := errors.Join(unix.Unmount(at, 0), removeTree(t.Context(), dir)); err != nil {
				t.Errorf("after the mount was ended: %v", err)
			}
			if _, err := os.Lstat(dir); err == nil {
				t.Error("the tree is still there")
			}
		})
	}
}

func TestRemovalFollowsNoLink(t *testing.T) {
	b := newBench(t)
	host, dir := t.TempDir(), filepath.Join(b.root, "tree")
	write(t, filepath.Join(host, "precious"), "data")
	write(t, filepath.Join(dir, "f"), "data")
	if err := os.Symlink(host, filepath.Join(dir, "l")); err != nil {
		t.Fatal(err)
	}
	if err := removeTree(t.Context(), dir); err != nil {
		t.Error(err)
	}
	if got := read(t, filepath.Join(host, "precious")); got != "data" {
		t.Errorf("the data that a link led to became %q", got)
	}
}

func TestRemovalAndUsageManageAnyDepthAndWidth(t *testing.T) {
	b := newBench(t)
	pod := testPod(emptyDir("e", corev1.EmptyDirVolumeSource{}))
	b.setUp(pod)
	top := b.dir(pod, "e")
	const depth, width = 3000, 2000
	fd, err := unix.Open(top, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := range depth {
		name := fmt.Sprintf("d%d", i%7)
		if err := unix.Mkdirat(fd, name, 0o755); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(fd, name, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		fd = next
	}
	f, err := unix.Openat(fd, "bottom", unix.O_CREAT|unix.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(f, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	unix.Close(f)
	unix.Close(fd)
	for i := range width {
		write(t, filepath.Join(top, fmt.Sprintf("w%d", i)), "")
	}
	before := openFiles(t)
	usage, err := b.Usage(pod.UID)
	if err != nil || usage["e"] < 1<<20 {
		t.Errorf("usage %v, %v; want more than the 1 MiB at the bottom", usage, err)
	}
	if err := b.TearDown(t.Context(), pod.UID); err != nil {
		t.Fatal(err)
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d files open, were %d", after, before)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	e, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(e)
}

func TestTearDownStopsWithItsContext(t *testing.T) {
	b := newBench(t)
	pod := b.fullPod()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.TearDown(ctx, pod.UID); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err := b.TearDown(t.Context(), pod.UID); err != nil {
		t.Error(err)
	}
}

func TestUsageIsWhatIsOnDiskOncePerFile(t *testing.T) {
	b := newBench(t)
	pod := b.fullPod()
	disk, mem := b.dir(pod, "disk"), b.dir(pod, "mem")
	empty, err := b.Usage(pod.UID)
	if err != nil {
		t.Fatal(err)
	}
	host := t.TempDir()
	write(t, filepath.Join(host, "big"), strings.Repeat("x", 1<<20))
	write(t, filepath.Join(disk, "d/f"), strings.Repeat("x", 64<<10))
	write(t, filepath.Join(mem, "f"), strings.Repeat("x", 128<<10))
	sparse, err := os.Create(filepath.Join(disk, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(sparse.Truncate(1<<30), sparse.Close(), os.Link(filepath.Join(disk, "d/f"), filepath.Join(disk, "again")),
		os.Symlink(filepath.Join(host, "big"), filepath.Join(disk, "link")), os.Mkdir(filepath.Join(disk, "m"), 0o755),
		unix.Mount(host, filepath.Join(disk, "m"), "", unix.MS_BIND, "")); err != nil {
		t.Fatal(err)
	}
	got, err := b.Usage(pod.UID)
	if err != nil {
		t.Fatal(err)
	}
	// A directory may take a block of its own.
	if d := got["disk"] - empty["disk"]; d < 64<<10 || d > 64<<10+16<<10 {
		t.Errorf("the volume on disk grew by %d, want 64 KiB", d)
	}
	if d := got["mem"] - empty["mem"]; d != 128<<10 {
		t.Errorf("the volume in memory grew by %d, want 128 KiB", d)
	}
	if len(got) != 4 {
		t.Errorf("volumes: %v", got)
	}
	if got, err := b.Usage("unknown"); err != nil || len(got) != 0 {
		t.Errorf("of an unknown Pod: %v, %v", got, err)
	}
}

func TestMountinfoIsReadWithItsEscapes(t *testing.T) {
	const info = `22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
35 22 0:31 / /a\040b\134c rw - tmpfs tmpfs rw
short line
36 22 0:31 / /end\0 rw shared:2 master:1 - tmpfs tmpfs rw`
	got, err := parseMountinfo(strings.NewReader(info))
	if d := cmp.Diff([]string{"/", `/a b\c`, `/end\0`}, got); d != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
}

func FuzzMountinfo(f *testing.F) {
	f.Add("22 1 8:1 / /a\\040b rw\n")
	f.Add("\\\\\\1 2 3 4 \\777 5")
	f.Fuzz(func(t *testing.T, s string) {
		points, err := parseMountinfo(strings.NewReader(s))
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range points {
			if len(p) > len(s) {
				t.Errorf("%q is longer than its line", p)
			}
		}
	})
}
