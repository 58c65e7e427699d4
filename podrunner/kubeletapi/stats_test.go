// SPDX-License-Identifier: Apache-2.0

package kubeletapi

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func writeFiles(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestBothKindsOfCgroupsAreRead(t *testing.T) {
	v1, v2 := t.TempDir(), t.TempDir()
	writeFiles(t, v1, map[string]string{
		"memory/kubepods/pod1/memory.usage_in_bytes": "1000\n",
		"memory/kubepods/pod1/memory.stat":           "inactive_file 1\ntotal_rss 500\ntotal_inactive_file 300\ntotal_pgfault 7\ntotal_pgmajfault 2\nhierarchical_memory_limit 4096\n",
		"cpuacct/kubepods/pod1/cpuacct.usage":        "123456789\n",
		"pids/kubepods/pod1/pids.current":            "4\n",
	})
	writeFiles(t, v2, map[string]string{
		"cgroup.controllers":                     "cpu memory pids\n",
		"kubepods/pod1/memory.current":           "1000\n",
		"kubepods/pod1/memory.stat":              "anon 500\ninactive_file 300\npgfault 7\npgmajfault 2\n",
		"kubepods/pod1/memory.max":               "max\n",
		"kubepods/pod1/cpu.stat":                 "usage_usec 123456\nuser_usec 1\n",
		"kubepods/pod1/pids.current":             "4\n",
		"kubepods/pod1/memory.swap.current":      "11\n",
		"kubepods/pod1/memory.swap.max":          "22\n",
		"kubepods/pod1/container/memory.current": "5\n",
	})
	old := parseMounts([]byte("1 2 0:1 / " + v1 + "/memory rw - cgroup cgroup rw,memory\n" +
		"1 2 0:1 / " + v1 + "/cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n1 2 0:1 / " + v1 + "/pids rw - cgroup cgroup rw,pids\n"))
	now := parseMounts([]byte("1 2 0:1 / " + v2 + " rw - cgroup2 cgroup2 rw\n"))
	for _, c := range []struct {
		k    kernel
		want cgroupUsage
	}{
		{old, cgroupUsage{123456789, 1000, 700, 4096, 500, 7, 2, -1, -1, 4}},
		{now, cgroupUsage{123456000, 1000, 700, -1, 500, 7, 2, 11, 22, 4}},
	} {
		got, ok := c.k.cgroup("/kubepods/pod1")
		if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(cgroupUsage{})); diff != "" || !ok {
			t.Errorf("%t (-want +got):\n%s", ok, diff)
		}
		if _, ok := c.k.cgroup("/kubepods/pod2"); ok {
			t.Error("a cgroup that is not there is read")
		}
	}
}

func TestUseOfCPUIsWhatWasUsedBetweenTwoQuestions(t *testing.T) {
	r := rates{last: map[string]cpuSample{}}
	start := time.Now()
	for _, c := range []struct {
		at   time.Duration
		used uint64
		want int64 // -1: not known
	}{
		{0, 1000, -1},
		{100 * time.Millisecond, 5000, -1}, // too soon
		{2 * time.Second, 2_000_001_000, 1_000_000_000},
		{2100 * time.Millisecond, 2_000_001_000, 1_000_000_000}, // too soon: as before
		{4 * time.Second, 2_000_001_000, 0},
		{5 * time.Second, 10, -1}, // another container
	} {
		got := r.of("a", c.used, start.Add(c.at))
		if (got == nil) != (c.want < 0) || got != nil && int64(*got) != c.want {
			t.Errorf("at %v: %v, want %d", c.at, got, c.want)
		}
	}
}

func TestThisMachineIsMeasured(t *testing.T) {
	k, err := openKernel()
	if err != nil {
		t.Fatal(err)
	}
	s := &Stats{kernel: k, rates: rates{last: map[string]cpuSample{}}, o: StatsOptions{NodeName: "one", Root: t.TempDir()}}
	n := s.node(t.Context(), false)
	if n.CPU == nil || *n.CPU.UsageCoreNanoSeconds == 0 || n.Memory == nil || *n.Memory.WorkingSetBytes == 0 || *n.Memory.WorkingSetBytes > *n.Memory.UsageBytes ||
		n.Fs == nil || *n.Fs.CapacityBytes == 0 || n.Rlimit == nil || *n.Rlimit.MaxPID == 0 || *n.Rlimit.NumOfRunningProcesses == 0 || time.Since(n.StartTime.Time) < 0 {
		t.Errorf("%+v", n)
	}
}

func TestTheDeviceWithTheMostTrafficIsTheDefaultOne(t *testing.T) {
	n := network([]byte(`Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 9999 1 0 0 0 0 0 0 9999 1 0 0 0 0 0 0
  eth0:  100 1 2 0 0 0 0 0 300 1 4 0 0 0 0 0
  eth1:  1000 1 2 0 0 0 0 0 3000 1 4 0 0 0 0 0
  bad: x 1 2 0 0 0 0 0 3000 1 4 0 0 0 0 0
`), metav1.Time{})
	if len(n.Interfaces) != 2 || n.Name != "eth1" || *n.RxBytes != 1000 || *n.TxBytes != 3000 || *n.RxErrors != 2 || *n.TxErrors != 4 {
		t.Errorf("%+v", n)
	}
	if network(nil, metav1.Time{}) != nil {
		t.Error("a machine without devices has some")
	}
}

func FuzzKernelFiles(f *testing.F) {
	f.Add([]byte("eth0:  100 1 2 0 0 0 0 0 300 1 4 0 0 0 0 0\nMemTotal: 1 kB\ncpu 1 2 3 4 5 6 7 8 9\nbtime 1\n1 2 0:1 / /m rw - cgroup cgroup rw,cpu\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for name, v := range parseStat(b) {
			if v < 0 {
				t.Errorf("%q: %d", name, v)
			}
		}
		parseNetDev(b)
		parseProcStat(string(b))
		parseMounts(b)
	})
}
