// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"fairlead.dev/podrunner/objects"
	"fairlead.dev/podrunner/podspec"
)

// bench is a Manager in a directory of its own.
type bench struct {
	*Manager
	t     *testing.T
	root  string
	store *objects.Static
	facts *podspec.Facts
}

func newBench(t *testing.T) *bench {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIP: volumes are made with real mounts, which needs root")
	}
	syscall.Umask(0o022)
	b := &bench{t: t, root: t.TempDir(), store: new(objects.Static), facts: &podspec.Facts{
		NodeName: "node-1", HostIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, PodIPs: []netip.Addr{netip.MustParseAddr("10.1.0.5")},
	}}
	b.Manager = New(b.root, b.store, slog.New(slog.NewTextHandler(io.Discard, nil)))
	t.Cleanup(func() { // whatever a failed test left mounted
		points, err := mountsBelow(b.root)
		if err != nil {
			t.Error(err)
		}
		for _, p := range points {
			unix.Unmount(p, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		}
	})
	return b
}

// restarted is the Manager of an agent that was started again.
func (b *bench) restarted() *Manager { return New(b.root, b.store, b.log) }

func (b *bench) setUp(pod *corev1.Pod) {
	b.t.Helper()
	if err := b.SetUp(b.t.Context(), pod, b.facts); err != nil {
		b.t.Fatalf("set up: %v", err)
	}
}

func (b *bench) dir(pod *corev1.Pod, volume string) string {
	return volumeDir(filepath.Join(b.root, "pods", string(pod.UID)), findVolume(pod, volume))
}

func testPod(volumes ...corev1.Volume) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "front", Namespace: "web", UID: "0b1c-2d", Labels: map[string]string{"app": "x"}},
		Spec: corev1.PodSpec{
			Volumes: volumes, EnableServiceLinks: ptr.To(false),
			Containers: []corev1.Container{{Name: "main", Image: "img"}},
		},
	}
}

func volumeOf(name string, source corev1.VolumeSource) corev1.Volume {
	return corev1.Volume{Name: name, VolumeSource: source}
}

func emptyDir(name string, e corev1.EmptyDirVolumeSource) corev1.Volume {
	return volumeOf(name, corev1.VolumeSource{EmptyDir: &e})
}

func (b *bench) configMap(name string, data map[string]string) {
	b.store.SetConfigMap(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "web", Name: name}, Data: data})
}

func (b *bench) secret(name string, data map[string]string) {
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "web", Name: name}, Data: map[string][]byte{}}
	for k, v := range data {
		s.Data[k] = []byte(v)
	}
	b.store.SetSecret(s)
}

// stat is a file's permissions and owners.
type stat struct {
	Mode     os.FileMode
	UID, GID int
}

func statOf(t *testing.T, path string) stat {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	s := info.Sys().(*syscall.Stat_t)
	return stat{info.Mode() &^ os.ModeDir, int(s.Uid), int(s.Gid)}
}

func write(t *testing.T, path, data string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func mounted(t *testing.T, path string) bool {
	t.Helper()
	is, err := isMountPoint(path)
	if err != nil {
		t.Fatal(err)
	}
	return is
}

func TestEmptyDirIsMadeOnceAndKeptAsItsUsersLeftIt(t *testing.T) {
	b := newBench(t)
	pod := testPod(emptyDir("data", corev1.EmptyDirVolumeSource{}), volumeOf("none", corev1.VolumeSource{}),
		emptyDir("moded", corev1.EmptyDirVolumeSource{Mode: ptr.To[int32](0o1750)}))
	b.setUp(pod)
	dir := b.dir(pod, "data")
	if want := filepath.Join(b.root, "pods/0b1c-2d/volumes/kubernetes.io~empty-dir/data"); dir != want {
		t.Errorf("in %s, want %s", dir, want)
	}
	for name, want := range map[string]stat{"data": {0o777, 0, 0}, "none": {0o777, 0, 0}, "moded": {0o750 | os.ModeSticky, 0, 0}} {
		if got := statOf(t, b.dir(pod, name)); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	for _, path := range []string{"pods", "pods/0b1c-2d", "pods/0b1c-2d/volumes"} {
		if got := statOf(t, filepath.Join(b.root, path)); got.Mode&0o007 != 0 {
			t.Errorf("others may enter %s: %v", path, got.Mode)
		}
	}
	// As a database does with its data directory.
	write(t, filepath.Join(dir, "file"), "kept")
	if err := errors.Join(os.Chmod(dir, 0o700), os.Chown(dir, 70, 70)); err != nil {
		t.Fatal(err)
	}
	if err := b.restarted().SetUp(t.Context(), pod, b.facts); err != nil {
		t.Fatal(err)
	}
	if got, want := statOf(t, dir), (stat{0o700, 70, 70}); got != want || read(t, filepath.Join(dir, "file")) != "kept" {
		t.Errorf("after a restart it is %v, want %v", got, want)
	}
}

func TestEmptyDirThatWasNotFinishedIsFinished(t *testing.T) {
	b := newBench(t)
	pod := testPod(emptyDir("data", corev1.EmptyDirVolumeSource{}), emptyDir("mem", corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}))
	for _, v := range []string{"data", "mem"} {
		if _, err := makeDir(b.dir(pod, v)); err != nil { // and then the agent was killed
			t.Fatal(err)
		}
	}
	if err := mountTmpfs(b.dir(pod, "mem"), 0, 0); err != nil {
		t.Fatal(err)
	}
	b.setUp(pod)
	for _, v := range []string{"data", "mem"} {
		if got := statOf(t, b.dir(pod, v)).Mode; got != 0o777 {
			t.Errorf("%s is %v, want 0777", v, got)
		}
	}
}

func TestEmptyDirBelongsToTheFSGroup(t *testing.T) {
	b := newBench(t)
	pod := testPod(emptyDir("disk", corev1.EmptyDirVolumeSource{Mode: ptr.To[int32](0o700)}), emptyDir("mem", corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}))
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: ptr.To[int64](1234)}
	b.setUp(pod)
	if got, want := statOf(t, b.dir(pod, "disk")), (stat{0o770 | os.ModeSetgid, 0, 1234}); got != want {
		t.Errorf("on disk %v, want %v", got, want)
	}
	if got, want := statOf(t, b.dir(pod, "mem")), (stat{0o777 | os.ModeSetgid, 0, 1234}); got != want {
		t.Errorf("in memory %v, want %v", got, want)
	}
}

func TestEmptyDirInMemoryHoldsNoMoreThanItsSize(t *testing.T) {
	b := newBench(t)
	limit := func(s string) corev1.ResourceRequirements {
		return corev1.ResourceRequirements{Limits: corev1.ResourceList{"memory": resource.MustParse(s)}}
	}
	b.facts.Allocatable = corev1.ResourceList{"memory": resource.MustParse("4Mi")}
	pod := testPod(emptyDir("small", corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: ptr.To(resource.MustParse("1Mi"))}),
		emptyDir("big", corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}))
	b.setUp(pod)
	size := func(v string) int64 {
		var s unix.Statfs_t
		if err := unix.Statfs(b.dir(pod, v), &s); err != nil || s.Type != unix.TMPFS_MAGIC {
			t.Fatalf("%s: %v, type %x", v, err, s.Type)
		}
		return int64(s.Blocks) * s.Bsize
	}
	if small, big := size("small"), size("big"); small != 1<<20 || big != 4<<20 {
		t.Errorf("sizes %d and %d, want the sizeLimit and the node's memory", small, big)
	}
	err := os.WriteFile(filepath.Join(b.dir(pod, "small"), "f"), make([]byte, 2<<20), 0o644)
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("2 MiB into 1 MiB: %v, want no space left", err)
	}
	write(t, filepath.Join(b.dir(pod, "big"), "f"), "kept")
	pod.Spec.Containers[0].Resources = limit("2Mi") // a resize
	b.setUp(pod)
	if small, big := size("small"), size("big"); small != 1<<20 || big != 2<<20 {
		t.Errorf("sizes %d and %d after the Pod's limit became 2 MiB", small, big)
	}
	pod.Spec.Containers[0].Resources = limit("512Ki") // less than is in use of one
	b.setUp(pod)
	if small, big := size("small"), size("big"); small != 1<<20 || big != 512<<10 || read(t, filepath.Join(b.dir(pod, "big"), "f")) != "kept" {
		t.Errorf("sizes %d and %d after the Pod's limit became 512 KiB", small, big)
	}
	if points, _ := mountsBelow(b.root); len(points) != 2 {
		t.Errorf("mounted: %v, want two", points)
	}
}

func TestHugepagesNeedARequestOfTheirSize(t *testing.T) {
	pod := testPod()
	pod.Spec.Containers[0].Resources.Limits = corev1.ResourceList{"hugepages-2Mi": resource.MustParse("4Mi")}
	for medium, want := range map[corev1.StorageMedium]string{"HugePages": "2Mi", "HugePages-2Mi": "2Mi", "HugePages-1Gi": ""} {
		q, err := pageSize(pod, medium)
		if (err != nil) != (want == "") || err == nil && q.String() != want {
			t.Errorf("%s: %s, %v; want %q", medium, q.String(), err, want)
		}
	}
	pod.Spec.Containers[0].Resources.Limits["hugepages-1Gi"] = resource.MustParse("1Gi")
	if _, err := pageSize(pod, "HugePages"); err == nil || !strings.Contains(err.Error(), "multiple huge page sizes") {
		t.Errorf("of two sizes: %v", err)
	}
	b := newBench(t)
	if _, err := os.Stat("/sys/kernel/mm/hugepages/hugepages-2048kB"); err != nil {
		t.Skip("SKIP: this kernel has no huge pages to mount")
	}
	pod = testPod(emptyDir("huge", corev1.EmptyDirVolumeSource{Medium: "HugePages-2Mi"}))
	pod.Spec.Containers[0].Resources.Limits = corev1.ResourceList{"hugepages-2Mi": resource.MustParse("4Mi")}
	b.setUp(pod)
	b.setUp(pod)
	var s unix.Statfs_t
	if err := unix.Statfs(b.dir(pod, "huge"), &s); err != nil || s.Type != unix.HUGETLBFS_MAGIC || s.Bsize != 2<<20 {
		t.Errorf("%v, type %x, block size %d", err, s.Type, s.Bsize)
	}
}

func TestHostPathIsWhatItsTypeSays(t *testing.T) {
	b := newBench(t)
	at := func(s string) string { return filepath.Join(b.root, s) }
	write(t, at("file"), "x")
	if err := errors.Join(os.Mkdir(at("dir"), 0o755), os.Symlink(at("dir"), at("link")), unix.Mknod(at("socket"), unix.S_IFSOCK|0o600, 0)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path string
		kind corev1.HostPathType
		err  string
	}{
		{"none", corev1.HostPathUnset, ""},
		{"dir", corev1.HostPathDirectory, ""},
		{"link", corev1.HostPathDirectory, ""},
		{"new/deep", corev1.HostPathDirectoryOrCreate, ""},
		{"new/deep/file", corev1.HostPathFileOrCreate, ""},
		{"file", corev1.HostPathFile, ""},
		{"socket", corev1.HostPathSocket, ""},
		{"/dev/null", corev1.HostPathCharDev, ""},
		{"file", corev1.HostPathDirectory, " is not a directory"},
		{"file", corev1.HostPathDirectoryOrCreate, " is not a directory"},
		{"none", corev1.HostPathDirectory, " is not a directory"},
		{"dir", corev1.HostPathFileOrCreate, " is not a file"},
		{"no/parent", corev1.HostPathFileOrCreate, " is not a file"},
		{"file", corev1.HostPathSocket, " is not a socket file"},
		{"file", corev1.HostPathCharDev, " is not a character device"},
		{"/dev/null", corev1.HostPathBlockDev, " is not a block device"},
		{"file", "Odd", "Odd is an invalid volume type"},
	} {
		path := c.path
		if !filepath.IsAbs(path) {
			path = at(path)
		}
		pod := testPod(volumeOf("h", corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path, Type: &c.kind}}))
		err := b.SetUp(t.Context(), pod, b.facts)
		if (err == nil) != (c.err == "") || err != nil && (!strings.HasSuffix(err.Error(), c.err) || !strings.HasPrefix(err.Error(), `MountVolume.SetUp failed for volume "h" : `)) {
			t.Errorf("%s as %s: %v, want %s", c.path, c.kind, err, c.err)
		}
	}
	if got := statOf(t, at("new/deep/file")); got != (stat{0o644, 0, 0}) {
		t.Errorf("the file that was made is %v", got)
	}
}

func TestVolumesOfOtherKindsAreRefusedAndTheRestIsSetUp(t *testing.T) {
	b := newBench(t)
	pod := testPod(volumeOf("n", corev1.VolumeSource{NFS: &corev1.NFSVolumeSource{}}), volumeOf("p", corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{}}),
		emptyDir("../../x", corev1.EmptyDirVolumeSource{}), emptyDir("e", corev1.EmptyDirVolumeSource{}), emptyDir("odd", corev1.EmptyDirVolumeSource{Medium: "Tape"}))
	err := b.SetUp(t.Context(), pod, b.facts)
	want := `MountVolume.SetUp failed for volume "n" : no volume plugin matched: nfs volumes are not supported
MountVolume.SetUp failed for volume "p" : no volume plugin matched: persistentVolumeClaim volumes are not supported
MountVolume.SetUp failed for volume "../../x" : the name is not a DNS label
MountVolume.SetUp failed for volume "odd" : unknown storage medium "Tape"`
	if err == nil || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
	if got := statOf(t, b.dir(pod, "e")).Mode; got != 0o777 {
		t.Errorf("the good one is %v", got)
	}
	for _, uid := range []types.UID{"", "..", "a/b", "../../etc"} {
		pod.UID = uid
		if err := b.SetUp(t.Context(), pod, b.facts); err == nil {
			t.Errorf("UID %q is taken for a directory", uid)
		}
		if err := b.TearDown(t.Context(), uid); err == nil {
			t.Errorf("UID %q is torn down", uid)
		}
	}
}

func TestKnownArePodsWithSomethingOnDisk(t *testing.T) {
	b := newBench(t)
	if got, err := b.Known(); err != nil || len(got) != 0 {
		t.Errorf("before there is any: %v, %v", got, err)
	}
	pod, other := testPod(), testPod(emptyDir("e", corev1.EmptyDirVolumeSource{}))
	other.UID = "other"
	b.setUp(pod)
	b.setUp(other)
	got, err := b.restarted().Known()
	if d := cmp.Diff([]types.UID{"0b1c-2d", "other"}, got); d != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	if err := b.TearDown(t.Context(), "other"); err != nil {
		t.Fatal(err)
	}
	if got, _ := b.Known(); len(got) != 1 {
		t.Errorf("after one was torn down: %v", got)
	}
	if err := b.Refresh(t.Context(), other, b.facts); err != nil {
		t.Error(err)
	}
	if got, _ := b.Known(); len(got) != 1 {
		t.Errorf("a refresh brought back what was torn down: %v", got)
	}
}

func namespaced(name string) types.NamespacedName {
	return types.NamespacedName{Namespace: "web", Name: name}
}

// setTimes sets the times of a link itself.
func setTimes(t *testing.T, path string, at time.Time) {
	t.Helper()
	ts := unix.NsecToTimespec(at.UnixNano())
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		t.Fatal(err)
	}
}
