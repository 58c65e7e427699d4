// SPDX-License-Identifier: Apache-2.0

package podrunner

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// deletion is what an API server makes of a Pod that somebody deletes.
func deletion(p *corev1.Pod, seconds int64) *corev1.Pod {
	p = p.DeepCopy()
	at := metav1.Now()
	p.DeletionTimestamp, p.DeletionGracePeriodSeconds = &at, &seconds
	return p
}

func (g *rig) isFinished(uid types.UID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.finished[uid]
}

// order has the names of Events of one reason, as they came.
func (g *rig) order(pod, reason string) (names []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, e := range g.events {
		if f := strings.Fields(e); f[0] == pod && f[1] == reason {
			names = append(names, strings.Join(f[2:], " "))
		}
	}
	return names
}

func TestADeletedPodEndsInGoodOrder(t *testing.T) {
	g := newRig(t)
	share := t.TempDir()
	p := parsePod(t, `
metadata: {name: p, uid: u-1}
spec:
  restartPolicy: Always
  terminationGracePeriodSeconds: 20
  volumes: [{name: v, hostPath: {path: `+share+`}}]
  initContainers:
  - {name: s1, image: IMAGE, restartPolicy: Always, args: [terminated, /v/log, s1, "0"], volumeMounts: [{name: v, mountPath: /v}], LISTENS}
  - {name: s2, image: IMAGE, restartPolicy: Always, args: [terminated, /v/log, s2, "0"], volumeMounts: [{name: v, mountPath: /v}], LISTENS}
  containers:
  - {name: c, image: IMAGE, args: [terminated, /v/log, c, "5"], volumeMounts: [{name: v, mountPath: /v}], LISTENS,
     lifecycle: {preStop: {exec: {command: [/guest, write, /v/log, preStop]}}}}`)
	g.want(p)
	key := types.NamespacedName{Namespace: "default", Name: "p"}
	g.await(key, "it is ready", ready)
	g.want(deletion(p, 20))
	s := g.await(key, "it has ended", func(s *corev1.PodStatus) bool { return s.Phase == corev1.PodFailed })
	if want := "s1: terminated(Completed,0); s2: terminated(Completed,0); c: terminated(Error,5)"; briefAll(&s) != want {
		t.Errorf("%s, want %s", briefAll(&s), want)
	}
	g.until("it is finished", patience, func() bool { return g.isFinished("u-1") })
	b, err := os.ReadFile(filepath.Join(share, "log"))
	if got := strings.Fields(string(b)); err != nil || strings.Join(got, " ") != "preStop c s2 s1" {
		t.Errorf("what ended: %v, %v; want preStop c s2 s1", got, err)
	}
	if _, err := os.Stat(filepath.Join(g.rt.LogRoot, "default_p_u-1")); !os.IsNotExist(err) {
		t.Errorf("its logs are left: %v", err)
	}
	g.remove(key)
}

func TestWhatDoesNotEndIsEndedByForce(t *testing.T) {
	g := newRig(t)
	manifest := `
metadata: {name: NAME, uid: UID}
spec:
  terminationGracePeriodSeconds: 300
  containers: [{name: c, image: IMAGE, args: [stubborn], LISTENS}]`
	soft := parsePod(t, strings.NewReplacer("NAME", "soft", "UID", "u-soft").Replace(manifest))
	hard := parsePod(t, strings.NewReplacer("NAME", "hard", "UID", "u-hard").Replace(manifest))
	for _, p := range []*corev1.Pod{soft, hard} {
		g.want(p)
	}
	for _, p := range []*corev1.Pod{soft, hard} {
		g.await(types.NamespacedName{Namespace: "default", Name: p.Name}, "ready", ready)
	}
	begin := time.Now()
	g.want(deletion(soft, 3))   // it has three seconds
	g.want(deletion(hard, 300)) // five minutes, and then somebody loses patience
	time.Sleep(300 * time.Millisecond)
	g.want(deletion(hard, 0))
	for _, p := range []*corev1.Pod{soft, hard} {
		key := types.NamespacedName{Namespace: "default", Name: p.Name}
		g.await(key, "killed", func(s *corev1.PodStatus) bool { return briefAll(s) == "c: terminated(Error,137)" })
		g.until(p.Name+": finished", patience, func() bool { return g.isFinished(p.UID) })
		g.remove(key)
	}
	if took := time.Since(begin); took > patience {
		t.Errorf("it took %v", took)
	}
}

func TestAnEditInADirectoryRollsThePod(t *testing.T) {
	g := newRig(t)
	key := g.pod(`
metadata: {name: p}
spec:
  terminationGracePeriodSeconds: 2
  containers: [{name: c, image: IMAGE, args: [then, echo, one, ;, sleep]}]`)
	g.await(key, "ready", ready)
	first := g.r.Pod(key)
	g.pod(`
metadata: {name: p}
spec:
  terminationGracePeriodSeconds: 2
  containers: [{name: c, image: IMAGE, args: [then, echo, two, ;, sleep]}]`)
	g.until("p: the second one runs", patience, func() bool {
		p := g.r.Pod(key)
		return p != nil && p.UID != first.UID && ready(&p.Status) && g.log(key, "c", false) == "two\n"
	})
	if !g.isFinished(first.UID) {
		t.Error("the first one is not finished, while the second one runs")
	}
	second := g.r.Pod(key).UID
	g.remove(key)
	g.pod(`
metadata: {name: p}
spec:
  terminationGracePeriodSeconds: 2
  containers: [{name: c, image: IMAGE, args: [then, echo, two, ;, sleep]}]`)
	g.until("p: it runs again after its file came back", patience, func() bool {
		p := g.r.Pod(key)
		return g.isFinished(second) && p != nil && ready(&p.Status)
	})
}

func TestAPodThatNobodyWantsAnyMoreIsRemovedAfterARestart(t *testing.T) {
	g := newRig(t)
	share := t.TempDir()
	key := g.pod(`
metadata: {name: p}
spec:
  terminationGracePeriodSeconds: 10
  volumes: [{name: v, hostPath: {path: ` + share + `}}]
  containers: [{name: c, image: IMAGE, args: [terminated, /v/log, bye], volumeMounts: [{name: v, mountPath: /v}], LISTENS,
    lifecycle: {preStop: {exec: {command: [/guest, write, /v/log, hook]}}}}]`)
	g.await(key, "ready", ready)
	g.stop()
	g.mu.Lock()
	delete(g.wanted, key)
	g.mu.Unlock()

	r, err := New(g.o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = r.Run(ctx) }()
	time.Sleep(2 * time.Second)
	if b, err := os.ReadFile(filepath.Join(share, "log")); err == nil {
		t.Errorf("it ended before the source was complete: %s", b)
	}
	cancel()
	<-done
	g.run()
	g.until("nothing of it is left", patience, func() bool {
		client := g.r.Runtime()
		if client == nil {
			return false
		}
		left, err := client.List(t.Context())
		return err == nil && len(left) == 0
	})
	if b, _ := os.ReadFile(filepath.Join(share, "log")); string(b) != "hook\nbye\n" {
		t.Errorf("an orphan ended with %q, want its hook and its time to end", b)
	}
	if known, err := g.r.volumes.Known(); err != nil || len(known) > 0 {
		t.Errorf("volumes are left: %v %v", known, err)
	}
}

// What watches Pods, as the Job controller, waits for a phase that is final.
func TestAPodThatIsDeletedBeforeItStartsHasFailed(t *testing.T) {
	g := newRig(t)
	p := parsePod(t, `
metadata: {name: p, uid: u-1}
spec:
  restartPolicy: Never
  containers: [{name: c, image: "fairlead.test/none:1", imagePullPolicy: Never}]`)
	g.want(p)
	key := types.NamespacedName{Namespace: "default", Name: "p"}
	g.await(key, "it waits", func(s *corev1.PodStatus) bool { return briefAll(s) == "c: waiting(ErrImageNeverPull)" })
	g.want(deletion(p, 30))
	g.until("it is finished", patience, func() bool { return g.isFinished("u-1") })
	if s := g.status(key); s.Phase != corev1.PodFailed || briefAll(&s) != "c: terminated(ContainerStatusUnknown,137)" {
		t.Errorf("phase %s, %s", s.Phase, briefAll(&s))
	}
	g.remove(key)
}
