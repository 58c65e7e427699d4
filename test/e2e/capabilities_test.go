// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// A pod's connected UDP socket is out of reach for an agent that may not enter
// the pod's network namespace: why the manifest asks for SYS_ADMIN.
func TestTheManifestsCapabilitiesSufficeAndAreNeeded(t *testing.T) {
	for _, c := range []struct {
		name   string
		place  place // without capabilities: the manifest's
		starts bool
		sweeps bool
	}{
		{"those of the manifest", place{}, true, true},
		{"BPF, NET_ADMIN and PERFMON", place{capabilities: []string{"BPF", "NET_ADMIN", "PERFMON"}}, true, false},
		{"none", place{capabilities: []string{"CHOWN"}}, false, false},
		{"hostPID with those of the manifest", place{hostPID: true}, true, false},
		{"hostPID with SYS_PTRACE", place{hostPID: true, capabilities: []string{"SYS_ADMIN", "SYS_PTRACE"}}, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBed(t)
			if c.place.capabilities == nil {
				c.place.capabilities = b.set.capabilities
			}
			a := b.startIn(c.place)
			if !c.starts {
				select {
				case <-a.exited:
					t.Logf("it said: %s", a.log.String())
				case <-time.After(startBound):
					t.Errorf("after %v the agent still runs without capabilities", startBound)
				}
				return
			}
			a.ready()
			pod := b.client("client")
			dns := b.expose("dns", func(s *corev1.Service) { s.Spec.Ports[0].Protocol = corev1.ProtocolUDP })
			b.endpoints(dns, "a")
			eventually(t, agentBound, func() string {
				if got := pod.do(question{Op: "open", Network: "udp", To: clusterIP(dns)}); got.Backend != "a" {
					return fmt.Sprintf("%+v", got)
				}
				return ""
			})
			b.endpoints(dns, "b")
			swept := false
			for deadline := time.Now().Add(2500 * time.Millisecond); !swept && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
				swept = pod.do(question{Op: "again"}).Backend != "a"
			}
			if swept != c.sweeps {
				t.Errorf("the socket that was connected to the removed Backend was ended: %v, want %v", swept, c.sweeps)
			}
		})
	}
}

// The other dataplanes' overlays have no SYS_ADMIN.
func TestTheOverlaysCapabilitiesSufficeForTheirDataplane(t *testing.T) {
	for _, name := range []string{"nftables", "iptables"} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			set := parseManifests(t, overlay(t, name))
			b.startIn(place{capabilities: set.capabilities, args: set.args}).ready()
			pod, outside := b.client("client"), b.client("outside")
			web := b.expose("web", nil)
			b.endpoints(web, "a")
			pod.reaches(clusterIP(web), "a")
			outside.reaches(b.nodePort(web), "a")
			b.endpoints(web, "b")
			pod.reaches(clusterIP(web), "b")
			outside.reaches(b.nodePort(web), "b")
			if n := b.metric("fairlead_failed_services"); n != 0 {
				t.Errorf("%v Services failed", n)
			}
			if n := b.metric("fairlead_apply_errors_total"); n != 0 {
				t.Errorf("%v attempts failed", n)
			}
			b.deleteService(t, "web")
			pod.getsNothing(clusterIP(web), "refused", "timed out")
		})
	}
}
