// SPDX-License-Identifier: Apache-2.0

package kubeletapi

import (
	"encoding/json"
	"regexp"
	"strconv"
	"testing"
	"time"

	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

func (k *kubelet) testStats(t *testing.T) {
	var s statsapi.Summary
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(300 * time.Millisecond) {
		code, body := k.get(t, "GET", "/stats/summary")
		s = statsapi.Summary{}
		if err := json.Unmarshal([]byte(body), &s); err != nil || code != 200 {
			t.Fatalf("%d %v %s", code, err, body)
		}
		if len(s.Pods) == 1 && len(s.Pods[0].Containers) == 3 && s.Pods[0].CPU != nil && s.Pods[0].CPU.UsageNanoCores != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no use of CPU: %s", body)
		}
	}
	p := s.Pods[0]
	if p.Network == nil || p.Network.Name != "eth0" || *p.Network.RxBytes == 0 {
		t.Errorf("network %+v", p.Network)
	}
	if p.Memory == nil || p.Memory.WorkingSetBytes == nil || *p.Memory.WorkingSetBytes == 0 || p.EphemeralStorage == nil || *p.EphemeralStorage.UsedBytes < 1_000_000 {
		t.Errorf("memory %+v, storage %+v", p.Memory, p.EphemeralStorage)
	}
	for _, c := range p.Containers {
		if c.CPU == nil || c.CPU.UsageCoreNanoSeconds == nil || c.Memory == nil || c.Memory.WorkingSetBytes == nil || c.StartTime.IsZero() || c.Logs == nil || c.Rootfs == nil {
			t.Errorf("container %+v", c)
		}
	}
	if n := s.Node; n.NodeName != "one" || n.CPU.UsageNanoCores == nil || n.Runtime == nil || n.Runtime.ImageFs == nil {
		t.Errorf("node %+v", n)
	}
	code, body := k.get(t, "GET", "/metrics/resource")
	for name, least := range map[string]float64{
		`node_cpu_usage_seconds_total`:  1,
		`node_memory_working_set_bytes`: 1e6,
		`container_cpu_usage_seconds_total{container="talker",namespace="default",pod="web"}`: 0.001,
		`container_memory_working_set_bytes{container="web",namespace="default",pod="web"}`:   1e5,
		`container_start_time_seconds{container="web",namespace="default",pod="web"}`:         1.7e9,
		`pod_cpu_usage_seconds_total{namespace="default",pod="web"}`:                          0.001,
		`pod_memory_working_set_bytes{namespace="default",pod="web"}`:                         1e6,
		`resource_scrape_error`: 0,
	} {
		m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` (\S+)`).FindStringSubmatch(body)
		if m == nil {
			t.Errorf("%d, no %s in\n%s", code, name, body)
			continue
		}
		if v, err := strconv.ParseFloat(m[1], 64); err != nil || v < least {
			t.Errorf("%s is %s, want at least %g", name, m[1], least)
		}
	}
}
