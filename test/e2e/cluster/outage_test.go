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
	if moved := r.end("API server away for " + away.String()).Moved(); moved > 0 {
		t.Errorf("%d UDP sockets were ended, and no endpoint was removed", moved)
	}
	if now := k.containerIDs(pods); !slices.Equal(ids, now) {
		t.Errorf("containers when the API server was back:\n%q\nbefore:\n%q", now, ids)
	}
	r = k.load(k.everyPath(s, traffic.TCP, traffic.UDP))
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
	r.end("return of the API server")
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
	report := r.end("upgrade and back")
	k.answered(report, names(pods))
	if report.Moved() > 0 {
		t.Errorf("%d UDP sockets were ended, and no endpoint was removed", report.Moved())
	}
	if now := k.containerIDs(pods); !slices.Equal(ids, now) {
		t.Errorf("containers after the upgrades:\n%q\nbefore:\n%q", now, ids)
	}
	// What comes after an upgrade is served too.
	k.spread("later", 2, nil)
	later := k.expose("later", "later", nodePort)
	k.ready(later, k.rolledOut("later"))
}
