// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/test/e2e/cluster/traffic"
)

// outage is how long the API server is away; FAIRLEAD_OUTAGE is another
// duration.
const outage = 20 * time.Second

func TestTheAPIServerIsAwayUnderLoadAndReturnsToChurn(t *testing.T) {
	k := newCase(t)
	away := outage
	if text := os.Getenv("FAIRLEAD_OUTAGE"); text != "" {
		var err error
		if away, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	k.spread("web", 4, gentle)
	s := k.expose("web", "web", nodePort)
	doomed := k.expose("doomed", "web", nil)
	pods := k.rolledOut("web")
	k.ready(s, pods)
	r := k.load(k.everyPath(s, traffic.TCP, traffic.UDP, traffic.Held, traffic.HeldUDP))
	ids := k.containerIDs(pods)
	agents := k.agentPIDs()

	k.KillAPIServer()
	// One agent is started again meanwhile: it must leave all as it is.
	restarted := k.nodes[0]
	if err := restarted.stopAgent(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := restarted.startAgent(0); err != nil {
		t.Fatal(err)
	}
	time.Sleep(away)
	if err := k.StartAPIServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	k.RestartControllers()
	// All at once: Pods replaced, a Service deleted, another made.
	patch := []byte(`{"spec":{"template":{"metadata":{"annotations":{"version":"2"}}}}}`)
	k.eventually(func() error {
		_, err := k.client.AppsV1().Deployments(k.namespace).Patch(t.Context(), "web", types.StrategicMergePatchType, patch, metav1.PatchOptions{})
		return err
	})
	k.spread("fresh", 2, nil)
	fresh := k.expose("fresh", "fresh", nodePort)
	if err := k.client.CoreV1().Services(k.namespace).Delete(t.Context(), doomed.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if now := k.containerIDs(pods); !slices.Equal(ids, now) {
		t.Errorf("containers when the API server was back:\n%q\nbefore:\n%q", now, ids)
	}
	k.ready(fresh, k.rolledOut("fresh"))
	t.Logf("%v after the return, new Pods of a new Service answer on all paths", time.Since(back).Round(time.Millisecond))
	k.rolledOut("web")
	for _, n := range k.nodes {
		k.eventually(func() error {
			if count := k.frontendsOf(n, doomed.Name); count > 0 {
				return fmt.Errorf("%s still has %d Frontends of a deleted Service", n.name, count)
			}
			got, err := k.client.CoreV1().Nodes().Get(t.Context(), n.name, metav1.GetOptions{})
			if err == nil && !nodeReady(got) {
				err = fmt.Errorf("%s is not Ready: %+v", n.name, got.Status.Conditions)
			}
			return err
		})
		if err := n.agent.alive(); err != nil {
			t.Error(err)
		}
	}
	if now := k.agentPIDs(); now[1] != agents[1] {
		t.Errorf("the agents were processes %v, now they are %v", agents, now)
	}
	k.endButHeld(r, "API server away for "+away.String())
}

// endButHeld ends a load during which Pods were replaced: held connections are
// lost with their server, and only with it.
func (k *testCase) endButHeld(r *run, what string) {
	k.Helper()
	for _, c := range r.clients {
		var report traffic.Report
		if err := c.post("/stop", nil, &report); err != nil {
			k.Errorf("%s: %v", what, err)
			continue
		}
		asked := 0
		for _, s := range report.Streams {
			asked += s.Asked
			allowed := 0
			if s.Mode == traffic.Held || s.Mode == traffic.HeldUDP {
				allowed = 8 // each loss is noticed once, and there are four Pods
			}
			if s.Failed > allowed {
				k.Errorf("%s: from %s %d of %d questions failed, %s %s:\n%s", what, c.name, s.Failed, s.Asked, s.Mode, s.To, strings.Join(s.Failures, "\n"))
			}
		}
		k.Logf("%s: %s asked %d", what, c.name, asked)
	}
	r.clients = nil
}

func (k *testCase) agentPIDs() (out []int) {
	for _, n := range k.nodes {
		out = append(out, n.agent.cmd.Process.Pid)
	}
	return out
}

func TestAgentsAreUpgradedNodeByNodeUnderLoad(t *testing.T) {
	k := newCase(t)
	k.spread("web", 4, gentle)
	s := k.expose("web", "web", nodePort)
	pods := k.rolledOut("web")
	k.ready(s, pods)
	ids := k.containerIDs(pods)
	r := k.load(k.everyPath(s, traffic.TCP, traffic.UDP, traffic.Held, traffic.HeldUDP))
	for _, build := range []int{1, 0} { // and the way back
		for _, n := range k.nodes {
			if err := n.stopAgent(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if err := n.startAgent(build); err != nil {
				t.Fatal(err)
			}
			version := fmt.Sprintf("cluster-%c", 'a'+build)
			k.eventually(func() error {
				if err := n.agent.alive(); err != nil {
					return giveUp{err}
				}
				got, err := k.client.CoreV1().Nodes().Get(t.Context(), n.name, metav1.GetOptions{})
				if err != nil {
					return err
				}
				if !strings.Contains(got.Status.NodeInfo.KubeletVersion, version) {
					return fmt.Errorf("%s says %s, want %s", n.name, got.Status.NodeInfo.KubeletVersion, version)
				}
				if !nodeReady(got) {
					return errors.New(n.name + " is not Ready")
				}
				return nil
			})
			time.Sleep(time.Second)
		}
	}
	k.answered(r.end("upgrade and back"), names(pods))
	if now := k.containerIDs(pods); !slices.Equal(ids, now) {
		t.Errorf("containers after the upgrades:\n%q\nbefore:\n%q", now, ids)
	}
	// What comes after an upgrade is served too.
	k.spread("later", 2, nil)
	later := k.expose("later", "later", nodePort)
	k.ready(later, k.rolledOut("later"))
}
