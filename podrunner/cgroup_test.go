// SPDX-License-Identifier: Apache-2.0

package podrunner

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestAPodsCgroupHoldsItsLimitsAndIsRemoved(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: makes cgroups: needs root")
	}
	g, err := findCgroups(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	root := fmt.Sprint("/fairlead-cgroup-test-", rand.Uint64())
	t.Cleanup(func() {
		for _, m := range g.mounts() {
			if err := removeTree(m + root); err != nil {
				t.Error(err)
			}
		}
	})
	pod := &corev1.Pod{}
	pod.UID = "u1"
	parent := root + "/burstable/podu1"
	for _, l := range []*runtimeapi.LinuxContainerResources{
		{CpuShares: 512, CpuQuota: 50000, CpuPeriod: 100000, MemoryLimitInBytes: 64 << 20},
		{CpuShares: 256, CpuQuota: 20000, CpuPeriod: 100000, MemoryLimitInBytes: 32 << 20}, // changed in place
		{CpuShares: 256},
	} {
		if err := g.ensure(pod, parent, l); err != nil {
			t.Fatal(err)
		}
		for file, want := range g.files(root, l) {
			b, err := os.ReadFile(filepath.Join(file))
			if got := strings.TrimSpace(string(b)); err != nil || got != want {
				t.Errorf("%s: %q, %v, want %q", file, got, err, want)
			}
		}
	}
	if known := g.known(root); known["u1"] != parent || len(known) != 1 {
		t.Errorf("known: %v, want u1 at %s", known, parent)
	}
	for range 2 {
		if err := g.remove("u1", parent); err != nil {
			t.Error(err)
		}
	}
	if known := g.known(root); len(known) != 0 {
		t.Errorf("known after removal: %v", known)
	}
}

// files are what the kernel should show.
func (g *cgroups) files(root string, l *runtimeapi.LinuxContainerResources) map[string]string {
	dir := root + "/burstable/podu1/"
	quota, memory := "-1", "9223372036854771712"
	if l.CpuQuota > 0 {
		quota, memory = map[int64]string{50000: "50000", 20000: "20000"}[l.CpuQuota], map[int64]string{64 << 20: "67108864", 32 << 20: "33554432"}[l.MemoryLimitInBytes]
	}
	if g.unified != "" {
		if l.CpuQuota == 0 {
			return map[string]string{g.unified + dir + "memory.max": "max"}
		}
		return map[string]string{g.unified + dir + "cpu.max": quota + " 100000", g.unified + dir + "memory.max": memory}
	}
	return map[string]string{
		g.mountOf("cpu") + dir + "cpu.shares":               map[int64]string{512: "512", 256: "256"}[l.CpuShares],
		g.mountOf("cpu") + dir + "cpu.cfs_quota_us":         quota,
		g.mountOf("memory") + dir + "memory.limit_in_bytes": memory,
		g.mountOf("cpu") + dir + "../cpu.shares":            map[int64]string{512: "512", 256: "256"}[l.CpuShares],
	}
}

func TestASliceIsInThoseItsNameBeginsWith(t *testing.T) {
	for parent, want := range map[string]string{
		"/kubepods/burstable/pod1":            "/kubepods/burstable/pod1",
		"kubepods.slice":                      "kubepods.slice",
		"kubepods-besteffort-pod1_2.slice":    "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice",
		"/a-kubepods-burstable-pod1_2.slice/": "/a-kubepods-burstable-pod1_2.slice/",
	} {
		if got := slicePath(parent); got != want {
			t.Errorf("%s is at %s, want %s", parent, got, want)
		}
	}
}
