// SPDX-License-Identifier: Apache-2.0

package podrunner

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"fairlead.dev/podrunner/containerdtest"
	"fairlead.dev/podrunner/objects"
	"fairlead.dev/podrunner/podspec"
)

func TestMain(m *testing.M) { containerdtest.Main(m) }

// patience is how long a Pod may take to get where it should: the machines of
// tests are slow and shared.
const patience = 60 * time.Second

// rig is a Runner with a real containerd, and what it told, as a test sees it.
type rig struct {
	t testing.TB
	*shared
}

type shared struct {
	rt *containerdtest.Runtime
	o  Options

	r    *Runner
	stop func()

	mu       sync.Mutex
	told     map[types.NamespacedName][]corev1.PodStatus
	finished map[types.UID]bool
	events   []string
	news     chan struct{}
	wanted   map[types.NamespacedName]*corev1.Pod
}

func newRig(t testing.TB, with ...func(*Options)) *rig {
	t.Helper()
	rt := containerdtest.Start(t)
	g := &rig{t, &shared{
		rt: rt, told: map[types.NamespacedName][]corev1.PodStatus{}, finished: map[types.UID]bool{},
		news: make(chan struct{}), wanted: map[types.NamespacedName]*corev1.Pod{},
	}}
	g.o = Options{
		NodeName: "node", Root: rt.Root, Socket: rt.Socket, Objects: noObjects{}, Status: g.shared, Events: g.shared,
		Facts: func() podspec.Facts {
			return podspec.Facts{
				NodeName: "node", HostIPs: []netip.Addr{netip.MustParseAddr("10.88.0.1")}, LogRoot: rt.LogRoot,
				CgroupRoot: rt.CgroupRoot + "/kubepods", MemoryCapacity: 8 << 30, HostResolvConf: "nameserver 192.0.2.53\n",
			}
		},
		RestartBackoff: 300 * time.Millisecond, RestartBackoffMax: 5 * time.Second, PullBackoff: 300 * time.Millisecond,
		Retry: 100 * time.Millisecond, CallTimeout: 20 * time.Second, Logger: slog.New(slog.DiscardHandler),
	}
	for _, f := range with {
		f(&g.o)
	}
	g.run()
	t.Cleanup(g.end)
	return g
}

// as is the rig for a subtest.
func (g *rig) as(t testing.TB) *rig { return &rig{t, g.shared} }

// run starts a Runner, as a start of the agent does.
func (g *rig) run() {
	r, err := New(g.o)
	if err != nil {
		g.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	g.r = r
	g.stop = func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				g.t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			g.t.Error("Run does not return")
		}
	}
	g.mu.Lock()
	for key, p := range g.wanted {
		r.OnPod(key, p)
	}
	g.mu.Unlock()
	r.OnSynced()
}

// end removes all Pods and stops.
func (g *rig) end() {
	g.mu.Lock()
	keys := make([]types.NamespacedName, 0)
	for key := range g.wanted {
		keys = append(keys, key)
	}
	g.mu.Unlock()
	for _, key := range keys {
		g.remove(key)
	}
	g.until("all Pods are removed", 2*patience, func() bool { return len(g.r.Pods()) == 0 })
	g.stop()
}

func (g *shared) SetPodStatus(key types.NamespacedName, uid types.UID, s corev1.PodStatus) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.told[key] = append(g.told[key], s)
	g.tell()
}

func (g *shared) PodFinished(key types.NamespacedName, uid types.UID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.finished[uid] = true
	g.tell()
}

func (g *shared) Event(o runtime.Object, kind, reason, message string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.events = append(g.events, fmt.Sprintf("%s %s %s", o.(*corev1.ObjectReference).Name, reason, message))
}

func (g *shared) tell() {
	close(g.news)
	g.news = make(chan struct{})
}

// until waits for a condition, looked at with each status and now and then, and
// once more at the end: a machine that stood still has had no time.
func (g *rig) until(what string, timeout time.Duration, cond func() bool) (came bool) {
	g.t.Helper()
	end := time.After(timeout)
	for {
		g.mu.Lock()
		news := g.news
		g.mu.Unlock()
		if cond() {
			return true
		}
		select {
		case <-news:
		case <-time.After(50 * time.Millisecond):
		case <-end:
			time.Sleep(50 * time.Millisecond)
			if cond() {
				return true
			}
			g.t.Errorf("not within %v: %s\n%s", timeout, what, g.dump(what))
			return false
		}
	}
}

func (g *rig) dump(what string) string {
	var b strings.Builder
	for _, p := range g.r.Pods() {
		if name, _, ok := strings.Cut(what, ":"); ok && name != p.Name {
			continue
		}
		y, _ := yaml.Marshal(p.Status)
		fmt.Fprintf(&b, "--- %s\n%s", p.Name, y)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for key, all := range g.told { // also of those that are gone
		for _, s := range all[max(0, len(all)-5):] {
			fmt.Fprintf(&b, "told: %s %s: %s\n", key.Name, s.Phase, briefAll(&s))
		}
	}
	for _, e := range g.events[max(0, len(g.events)-30):] {
		fmt.Fprintln(&b, "event:", e)
	}
	fmt.Fprintln(&b, "containerd:", g.rt.Log(1500))
	return b.String()
}

// listens, in a container, makes it ready only when it hears signals.
const listens = `startupProbe: {exec: {command: [/guest, wait, /listening]}, periodSeconds: 1, timeoutSeconds: 20}`

// pod reads a manifest and wants it.
func (g *rig) pod(manifest string) types.NamespacedName {
	g.t.Helper()
	p := parsePod(g.t, manifest)
	g.want(p)
	return types.NamespacedName{Namespace: p.Namespace, Name: p.Name}
}

func parsePod(t testing.TB, manifest string) *corev1.Pod {
	t.Helper()
	var p corev1.Pod
	manifest = strings.NewReplacer("IMAGE", containerdtest.Image, "LISTENS", listens).Replace(manifest)
	if err := yaml.UnmarshalStrict([]byte(manifest), &p); err != nil {
		t.Fatalf("%v in\n%s", err, manifest)
	}
	set(&p.Namespace, "default")
	return &p
}

func (g *rig) want(p *corev1.Pod) {
	key := types.NamespacedName{Namespace: p.Namespace, Name: p.Name}
	g.mu.Lock()
	g.wanted[key] = p
	g.mu.Unlock()
	g.r.OnPod(key, p)
}

func (g *rig) remove(key types.NamespacedName) {
	g.mu.Lock()
	delete(g.wanted, key)
	g.mu.Unlock()
	g.r.OnPod(key, nil)
}

// status is the last one told.
func (g *rig) status(key types.NamespacedName) corev1.PodStatus {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := g.told[key]
	if len(all) == 0 {
		return corev1.PodStatus{}
	}
	return all[len(all)-1]
}

// await waits for a status. Without it there is nothing to go on with.
func (g *rig) await(key types.NamespacedName, what string, cond func(s *corev1.PodStatus) bool) corev1.PodStatus {
	g.t.Helper()
	var s corev1.PodStatus // that which was awaited: the next may have come since
	came := g.until(key.Name+": "+what, patience, func() bool {
		s = g.status(key)
		return cond(&s)
	})
	if !came {
		g.t.FailNow()
	}
	return s
}

func ready(s *corev1.PodStatus) bool { return condition(s, corev1.PodReady) == corev1.ConditionTrue }

func condition(s *corev1.PodStatus, t corev1.PodConditionType) corev1.ConditionStatus {
	for _, c := range s.Conditions {
		if c.Type == t {
			return c.Status
		}
	}
	return ""
}

// log is what a container wrote.
func (g *rig) log(key types.NamespacedName, container string, previous bool) string {
	g.t.Helper()
	_, path, err := g.r.Container(key, "", container, previous)
	if err != nil {
		return err.Error()
	}
	return readLog(path)
}

type noObjects struct{}

func (noObjects) ConfigMap(_ context.Context, key types.NamespacedName) (*corev1.ConfigMap, error) {
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "configmaps"}, key.Name)
}

func (noObjects) Secret(_ context.Context, key types.NamespacedName) (*corev1.Secret, error) {
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "secrets"}, key.Name)
}
func (noObjects) Services(context.Context, string) ([]*corev1.Service, error) { return nil, nil }
func (noObjects) Token(context.Context, objects.TokenRequest) (*objects.Token, error) {
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "serviceaccounts"}, "default")
}
func (noObjects) Use(*corev1.Pod)                   {}
func (noObjects) Release(types.UID)                 {}
func (noObjects) OnChange(func(objects.Key)) func() { return func() {} }
