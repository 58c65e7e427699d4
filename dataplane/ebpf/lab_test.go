// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/dataplanetest"
)

// Builders that these tests name in almost every line.
var backends, clusterIP, table, syntheticTable = dataplanetest.Backends, dataplanetest.ClusterIP, dataplanetest.Table, dataplanetest.Synthetic

// lab is a network namespace, a bpffs and a cgroup of one test's own. The test
// goroutine's thread is in the namespace, the whole process in the cgroup.
type lab struct {
	t       testing.TB
	options Options
}

var labs atomic.Int32

func newLab(t testing.TB) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: eBPF programs are loaded and attached")
	}
	runtime.LockOSThread() // not unlocked: the thread stays in its namespace and dies with the test
	name := fmt.Sprintf("fairlead-test-%d-%d", os.Getpid(), labs.Add(1))
	ns, err := netns.NewNamed(name) // named, so that a sweep finds it
	if err != nil {
		t.Fatalf("make network namespace: %v", err)
	}
	t.Cleanup(func() {
		ns.Close()
		netns.DeleteNamed(name)
	})
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	l := &lab{t: t, options: Options{
		BPFFS: mountBPFFS(t), CgroupRoot: joinCgroup(t),
		FrontendsMax: 65536, SlotsMax: 262144, ServicesMax: 32768, ConntrackMax: 16384, AffinityMax: 4096, DatagramsMax: 4096,
		Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})),
	}}
	return l
}

// playsRole makes the test binary another process, which a test starts.
const playsRole = "FAIRLEAD_TEST_ROLE"

// roles are what it does then. What they print is for the test.
var roles = map[string]func(){"reader": readStdin}

// TestMain first removes what runs of these tests that were killed left.
func TestMain(m *testing.M) {
	if role := roles[os.Getenv(playsRole)]; role != nil {
		role()
		os.Exit(0)
	}
	forDead := func(pattern string, remove func(path string)) {
		paths, _ := filepath.Glob(pattern)
		for _, path := range paths {
			_, pid, _ := strings.Cut(filepath.Base(path), "-") // fairlead-<what>-PID[-...]
			_, pid, _ = strings.Cut(pid, "-")
			pid, _, _ = strings.Cut(pid, "-")
			if _, err := os.Stat("/proc/" + pid); err != nil {
				remove(path)
			}
		}
	}
	forDead("/run/netns/fairlead-test-*-*", func(path string) { netns.DeleteNamed(filepath.Base(path)) })
	forDead(filepath.Join(os.TempDir(), "fairlead-bpffs-*"), func(path string) { unix.Unmount(path, unix.MNT_DETACH); os.Remove(path) })
	if root, err := findCgroup2(); err == nil {
		forDead(filepath.Join(root, "fairlead-test-*"), func(path string) { os.Remove(path) })
	}
	os.Exit(m.Run())
}

func mountBPFFS(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", fmt.Sprintf("fairlead-bpffs-%d-*", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=0700"); err != nil {
		t.Fatalf("mount bpffs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount bpffs: %v", err)
		}
		os.Remove(dir)
	})
	return dir
}

func joinCgroup(t testing.TB) string {
	t.Helper()
	root, err := findCgroup2()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(root, fmt.Sprintf("fairlead-test-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	move := func(to string) error {
		return os.WriteFile(filepath.Join(to, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
	}
	before := ownCgroup(t, root)
	if err := move(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := move(before); err != nil {
			t.Errorf("leave cgroup: %v", err)
		}
		if err := os.Remove(dir); err != nil {
			t.Errorf("remove cgroup: %v", err)
		}
	})
	return dir
}

func ownCgroup(t testing.TB, root string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return filepath.Join(root, path)
		}
	}
	return root
}

func (l *lab) open() *Dataplane {
	l.t.Helper()
	d, err := New(context.Background(), l.options)
	if err != nil {
		l.t.Fatalf("open dataplane: %+v", err)
	}
	l.t.Cleanup(func() { d.Close() })
	return d
}

// read opens a reader of what the kernel holds.
func (l *lab) read() (dataplane.Reader, error) { return Read(l.options.BPFFS) }

// holds fails the test unless the kernel's dump equals the Table's.
func (l *lab) holds(t *dataplane.Table) {
	l.t.Helper()
	dataplanetest.Holds(l.t, l.read, t)
}
