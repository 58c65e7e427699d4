// SPDX-License-Identifier: Apache-2.0

package podrunner

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/podrunner/podspec"
)

// restartCases are states of life; each Pod is brought there, then the agent or
// containerd is restarted, then it goes where it should, and nothing that ran
// was disturbed.
var restartCases = []struct {
	name, spec string
	// before says that the Pod is there; after that it is where it should be.
	before  func(s *corev1.PodStatus) bool
	delete  bool   // it is being deleted meanwhile
	release string // this file in its hostPath volume lets it go on
	after   func(s *corev1.PodStatus) bool
	same    []string // containers that must be the same ones
}{
	{name: "running", spec: `containers: [{name: c, image: IMAGE, args: [sleep]}]`,
		before: ready, after: ready, same: []string{"c"}},
	{name: "probed", spec: `
containers: [{name: c, image: IMAGE, args: [serve], startupProbe: {httpGet: {port: 8080}, periodSeconds: 1, timeoutSeconds: 20, failureThreshold: 60}, readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1, timeoutSeconds: 20}, livenessProbe: {exec: {command: [/guest, exit, "0"]}, periodSeconds: 1, timeoutSeconds: 20}}]`,
		before: ready, after: ready, same: []string{"c"}},
	{name: "initializing", spec: `
initContainers: [{name: i, image: IMAGE, args: [wait, /v/go], volumeMounts: [{name: v, mountPath: /v}]}]
containers: [{name: c, image: IMAGE, args: [sleep]}]`,
		before: func(s *corev1.PodStatus) bool { return strings.HasPrefix(briefAll(s), "i: running") }, release: "go", after: ready, same: []string{"i"}},
	{name: "with a sidecar", spec: `
initContainers: [{name: s, image: IMAGE, args: [sleep], restartPolicy: Always}]
containers: [{name: c, image: IMAGE, args: [sleep]}]`,
		before: ready, after: ready, same: []string{"s", "c"}},
	{name: "a job in its work", spec: `
restartPolicy: Never
containers: [{name: c, image: IMAGE, args: [wait, /v/go], volumeMounts: [{name: v, mountPath: /v}]}]`,
		before: ready, release: "go", after: func(s *corev1.PodStatus) bool { return s.Phase == corev1.PodSucceeded }, same: []string{"c"}},
	{name: "a job that is done", spec: `
restartPolicy: Never
containers: [{name: c, image: IMAGE, args: [exit, "3"]}]`,
		before: func(s *corev1.PodStatus) bool { return s.Phase == corev1.PodFailed },
		after: func(s *corev1.PodStatus) bool {
			return s.Phase == corev1.PodFailed && briefAll(s) == "c: terminated(Error,3)"
		}, same: []string{"c"}},
	{name: "crash looping", spec: `containers: [{name: c, image: IMAGE, args: [exit, "1"]}]`,
		before: func(s *corev1.PodStatus) bool {
			return strings.Contains(briefAll(s), "CrashLoopBackOff") && s.ContainerStatuses[0].RestartCount > 1
		},
		after: func(s *corev1.PodStatus) bool {
			return strings.Contains(briefAll(s), "CrashLoopBackOff") && s.ContainerStatuses[0].RestartCount > 2
		}},
	{name: "waiting for its image", spec: `containers: [{name: c, image: "127.0.0.1:9/none:1"}]`,
		before: func(s *corev1.PodStatus) bool { return strings.Contains(briefAll(s), "ImagePull") },
		after:  func(s *corev1.PodStatus) bool { return strings.Contains(briefAll(s), "ImagePull") }},
	{name: "being deleted", spec: `
terminationGracePeriodSeconds: 60
containers: [{name: c, image: IMAGE, args: [then, wait, /v/go, ;, exit, "0"], volumeMounts: [{name: v, mountPath: /v}], lifecycle: {preStop: {exec: {command: [/guest, wait, /v/go]}}}}]`,
		before: ready, delete: true, release: "go"},
}

// restarting is a case in its course.
type restarting struct {
	key   types.NamespacedName
	uid   types.UID
	share string
	ids   map[string]string
}

func (g *rig) testRestarts(t *testing.T, restart func()) {

	var all []restarting
	for i, c := range restartCases {
		share := t.TempDir()
		p := parsePod(t, fmt.Sprintf("metadata: {name: p%d}\nspec:\n  %s", i, strings.ReplaceAll(strings.TrimSpace(c.spec), "\n", "\n  ")))
		p.UID = types.UID(fmt.Sprintf("00000000-0000-0000-0000-%012d", i))
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: share}}})
		if p.Spec.TerminationGracePeriodSeconds == nil {
			p.Spec.TerminationGracePeriodSeconds = new(int64)
			*p.Spec.TerminationGracePeriodSeconds = 2
		}
		g.want(p)
		r := restarting{key: types.NamespacedName{Namespace: "default", Name: p.Name}, uid: p.UID, share: share, ids: map[string]string{}}
		s := g.await(r.key, c.name, c.before)
		if c.delete {
			g.want(deletion(p, 60))
			g.until(p.Name+": it is being stopped", patience, func() bool { return len(g.order(p.Name, "Killing")) > 0 })
		}
		for _, cs := range append(s.InitContainerStatuses, s.ContainerStatuses...) {
			r.ids[cs.Name] = cs.ContainerID
		}
		all = append(all, r)
	}
	restart()
	// What was told before it is not what comes of it.
	before := g.lists()
	g.until("the runtime is asked again", patience, func() bool { return g.lists() > before+1 })
	for i, c := range restartCases {
		r := all[i]
		t.Run(c.name, func(t *testing.T) {
			g := g.as(t)
			if c.release != "" {
				if err := os.WriteFile(filepath.Join(r.share, c.release), nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if c.delete {
				g.until(r.key.Name+": it is finished", patience, func() bool { return g.isFinished(r.uid) })
				g.remove(r.key)
				return
			}
			s := g.await(r.key, c.name+", after the restart", c.after)
			for _, cs := range append(s.InitContainerStatuses, s.ContainerStatuses...) {
				for _, name := range c.same {
					if cs.Name == name && (cs.ContainerID != r.ids[name] || cs.RestartCount != 0) {
						t.Errorf("container %s was %s, is %s with %d restarts", name, r.ids[name], cs.ContainerID, cs.RestartCount)
					}
				}
			}
		})
	}
}

// lists is how often the Runner has listed what the runtime has.
func (g *rig) lists() int {
	g.r.mu.Lock()
	defer g.r.mu.Unlock()
	return g.r.lists
}

func (g *rig) forget() {
	g.mu.Lock()
	defer g.mu.Unlock()
	clear(g.told)
}

func TestARestartOfTheAgentDisturbsNothing(t *testing.T) {
	g := newRig(t)
	g.testRestarts(t, func() {
		g.stop()
		g.forget()
		g.run()
	})
}

func TestARestartOfContainerdDisturbsNothing(t *testing.T) {
	g := newRig(t)
	g.testRestarts(t, func() {
		g.rt.Kill()
		time.Sleep(300 * time.Millisecond)
		if err := g.rt.Launch(); err != nil {
			t.Fatal(err)
		}
	})
}

// killProcess kills the one process with this command line. A container may be
// said to run a moment before it has executed what it should.
func killProcess(t *testing.T, args ...string) {
	t.Helper()
	want := strings.Join(args, "\x00") + "\x00"
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, path := range all {
			if b, _ := os.ReadFile(path); string(b) == want {
				pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
				return
			}
		}
	}
	t.Fatalf("no process %v", args)
}

func TestARuntimeThatHangsIsSurvived(t *testing.T) {
	g := newRig(t, func(o *Options) { o.CallTimeout = 5 * time.Second })
	key := g.pod(`{metadata: {name: p}, spec: {terminationGracePeriodSeconds: 2, containers: [{name: c, image: IMAGE, args: [sleep]}]}}`)
	s := g.await(key, "ready", ready)
	id := s.ContainerStatuses[0].ContainerID
	dies := g.pod(`{metadata: {name: dies}, spec: {terminationGracePeriodSeconds: 2, containers: [{name: c, image: IMAGE, args: [sleep, "86399"]}]}}`)
	g.await(dies, "ready", ready)
	if err := g.rt.Hang(); err != nil {
		t.Fatal(err)
	}
	// What the kernel says is heard though the runtime says nothing.
	killProcess(t, "/guest", "sleep", "86399")
	s = g.await(dies, "not ready, since its process is gone", func(s *corev1.PodStatus) bool { return !ready(s) })
	if c := s.ContainerStatuses[0]; c.State.Running == nil || c.RestartCount != 0 {
		t.Errorf("the status of a container that the runtime did not say has ended: %+v", c)
	}
	late := g.pod(`{metadata: {name: q}, spec: {terminationGracePeriodSeconds: 2, containers: [{name: c, image: IMAGE, args: [sleep]}]}}`)
	g.until("q: calls have run into their limit", patience, func() bool { return len(g.order("q", podspec.ReasonSandbox)) > 0 })
	if s := g.status(key); !ready(&s) {
		t.Error("a Pod is not ready because the runtime hangs")
	}
	if err := g.rt.Resume(); err != nil {
		t.Fatal(err)
	}
	g.await(late, "ready in the end", ready)
	g.await(dies, "restarted in the end", func(s *corev1.PodStatus) bool { return ready(s) && s.ContainerStatuses[0].RestartCount > 0 })
	if s := g.status(key); s.ContainerStatuses[0].ContainerID != id {
		t.Error("a container was replaced because the runtime hung")
	}
}
