// SPDX-License-Identifier: Apache-2.0

package node

import (
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func file(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }

func TestCapacityAndAllocatableAreReadFromTheMachine(t *testing.T) {
	root := fstest.MapFS{
		"sys/devices/system/cpu/online": file("0-2,5\n"),
		"proc/meminfo":                  file("MemTotal:        4194304 kB\nMemFree: 17 kB\nSwapTotal:  1024 kB\nHugePages_Total: 3\n"),
		"sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages":    file("16\n"),
		"sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages": file("0\n"),
		"sys/kernel/mm/hugepages/nonsense/nr_hugepages":            file("1\n"),
		"etc/machine-id":                 file("abc\n"),
		"proc/sys/kernel/random/boot_id": file("boot-1\n"),
		"proc/sys/kernel/osrelease":      file("6.18.0\n"),
		"etc/os-release":                 file("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n"),
	}
	m, err := readMachine(root, "/nowhere")
	if err != nil {
		t.Fatal(err)
	}
	m.disk = 1000
	got := map[string]string{}
	for name, q := range m.capacity(110) {
		got["capacity "+string(name)] = q.String()
	}
	o := &Options{MaxPods: 110, Reserved: resources("500m", "412Mi")}
	for name, q := range m.allocatable(o) {
		got["allocatable "+string(name)] = q.String()
	}
	want := map[string]string{
		"capacity cpu": "4", "capacity memory": "4Gi", "capacity pods": "110", "capacity ephemeral-storage": "1k",
		"capacity hugepages-2Mi": "32Mi", "capacity hugepages-1Gi": "0",
		// 4 Gi - 412 Mi reserved - 100 Mi threshold - 32 Mi huge pages.
		"allocatable cpu": "3500m", "allocatable memory": "3552Mi", "allocatable pods": "110", "allocatable ephemeral-storage": "900",
		"allocatable hugepages-2Mi": "32Mi", "allocatable hugepages-1Gi": "0",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("resources (-want +got):\n%s", diff)
	}
	var info corev1.NodeSystemInfo
	m.info(&info)
	wantInfo := corev1.NodeSystemInfo{MachineID: "abc", SystemUUID: "abc", BootID: "boot-1", KernelVersion: "6.18.0",
		OSImage: "Debian GNU/Linux 12", Swap: &corev1.NodeSwapStatus{Capacity: new(int64(1 << 20))}}
	if diff := cmp.Diff(wantInfo, info); diff != "" {
		t.Errorf("info (-want +got):\n%s", diff)
	}
}

func TestThisMachineCanBeRead(t *testing.T) {
	n, err := Local(Options{Name: "Here", Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourcePods, corev1.ResourceEphemeralStorage} {
		c, a := n.Status.Capacity[name], n.Status.Allocatable[name]
		if c.Sign() <= 0 || a.Cmp(c) > 0 {
			t.Errorf("%s: capacity %s, allocatable %s", name, c.String(), a.String())
		}
	}
	if n.Labels[corev1.LabelHostname] != "here" {
		t.Errorf("labels %v", n.Labels)
	}
	if r := Admit(requesting("", "1Mi"), nil, n); r != nil {
		t.Errorf("a small Pod is refused: %+v", r)
	}
}

func TestReservingMoreThanThereIsLeavesNothing(t *testing.T) {
	m := machine{cpus: 1, memory: 1 << 20}
	for name, q := range m.allocatable(&Options{MaxPods: 1, Reserved: resources("2", "1Gi")}) {
		if q.Sign() < 0 {
			t.Errorf("%s: %s", name, q.String())
		}
	}
}

func TestListsOfCPUsAreCounted(t *testing.T) {
	for list, want := range map[string]int64{"0": 1, "0-3": 4, "0-3,8,10-11": 7, "": 0, "3-1": 0, "a-b": 0, "0,": 0, "99999999": 0} {
		if got := countCPUs(list); got != want {
			t.Errorf("countCPUs(%q) = %d, want %d", list, got, want)
		}
	}
}

func TestPressureLastsFiveMinutesAfterItWasSeen(t *testing.T) {
	now := time.Unix(1000, 0)
	p := Pressure{}
	g := &Gauge{now: func() time.Time { return now }, probe: func(string) Pressure { return p }}
	step := func(d time.Duration, seen, want Pressure) {
		t.Helper()
		now, p = now.Add(d), seen
		if got := g.Measure(); got != want {
			t.Errorf("at %v: %+v, want %+v", now.Unix(), got, want)
		}
	}
	step(0, Pressure{}, Pressure{})
	step(time.Second, Pressure{Memory: true}, Pressure{Memory: true})
	step(4*time.Minute+59*time.Second, Pressure{Disk: true}, Pressure{Memory: true, Disk: true})
	step(2*time.Second, Pressure{}, Pressure{Disk: true})
	step(5*time.Minute, Pressure{}, Pressure{})
}

func TestProcessesRunShortAtATenthOfTheLimit(t *testing.T) {
	for _, c := range []struct {
		limit, load string
		want        bool
	}{{"1000\n", "0.1 0.2 0.3 1/900 77", false}, {"1000\n", "0.1 0.2 0.3 1/901 77", true}, {"x", "", false}, {"1000", "0.1 0.2", false}} {
		if got := pidsShort(c.limit, c.load); got != c.want {
			t.Errorf("pidsShort(%q, %q) = %t", c.limit, c.load, got)
		}
	}
}

func TestResourcesOfOthersStayAndThoseOfThisMachineFollow(t *testing.T) {
	q := resource.MustParse
	list := corev1.ResourceList{"cpu": q("1000m"), "memory": q("1"), "hugepages-2Mi": q("4Mi"), "example.com/gpu": q("1")}
	replaceResources(list, corev1.ResourceList{"cpu": q("1"), "memory": q("2"), "pods": q("3")})
	want := corev1.ResourceList{"cpu": q("1000m"), "memory": q("2"), "pods": q("3"), "example.com/gpu": q("1")}
	if diff := cmp.Diff(want, list); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func FuzzMeminfo(f *testing.F) {
	f.Add([]byte("MemTotal: 1 kB\nMemAvailable: 99999999999999999999 kB\n:\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for name, v := range parseMeminfo(b) {
			if v < 0 {
				t.Errorf("%q: %d", name, v)
			}
		}
	})
}
