// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/test/e2e/cluster/traffic"
)

// soak is what runs beside the load.
type soak struct {
	*testCase
	random *rand.Rand
	until  time.Time
	done   map[string]int // what was done how often
	memory map[string][]int
	number int
	alive  []string      // names of the Services that come and go
	absent time.Duration // the longest time without an agent on a node
}

// What may be left over of the memory of an agent that was not restarted, from
// the second quarter of the soak to the last: its heap breathes between two
// collections.
const (
	memoryGrowthPercent = 15
	memoryGrowthKiB     = 8 << 10
)

// TestSoak is `make soak`: load on every path, while Services and Pods come and
// go, agents and runtimes are killed, and agents are upgraded.
func TestSoak(t *testing.T) {
	text := os.Getenv("FAIRLEAD_SOAK")
	if text == "" {
		t.Skip("SKIPPED: it takes as long as FAIRLEAD_SOAK says, such as 20m: make soak")
	}
	long, err := time.ParseDuration(text)
	if err != nil || long < time.Minute {
		t.Fatalf("FAIRLEAD_SOAK=%q: want a duration of a minute or more, such as 20m", text)
	}
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("FAIRLEAD_SEED"); text != "" {
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("FAIRLEAD_SEED=%q: want a number", text)
		}
	}
	t.Logf("FAIRLEAD_SEED=%d repeats the choices of this run", seed)
	s := &soak{testCase: newCase(t), random: rand.New(rand.NewPCG(seed, seed)), done: map[string]int{}, memory: map[string][]int{}}
	s.spread("steady", 4, gentle)
	s.spread("rolling", 3, patient)
	steady, rolling := s.expose("steady", "steady", nodePort), s.expose("rolling", "rolling", nodePort)
	pods := s.rolledOut("steady")
	s.ready(steady, pods)
	s.ready(rolling, s.rolledOut("rolling"))
	s.alone()
	s.settledFill("steady", 4)
	baseline := s.leftovers()
	ids := s.containerIDs(pods)

	plans := s.everyPath(steady, traffic.TCP, traffic.UDP, traffic.Held, traffic.HeldUDP)
	for c, p := range s.everyPath(rolling, traffic.TCP, traffic.UDP) {
		plans[c] = traffic.Plan{Streams: append(plans[c].Streams, p.Streams...)}
	}
	r := s.load(plans)
	s.until = time.Now().Add(long)
	s.run()
	s.quiesce()
	r.end("soak of " + long.String())
	t.Logf("done meanwhile: %v; without an agent a node was for %v at most", s.done, s.absent.Round(time.Millisecond))
	if now := s.containerIDs(pods); !slices.Equal(ids, now) {
		t.Errorf("containers that nobody touched:\n%q\nbefore:\n%q", now, ids)
	}
	s.judgeMemory()
	if err := within(patience, func() error { return more(s.leftovers(), baseline) }); err != nil {
		t.Error(err)
	}
	s.forgetsFlows()
}

// Flows of the packet path are forgotten when they were idle for three minutes,
// and it takes some time to come round to all.
const (
	forgetting = 5 * time.Minute
	fewFlows   = 100 // entries, of agents and probes
)

func (s *soak) forgetsFlows() {
	begun, before := time.Now(), map[string]int{}
	for _, n := range s.nodes {
		before[n.name] = n.mapEntries("conntrack")["conntrack"]
		if before[n.name] <= fewFlows {
			s.Errorf("%s: %d entries of conntrack right after the load: what is forgotten shows nothing", n.name, before[n.name])
		}
	}
	err := within(forgetting, func() error {
		for _, n := range s.nodes {
			if now := n.mapEntries("conntrack")["conntrack"]; now > fewFlows {
				return fmt.Errorf("%s: %d entries of conntrack are left of %d when the load ended, want %d at most", n.name, now, before[n.name], fewFlows)
			}
		}
		return nil
	})
	if err != nil {
		s.Error(err)
	}
	s.Logf("entries of conntrack when the load had ended: %v; %d at most after %v", before, fewFlows, time.Since(begun).Round(time.Second))
}

// patient is gentle with time for the agents to be killed and to come back.
func patient(d *appsv1.Deployment) {
	gentle(d)
	d.Spec.Template.Spec.TerminationGracePeriodSeconds = new(int64(60))
	d.Spec.Template.Spec.Containers[0].Lifecycle.PreStop.Sleep.Seconds = 20
}

// run does one thing after another until the time is over.
func (s *soak) run() {
	type deed struct {
		name  string
		every time.Duration
		do    func() error
		next  time.Time
	}
	deeds := []*deed{
		{name: "Services changed", every: 300 * time.Millisecond, do: s.changeServices},
		{name: "endpoints scaled", every: 5 * time.Second, do: s.scale},
		{name: "memory looked at", every: 2 * time.Second, do: s.measure},
		{name: "agents killed", every: 9 * time.Second, do: s.killAgent},
		{name: "agents upgraded", every: 31 * time.Second, do: s.upgradeAgent},
		{name: "runtimes killed", every: 47 * time.Second, do: s.killRuntime},
		{name: "rolling updates", every: 40 * time.Second, do: s.update},
	}
	for _, d := range deeds {
		d.next = time.Now().Add(d.every)
	}
	for time.Now().Before(s.until) {
		for _, d := range deeds {
			if time.Now().Before(d.next) {
				continue
			}
			if err := d.do(); err != nil {
				s.Fatalf("%s: %v", d.name, err)
			}
			s.done[d.name]++
			d.next = time.Now().Add(d.every)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Of the Services that come and go there are between these two: what the agent
// holds must stay the same.
const fewest, most = 20, 40

// changeServices makes a Service, or takes one away, of any of two selectors.
func (s *soak) changeServices() error {
	api := s.client.CoreV1().Services(s.namespace)
	if n := len(s.alive); n >= most || n >= fewest && s.random.IntN(2) == 0 {
		i := s.random.IntN(n)
		name := s.alive[i]
		s.alive = slices.Delete(s.alive, i, i+1)
		return api.Delete(s.Context(), name, metav1.DeleteOptions{})
	}
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("churn-%d", s.number)}, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeNodePort, IPFamilyPolicy: new(corev1.IPFamilyPolicyRequireDualStack),
		Selector: map[string]string{"app": []string{"steady", "rolling"}[s.random.IntN(2)]}, Ports: []corev1.ServicePort{{Port: 8080}}}}
	s.number++
	s.alive = append(s.alive, service.Name)
	_, err := api.Create(s.Context(), service, metav1.CreateOptions{})
	return err
}

func (s *soak) patchDeployment(name, patch string) error {
	_, err := s.client.AppsV1().Deployments(s.namespace).Patch(s.Context(), name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
	return err
}

func (s *soak) scale() error {
	return s.patchDeployment("rolling", fmt.Sprintf(`{"spec":{"replicas":%d}}`, 2+s.random.IntN(3)))
}

func (s *soak) update() error {
	return s.patchDeployment("rolling", fmt.Sprintf(`{"spec":{"template":{"metadata":{"annotations":{"version":"%d"}}}}}`, time.Now().UnixNano()))
}

// killed is the node whose agent is killed and upgraded; the agents of the
// others live through it all, and their memory is looked at.
func (s *soak) killed() *node { return s.nodes[len(s.nodes)-1] }

func (s *soak) killAgent() error { return s.replaceAgent(syscall.SIGKILL, 0) }

func (s *soak) upgradeAgent() error { return s.replaceAgent(syscall.SIGTERM, 1) }

// replaceAgent returns when the new agent follows the API server: the time
// without one must be less than a Pod serves after the word of its end.
func (s *soak) replaceAgent(sig syscall.Signal, build int) error {
	n := s.killed()
	begun := time.Now()
	if err := n.stopAgent(sig); err != nil {
		return err
	}
	if err := n.startAgent(build); err != nil {
		return err
	}
	err := within(patience, func() error {
		if err := n.agent.alive(); err != nil {
			return giveUp{err}
		}
		code, body, err := n.get("http://127.0.0.1:10256/healthz")
		if err == nil && code != http.StatusOK {
			err = fmt.Errorf("/healthz answers %d %s", code, body)
		}
		return err
	})
	s.absent = max(s.absent, time.Since(begun))
	return err
}

func (s *soak) killRuntime() error {
	n := s.nodes[s.random.IntN(len(s.nodes))]
	_ = n.containerd.stop(syscall.SIGKILL, time.Minute)
	return n.startContainerd()
}

func (s *soak) measure() error {
	for _, n := range s.nodes {
		if err := n.agent.alive(); err != nil {
			return err
		}
		if n == s.killed() {
			continue
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.agent.cmd.Process.Pid))
		if err != nil {
			return err
		}
		m := regexp.MustCompile(`(?m)^RssAnon:\s+(\d+) kB$`).FindSubmatch(b)
		if m == nil {
			return fmt.Errorf("no RssAnon in %s", b)
		}
		kib, err := strconv.Atoi(string(m[1]))
		if err != nil {
			return err
		}
		s.memory[n.name] = append(s.memory[n.name], kib)
	}
	return nil
}

func (s *soak) judgeMemory() {
	median := func(all []int) int {
		all = slices.Sorted(slices.Values(all))
		return all[len(all)/2]
	}
	for name, all := range s.memory {
		quarter := len(all) / 4
		if quarter == 0 {
			s.Errorf("%s: %d looks at the memory only", name, len(all))
			continue
		}
		early, late := median(all[quarter:2*quarter]), median(all[3*quarter:])
		s.Logf("%s: own memory of the agent, median %d KiB in the second quarter and %d KiB in the last, %d at most", name, early, late, slices.Max(all))
		if late > early*(100+memoryGrowthPercent)/100+memoryGrowthKiB {
			s.Errorf("%s: own memory of the agent grew from %d KiB to %d KiB", name, early, late)
		}
	}
}

// quiesce takes away what the churn made.
func (s *soak) quiesce() {
	if err := s.patchDeployment("rolling", `{"spec":{"replicas":3}}`); err != nil {
		s.Fatal(err)
	}
	for _, name := range s.alive {
		if err := s.client.CoreV1().Services(s.namespace).Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
			s.Error(err)
		}
	}
	s.rolledOut("rolling")
}

// leftovers counts what Pods have on all nodes together, since the scheduler
// moves them, and what Services have on each.
func (k *testCase) leftovers() map[string]int {
	k.Helper()
	out := map[string]int{}
	for _, n := range k.nodes {
		err := n.do(func() error {
			netns, err := os.ReadDir("/run/netns")
			if err != nil {
				return err
			}
			mounts, err := os.ReadFile("/proc/1/mountinfo")
			if err != nil {
				return err
			}
			volumes, err := os.ReadDir("/var/lib/fairlead/pods")
			if err != nil {
				return err
			}
			links, err := netlink.LinkList()
			if err != nil {
				return err
			}
			out["network namespaces"] += len(netns)
			out["mounts"] += strings.Count(string(mounts), "\n")
			out["Pods with volumes"] += len(volumes)
			out["links"] += len(links)
			return nil
		})
		if err != nil {
			k.Fatal(err)
		}
	}
	maps.Copy(out, k.settledFill("steady", 4))
	return out
}

// more says of what there is more than before.
func more(now, before map[string]int) error {
	var of []string
	for what, n := range now {
		if n > before[what] {
			of = append(of, fmt.Sprintf("%s: %d, before %d", what, n, before[what]))
		}
	}
	if len(of) == 0 {
		return nil
	}
	slices.Sort(of)
	return fmt.Errorf("left over: %s", strings.Join(of, "; "))
}
