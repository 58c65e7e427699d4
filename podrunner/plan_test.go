// SPDX-License-Identifier: Apache-2.0

package podrunner

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"pgregory.net/rapid"

	"fairlead.dev/podrunner/podspec"
	"fairlead.dev/podrunner/podstatus"
	"fairlead.dev/podrunner/probe"
)

// world is a runtime of the mind: it does at once what a plan says.
type world struct {
	pod      *corev1.Pod
	observed podstatus.Observed
	stopping map[string]bool
	results  map[string]map[probe.Kind]probe.Result
	clock    time.Time
	n        int
}

func newWorld(p *corev1.Pod) *world {
	return &world{pod: p, stopping: map[string]bool{}, results: map[string]map[probe.Kind]probe.Result{}, clock: time.Unix(1e9, 0)}
}

func (w *world) plan() plan {
	p := planner{
		pod: w.pod, observed: &w.observed, stopping: func(id string) bool { return w.stopping[id] },
		probed:  func(id string, k probe.Kind) probe.Result { return w.results[id][k] },
		resized: func(*corev1.Container, *podstatus.Container) (bool, bool) { return false, false },
	}
	return p.plan()
}

func (w *world) id() string {
	w.n++
	w.clock = w.clock.Add(time.Second)
	return fmt.Sprint("id", w.n)
}

func (w *world) addSandbox(attempt uint32) {
	for i := range w.observed.Sandboxes {
		w.observed.Sandboxes[i].Ready = false
	}
	w.observed.Sandboxes = append(w.observed.Sandboxes, podstatus.Sandbox{
		ID: w.id(), Attempt: attempt, Ready: true, Created: w.clock, IPs: []netip.Addr{netip.MustParseAddr("10.0.0.1")},
	})
	sortNewestFirst(&w.observed)
}

func (w *world) add(name string, state podstatus.ContainerState, code int32) *podstatus.Container {
	c := podstatus.Container{
		ID: w.id(), Name: name, State: state, ExitCode: code, Created: w.clock, Started: w.clock, Finished: w.clock,
		SandboxID: w.observed.Active().ID,
	}
	for _, s := range [][]corev1.Container{w.pod.Spec.Containers, w.pod.Spec.InitContainers} {
		for i := range s {
			if s[i].Name == name {
				c.Hash = podspec.ContainerHash(&s[i])
			}
		}
	}
	w.observed.Containers = append(w.observed.Containers, c)
	sortNewestFirst(&w.observed)
	return w.observed.Newest(name)
}

// brief says what a plan does.
func (p *plan) brief() string {
	var b []string
	if p.finished {
		b = append(b, "finished")
	}
	if p.sandbox != "" {
		b = append(b, fmt.Sprintf("sandbox %d", p.attempt))
	}
	for _, k := range p.kill {
		b = append(b, "kill "+k.spec.Name)
	}
	for _, s := range p.start {
		b = append(b, "start "+s.spec.Name)
	}
	return strings.Join(b, ", ")
}

const planPod = `
metadata: {name: p}
spec:
  restartPolicy: POLICY
  initContainers:
  - {name: i1, image: IMAGE}
  - {name: s, image: IMAGE, restartPolicy: Always, startupProbe: {exec: {command: [x]}}}
  - {name: i2, image: IMAGE}
  containers:
  - {name: a, image: IMAGE, livenessProbe: {exec: {command: [x]}}}
  - {name: b, image: IMAGE}`

func TestThePlanFollowsFromWhatTheRuntimeHas(t *testing.T) {
	const running, exited, created, unknown = podstatus.Running, podstatus.Exited, podstatus.Created, podstatus.Unknown
	for _, c := range []struct {
		name, policy string
		world        func(w *world)
		want         string
	}{
		{"nothing yet", "Always", func(w *world) { w.observed = podstatus.Observed{} }, "sandbox 0"},
		{"a sandbox", "Always", func(*world) {}, "start i1"},
		{"the first init container runs", "Always", func(w *world) { w.add("i1", running, 0) }, ""},
		{"it was only created", "Always", func(w *world) { w.add("i1", created, 0) }, "start i1"},
		{"it is done: the sidecar", "Always", func(w *world) { w.add("i1", exited, 0) }, "start s"},
		{"it failed", "Always", func(w *world) { w.add("i1", exited, 1) }, "start i1"},
		{"it failed for good", "Never", func(w *world) { w.add("i1", exited, 1) }, "finished"},
		{"the sidecar has not started", "Always", func(w *world) { w.add("i1", exited, 0); w.add("s", running, 0) }, ""},
		{"the sidecar failed to start", "Always", func(w *world) {
			w.add("i1", exited, 0)
			w.results[w.add("s", running, 0).ID] = map[probe.Kind]probe.Result{probe.Startup: probe.Failure}
		}, "kill s"},
		{"the sidecar has started", "Always", func(w *world) {
			w.add("i1", exited, 0)
			w.results[w.add("s", running, 0).ID] = map[probe.Kind]probe.Result{probe.Startup: probe.Success}
		}, "start i2"},
		{"the sidecar ended while the next one runs", "Never", func(w *world) {
			w.add("i1", exited, 0)
			w.add("s", exited, 1)
			w.add("i2", running, 0)
		}, "start s"},
		{"somebody removed the first one", "Always", func(w *world) {
			w.results[w.add("s", running, 0).ID] = map[probe.Kind]probe.Result{probe.Startup: probe.Success}
		}, "start i2"},
		{"the runtime has lost an init container", "Always", func(w *world) { w.add("i1", unknown, 0) }, "kill i1"},
		{"initialized", "Always", func(w *world) { w.initialize() }, "start a, start b"},
		{"one runs", "Always", func(w *world) { w.initialize(); w.add("a", running, 0) }, "start b"},
		{"both run", "Always", func(w *world) { w.initialize(); w.add("a", running, 0); w.add("b", running, 0) }, ""},
		{"one ended well", "OnFailure", func(w *world) { w.initialize(); w.add("a", running, 0); w.add("b", exited, 0) }, ""},
		{"one ended well, and always runs", "Always", func(w *world) { w.initialize(); w.add("a", running, 0); w.add("b", exited, 0) }, "start b"},
		{"one failed", "OnFailure", func(w *world) { w.initialize(); w.add("a", running, 0); w.add("b", exited, 1) }, "start b"},
		{"both ended, the sidecar runs", "OnFailure", func(w *world) { w.initialize(); w.add("a", exited, 0); w.add("b", exited, 0) }, "finished"},
		{"both failed, never again", "Never", func(w *world) { w.initialize(); w.add("a", exited, 1); w.add("b", exited, 2) }, "finished"},
		{"not alive", "Always", func(w *world) {
			w.initialize()
			w.results[w.add("a", running, 0).ID] = map[probe.Kind]probe.Result{probe.Liveness: probe.Failure}
			w.add("b", running, 0)
		}, "kill a"},
		{"not alive, and being stopped", "Always", func(w *world) {
			w.initialize()
			a := w.add("a", running, 0)
			w.results[a.ID] = map[probe.Kind]probe.Result{probe.Liveness: probe.Failure}
			w.stopping[a.ID] = true
			w.add("b", running, 0)
		}, ""},
		{"another image", "Always", func(w *world) { w.initialize(); w.add("a", running, 0).Hash = 7; w.add("b", running, 0) }, "kill a"},
		{"the sandbox ended", "Always", func(w *world) {
			w.initialize()
			w.add("a", exited, 137)
			w.observed.Sandboxes[0].Ready = false
		}, "sandbox 1"},
		{"the sandbox ended after all was done", "Never", func(w *world) {
			w.initialize()
			w.add("a", exited, 0)
			w.add("b", exited, 137)
			w.observed.Sandboxes[0].Ready = false
		}, "finished"},
		{"in a new sandbox init containers run again", "Always", func(w *world) {
			w.initialize()
			w.add("a", exited, 137)
			w.addSandbox(1)
		}, "start i1"},
		{"no address", "Always", func(w *world) { w.observed.Sandboxes[0].IPs = nil }, "sandbox 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(parsePod(t, strings.ReplaceAll(planPod, "POLICY", c.policy)))
			w.addSandbox(0)
			c.world(w)
			p := w.plan()
			if got := p.brief(); got != c.want {
				t.Errorf("plan: %q, want %q", got, c.want)
			}
		})
	}
}

func (w *world) initialize() {
	w.add("i1", podstatus.Exited, 0)
	w.results[w.add("s", podstatus.Running, 0).ID] = map[probe.Kind]probe.Result{probe.Startup: probe.Success}
	w.add("i2", podstatus.Exited, 0)
}

// Whatever happens to a Pod, its plans keep to the rules, and where nothing more
// happens they come to an end.
func TestPlansKeepToTheRulesWhateverHappens(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policy := rapid.SampledFrom([]string{"Always", "OnFailure", "Never"}).Draw(t, "policy")
		w := newWorld(parsePod(quiet{}, strings.ReplaceAll(planPod, "POLICY", policy)))
		for range rapid.IntRange(1, 40).Draw(t, "events") {
			p := w.plan()
			w.check(t, &p)
			w.follow(&p)
			w.happen(t)
		}
		for i := 0; ; i++ {
			p := w.plan()
			w.check(t, &p)
			if p.brief() == "" || p.finished {
				return
			}
			if i > 30 {
				t.Fatalf("the plans do not end: %s", p.brief())
			}
			w.follow(&p)
			for _, c := range w.observed.Containers {
				if c.Name == "s" && c.State == podstatus.Running {
					w.results[c.ID] = map[probe.Kind]probe.Result{probe.Startup: probe.Success}
				}
			}
			w.endInits(0)
		}
	})
}

func (w *world) endInits(code int32) {
	for i := range w.observed.Containers {
		c := &w.observed.Containers[i]
		if strings.HasPrefix(c.Name, "i") && c.State == podstatus.Running {
			c.State, c.ExitCode = podstatus.Exited, code
		}
	}
}

func (w *world) check(t *rapid.T, p *plan) {
	running := map[string]int{}
	for _, c := range w.observed.Containers {
		if c.State == podstatus.Running {
			running[c.Name]++
		}
	}
	for _, s := range p.start {
		if p.sandbox != "" || p.finished {
			t.Fatalf("%s: starts without a sandbox, or after the end", p.brief())
		}
		if running[s.spec.Name] > 0 {
			t.Fatalf("%s: %s runs already", p.brief(), s.spec.Name)
		}
		if s.role == regular && !podstatus.RegularStarted(w.pod, &w.observed) {
			for _, init := range []string{"i1", "i2"} {
				if c := w.observed.NewestActive(init); c != nil && (c.State != podstatus.Exited || c.ExitCode != 0) {
					t.Fatalf("%s before %s is done", p.brief(), init)
				}
			}
		}
		if last := w.observed.Newest(s.spec.Name); last != nil && last.State == podstatus.Exited && s.role == regular &&
			!podstatus.ShouldRestart(w.pod, s.spec, false, last.ExitCode) {
			t.Fatalf("%s: %s ended with %d", p.brief(), s.spec.Name, last.ExitCode)
		}
	}
	for _, k := range p.kill {
		if slices.ContainsFunc(p.start, func(s startOrder) bool { return s.spec.Name == k.spec.Name }) {
			t.Fatalf("%s: kills and starts the same", p.brief())
		}
	}
}

func (w *world) follow(p *plan) {
	if p.sandbox != "" {
		for i := range w.observed.Containers {
			if c := &w.observed.Containers[i]; c.State != podstatus.Exited {
				c.State, c.ExitCode = podstatus.Exited, 137
			}
		}
		w.addSandbox(p.attempt)
	}
	for _, k := range p.kill {
		for i := range w.observed.Containers {
			if c := &w.observed.Containers[i]; c.ID == k.container.ID {
				c.State, c.ExitCode = podstatus.Exited, 137
			}
		}
	}
	for _, s := range p.start {
		w.observed.Containers = slices.DeleteFunc(w.observed.Containers, func(c podstatus.Container) bool {
			return c.Name == s.spec.Name && c.State == podstatus.Created
		})
		w.add(s.spec.Name, podstatus.Running, 0)
	}
}

// happen is something that the world does by itself.
func (w *world) happen(t *rapid.T) {
	if len(w.observed.Containers) == 0 {
		return
	}
	c := &w.observed.Containers[rapid.IntRange(0, len(w.observed.Containers)-1).Draw(t, "which")]
	switch rapid.IntRange(0, 6).Draw(t, "what") {
	case 0, 1:
		if c.State == podstatus.Running {
			c.State, c.ExitCode = podstatus.Exited, int32(rapid.IntRange(0, 1).Draw(t, "code"))
		}
	case 2:
		w.results[c.ID] = map[probe.Kind]probe.Result{
			probe.Startup:  rapid.SampledFrom([]probe.Result{probe.Success, probe.Failure}).Draw(t, "startup"),
			probe.Liveness: rapid.SampledFrom([]probe.Result{probe.Success, probe.Failure}).Draw(t, "liveness"),
		}
	case 3:
		w.observed.Sandboxes[0].Ready = false
	case 4:
		c.State = podstatus.Unknown
	case 5: // an old one is removed
		w.observed.Containers = w.observed.Containers[:len(w.observed.Containers)-1]
	case 6:
		c.State = podstatus.Created
	}
}

// quiet is a testing.TB for parsePod in a property.
type quiet struct{ testing.TB }

func (quiet) Helper()                   {}
func (quiet) Fatalf(f string, a ...any) { panic(fmt.Sprintf(f, a...)) }
