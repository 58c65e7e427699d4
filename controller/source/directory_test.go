// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
)

// recorder is a Handler that keeps what is in force, and a line for each call.
type recorder struct {
	mu       sync.Mutex
	services map[string]*corev1.Service
	slices   map[string]*discoveryv1.EndpointSlice
	pods     map[string]*corev1.Pod
	nodes    map[string]*corev1.Node
	configs  map[string]*corev1.ConfigMap
	secrets  map[string]*corev1.Secret
	calls    []string
	synced   chan struct{}
}

func newRecorder() *recorder {
	return &recorder{
		services: map[string]*corev1.Service{}, slices: map[string]*discoveryv1.EndpointSlice{},
		pods: map[string]*corev1.Pod{}, nodes: map[string]*corev1.Node{}, synced: make(chan struct{}),
		configs: map[string]*corev1.ConfigMap{}, secrets: map[string]*corev1.Secret{},
	}
}

func keep[T any](r *recorder, m map[string]*T, call, name string, o *T) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m[name] = o; o == nil {
		delete(m, name)
		call = "-" + call
	}
	r.calls = append(r.calls, call+" "+name)
}

func (r *recorder) OnService(k types.NamespacedName, s *corev1.Service) {
	keep(r, r.services, "Service", k.String(), s)
}
func (r *recorder) OnEndpointSlice(k types.NamespacedName, s *discoveryv1.EndpointSlice) {
	keep(r, r.slices, "EndpointSlice", k.String(), s)
}
func (r *recorder) OnNode(name string, n *corev1.Node) { keep(r, r.nodes, "Node", name, n) }
func (r *recorder) OnPod(k types.NamespacedName, p *corev1.Pod) {
	keep(r, r.pods, "Pod", k.String(), p)
}
func (r *recorder) OnConfigMap(k types.NamespacedName, c *corev1.ConfigMap) {
	keep(r, r.configs, "ConfigMap", k.String(), c)
}
func (r *recorder) OnSecret(k types.NamespacedName, s *corev1.Secret) {
	keep(r, r.secrets, "Secret", k.String(), s)
}
func (r *recorder) OnSynced() { close(r.synced) }

func (r *recorder) service(name string) *corev1.Service {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.services["default/"+name]
}

func (r *recorder) names() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(maps.Keys(r.services))
}

// takeCalls gives the calls since it was last called.
func (r *recorder) takeCalls() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	calls := r.calls
	r.calls = nil
	return calls
}

// rig is a running Directory over a temporary directory.
type rig struct {
	*recorder
	t    testing.TB
	dir  string
	d    *Directory
	o    DirectoryOptions
	stop func()
}

// newRig makes the directory; start runs a Directory over it.
func newRig(t testing.TB) *rig {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "manifests")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return &rig{t: t, dir: dir, o: DirectoryOptions{
		Path: dir, NodeName: "node1", ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")},
		StatePath: filepath.Join(filepath.Dir(dir), "state.json"), Logger: slog.New(slog.DiscardHandler),
	}}
}

func (g *rig) start() {
	g.t.Helper()
	d, err := NewDirectory(g.o)
	if err != nil {
		g.t.Fatal(err)
	}
	g.d, g.recorder = d, newRecorder()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx, g.recorder) }()
	g.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			g.t.Errorf("Run: %v", err)
		}
	})
	g.t.Cleanup(func() { g.stop() })
	select {
	case <-g.synced:
	case err := <-done:
		g.t.Fatalf("Run ended before OnSynced: %v", err)
	case <-time.After(30 * time.Second):
		g.t.Fatal("no OnSynced")
	}
}

func (g *rig) restart() {
	g.t.Helper()
	g.stop()
	g.start()
}

// write replaces a file as an editor would that renames.
func (g *rig) write(name, content string) {
	g.t.Helper()
	tmp := filepath.Join(g.dir, "."+name+".tmp")
	if err := os.WriteFile(tmp, []byte(content), 0o644); err != nil {
		g.t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(g.dir, name)); err != nil {
		g.t.Fatal(err)
	}
}

func (g *rig) remove(name string) {
	g.t.Helper()
	if err := os.Remove(filepath.Join(g.dir, name)); err != nil {
		g.t.Fatal(err)
	}
}

// eventually waits for a condition; want says which, for the failure.
func (g *rig) eventually(want string, ok func() bool) {
	g.t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if ok() {
			return
		}
	}
	g.t.Fatalf("want %s; have Services %v, problems %q, last calls %q", want, g.names(), g.d.State().Problems, g.takeCalls())
}

func (g *rig) problem(part string) func() bool {
	return func() bool {
		return slices.ContainsFunc(g.d.State().Problems, func(p string) bool { return strings.Contains(p, part) })
	}
}

func (g *rig) noProblems() bool { return len(g.d.State().Problems) == 0 }

func (g *rig) port(name string) int32 {
	if s := g.service(name); s != nil {
		return s.Spec.Ports[0].Port
	}
	return 0
}

// svc is a Service of one port; spec holds more lines of its spec.
func svc(name string, port int, spec ...string) string {
	more := ""
	for _, line := range spec {
		more += "  " + line + "\n"
	}
	return fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata:\n  name: %s\nspec:\n%s  ports:\n  - port: %d\n---\n", name, more, port)
}

func slice(service, name string, addresses ...string) string {
	endpoints := ""
	for _, a := range addresses {
		endpoints += fmt.Sprintf("- addresses: [%q]\n  nodeName: node1\n", a)
	}
	return fmt.Sprintf("apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: %s\n  labels:\n    kubernetes.io/service-name: %s\naddressType: IPv4\nports:\n- port: 8080\nendpoints:\n%s---\n", name, service, endpoints)
}

func TestEverythingOfTheDirectoryIsDeliveredAndThenEachChange(t *testing.T) {
	g := newRig(t)
	g.write("a.yaml", svc("web", 80)+slice("web", "web-1", "10.244.1.11"))
	g.write("b.json", `{"apiVersion":"v1","kind":"Service","metadata":{"name":"api"},
	"spec":{"ports":[{"port":443}]}}`)
	g.write("c.yml", svc("db", 5432))
	g.start()
	if got, want := g.names(), []string{"default/api", "default/db", "default/web"}; !slices.Equal(got, want) {
		t.Fatalf("Services at OnSynced: %v, want %v", got, want)
	}
	if g.slices["default/web-1"] == nil || !g.d.State().Connected || !g.noProblems() {
		t.Fatalf("slices %v, state %+v", g.slices, g.d.State())
	}
	g.takeCalls()

	g.write("a.yaml", svc("web", 80)+slice("web", "web-1", "10.244.1.12"))
	g.eventually("the new endpoint", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.slices["default/web-1"].Endpoints[0].Addresses[0] == "10.244.1.12"
	})
	if got := g.takeCalls(); !slices.Equal(got, []string{"EndpointSlice default/web-1"}) {
		t.Errorf("calls for one changed slice: %q", got)
	}
	g.remove("c.yml")
	g.eventually("no db", func() bool { return g.service("db") == nil })
	g.write("d.yaml", svc("new", 1))
	g.eventually("new", func() bool { return g.port("new") == 1 })
	if got, want := g.takeCalls(), []string{"-Service default/db", "Service default/new"}; !slices.Equal(got, want) {
		t.Errorf("calls %q, want %q", got, want)
	}
}

func TestAListIsExpandedAndSeveralKindsAreTaken(t *testing.T) {
	g := newRig(t)
	g.write("list.yaml", `apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Service, metadata: {name: one}, spec: {ports: [{port: 1}]}}
- {apiVersion: v1, kind: ConfigMap, metadata: {name: c}, data: {k: v}}
- {apiVersion: v1, kind: Secret, metadata: {name: s}, stringData: {k: v}}
- {apiVersion: v1, kind: Node, metadata: {name: node1, labels: {topology.kubernetes.io/zone: z}}}
- {apiVersion: v1, kind: Node, metadata: {name: node2}}
---
apiVersion: v1
kind: ServiceList
items:
- {metadata: {name: two, namespace: other}, spec: {ports: [{port: 2}]}}
`)
	g.start()
	if got, want := g.names(), []string{"default/one", "other/two"}; !slices.Equal(got, want) || !g.noProblems() {
		t.Fatalf("Services %v, want %v; problems %q", got, want, g.d.State().Problems)
	}
	if len(g.nodes) != 1 || g.nodes["node1"].Labels["topology.kubernetes.io/zone"] != "z" {
		t.Errorf("nodes %v, want node1 only", g.nodes)
	}
	g.remove("list.yaml")
	g.eventually("nothing", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return len(g.services)+len(g.nodes)+len(g.configs)+len(g.secrets) == 0
	})
}

func TestConfigMapsAndSecretsAreDeliveredAndFollowed(t *testing.T) {
	g := newRig(t)
	file := func(v string) string {
		return "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {k: " + v + "}\n" +
			"---\napiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {a: QQ==}\nstringData: {k: secret}\n"
	}
	g.write("a.yaml", file("v1"))
	g.start()
	if c, s := g.configs["default/c"], g.secrets["default/s"]; c == nil || c.Data["k"] != "v1" ||
		s == nil || string(s.Data["k"]) != "secret" || string(s.Data["a"]) != "A" || s.StringData != nil {
		t.Fatalf("ConfigMap %v, Secret %v: want k=v1, and stringData in data", c, s)
	}
	g.takeCalls()
	g.write("a.yaml", file("v2"))
	g.eventually("the edit", func() bool { g.mu.Lock(); defer g.mu.Unlock(); return g.configs["default/c"].Data["k"] == "v2" })
	if got, want := g.takeCalls(), []string{"ConfigMap default/c"}; !slices.Equal(got, want) {
		t.Errorf("calls %q, want %q: the Secret did not change", got, want)
	}
}

func TestAFileThatIsNotGoodLeavesItsLastGoodContentInForce(t *testing.T) {
	g := newRig(t)
	g.write("a.yaml", svc("a", 1)+svc("a2", 1))
	g.write("b.yaml", svc("b", 1))
	g.start()
	g.write("a.yaml", svc("a", 2)+"apiVersion: v1\nkind: Service\nmetadata:\n  name: a2\nspec:\n  prots: []\n")
	g.eventually("a problem with the line", g.problem(`a.yaml:14: unknown field "spec.prots"`))
	g.write("b.yaml", svc("b", 2))
	g.eventually("another file unaffected", func() bool { return g.port("b") == 2 })
	if g.port("a") != 1 || g.port("a2") != 1 {
		t.Errorf("ports a %d, a2 %d: want the last good content, 1", g.port("a"), g.port("a2"))
	}
	if s := g.d.Stats(); s.BadFiles != 1 || s.FileErrors != 1 {
		t.Errorf("stats %+v, want one bad file, one error", s)
	}
	g.write("a.yaml", svc("a", 3)+svc("a2", 3))
	g.eventually("the repaired file", func() bool { return g.port("a2") == 3 && g.noProblems() })
	g.write("a.yaml", "kind: [")
	g.eventually("a problem", g.problem("a.yaml:1: not YAML"))
	g.remove("a.yaml")
	g.eventually("neither objects nor problem", func() bool { return g.service("a") == nil && g.noProblems() })
}

func TestTheFirstFileWithAnObjectWinsAndTheNextTakesOver(t *testing.T) {
	g := newRig(t)
	g.write("b.yaml", svc("web", 2))
	g.write("c.yaml", "\n"+svc("web", 3)+svc("other", 1))
	g.start()
	if g.port("web") != 2 || !g.problem("c.yaml:2: Service default/web is in b.yaml too")() {
		t.Fatalf("port %d, problems %q", g.port("web"), g.d.State().Problems)
	}
	g.write("a.yaml", svc("web", 1))
	g.eventually("the version of a.yaml", func() bool { return g.port("web") == 1 })
	g.eventually("problems of b and c", func() bool { return len(g.d.State().Problems) == 2 })
	g.takeCalls()
	g.remove("a.yaml")
	g.eventually("the version of b.yaml", func() bool { return g.port("web") == 2 })
	g.remove("b.yaml")
	g.eventually("the version of c.yaml", func() bool { return g.port("web") == 3 && g.noProblems() })
	if calls := g.takeCalls(); slices.Contains(calls, "-Service default/web") {
		t.Errorf("the Service was deleted in between: %q", calls)
	}
}

func TestAnObjectThatMovesBetweenFilesIsNotDeletedInBetween(t *testing.T) {
	g := newRig(t)
	g.write("a.yaml", svc("web", 1)+svc("x", 1))
	g.start()
	ip := g.service("web").Spec.ClusterIP
	g.takeCalls()
	g.write("a.yaml", svc("x", 1))
	g.write("z.yaml", svc("web", 2))
	g.eventually("the version of z.yaml", func() bool { return g.port("web") == 2 })
	time.Sleep(2 * confirmAfter)
	if got := g.takeCalls(); !slices.Equal(got, []string{"Service default/web"}) {
		t.Errorf("calls %q, want one update", got)
	}
	if got := g.service("web").Spec.ClusterIP; got != ip {
		t.Errorf("ClusterIP %s, before the move %s", got, ip)
	}
}

func TestADirectoryThatVanishesLeavesItsStateInForceAndRecovers(t *testing.T) {
	g := newRig(t)
	g.write("a.yaml", svc("a", 1))
	g.start()
	if err := os.RemoveAll(g.dir); err != nil {
		t.Fatal(err)
	}
	g.eventually("not connected", func() bool { return !g.d.State().Connected && g.problem("no such file or directory")() })
	time.Sleep(3 * confirmAfter)
	if g.port("a") != 1 {
		t.Fatal("the last state is not in force")
	}
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	g.write("a.yaml", svc("a", 2))
	g.eventually("the new content", func() bool { return g.port("a") == 2 && g.d.State().Connected && g.noProblems() })
	g.write("a.yaml", svc("a", 3))
	g.eventually("events again", func() bool { return g.port("a") == 3 })
}

func TestADirectoryThatIsMissingAtTheStartIsAnErrorThatNamesIt(t *testing.T) {
	g := newRig(t)
	g.o.Path = filepath.Join(g.dir, "nowhere")
	if _, err := NewDirectory(g.o); err == nil || !strings.Contains(err.Error(), g.o.Path) {
		t.Errorf("error %v, want one that names %s", err, g.o.Path)
	}
	g.o.Path = g.dir
	d, err := NewDirectory(g.o)
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(g.dir)
	if err := d.Run(t.Context(), newRecorder()); err == nil || !strings.Contains(err.Error(), g.dir) {
		t.Errorf("Run: error %v, want one that names %s", err, g.dir)
	}
}

func TestOptionsThatCannotWorkAreRefused(t *testing.T) {
	for want, change := range map[string]func(*DirectoryOptions){
		"read as a manifest": func(o *DirectoryOptions) { o.StatePath = filepath.Join(o.Path, "state.json") },
		"second one":         func(o *DirectoryOptions) { o.ServiceCIDRs = append(o.ServiceCIDRs, o.ServiceCIDRs[0]) },
		"not a prefix":       func(o *DirectoryOptions) { o.ServiceCIDRs = []netip.Prefix{{}} },
		"no node name":       func(o *DirectoryOptions) { o.NodeName = "" },
		"not a directory":    func(o *DirectoryOptions) { o.Path = "/dev/null" },
	} {
		o := newRig(t).o
		if change(&o); true {
			if _, err := NewDirectory(o); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("error %v, want one with %q", err, want)
			}
		}
	}
}

func TestWhatIsBeyondABoundIsAProblemAndTheRestIsInForce(t *testing.T) {
	g := newRig(t)
	g.o.MaxFiles, g.o.MaxFileBytes, g.o.MaxObjects = 4, 500, 3
	g.write("a.yaml", svc("a", 1))
	g.write("b.yaml", svc("b", 1)+"#"+strings.Repeat("x", 500))
	g.write("c.yaml", svc("c1", 1)+svc("c2", 1)+svc("c3", 1))
	g.write("d.yaml", svc("d", 1))
	g.write("e.yaml", svc("e", 1))
	g.start()
	if got, want := g.names(), []string{"default/a", "default/d"}; !slices.Equal(got, want) {
		t.Errorf("Services %v, want %v", got, want)
	}
	for _, want := range []string{"b.yaml: larger than 500 bytes", "c.yaml:17: Service default/c3: with it there are more objects", "more than 4 files, those from e.yaml"} {
		if !g.problem(want)() {
			t.Errorf("no problem %q in %q", want, g.d.State().Problems)
		}
	}
	g.remove("c.yaml")
	g.eventually("c.yaml's problem gone", func() bool { return !g.problem("c.yaml")() })
	g.write("f.yaml", svc("f", 1))
	g.eventually("room for another file", func() bool { return g.port("f") == 1 })
}

func TestRunEndsWithItsContextAndIsForOnce(t *testing.T) {
	g := newRig(t)
	g.start()
	g.stop()
	if g.d.State().Connected {
		t.Error("connected after the end")
	}
	if err := g.d.Run(t.Context(), newRecorder()); err == nil {
		t.Error("a second Run was taken")
	}
}
