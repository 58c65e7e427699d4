// SPDX-License-Identifier: Apache-2.0

package source

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"
)

func addrs(s *corev1.Service) string {
	if s == nil {
		return "no Service"
	}
	return strings.Join(s.Spec.ClusterIPs, " ")
}

func TestAServiceGetsAddressesOfTheFamiliesItWants(t *testing.T) {
	g := newRig(t)
	g.write("a.yaml", svc("plain", 1)+svc("dual", 1, "ipFamilyPolicy: RequireDualStack")+svc("six", 1, "ipFamilies: [IPv6]")+
		svc("sixfirst", 1, "ipFamilyPolicy: PreferDualStack", "ipFamilies: [IPv6]")+svc("half", 1, "ipFamilyPolicy: PreferDualStack", "clusterIP: 10.96.0.7")+
		svc("given", 1, "clusterIP: 10.96.0.8")+svc("headless", 1, "clusterIP: None", "selector: {a: b}")+svc("name", 1, "type: ExternalName", "externalName: a.b"))
	g.start()
	if !g.noProblems() {
		t.Fatal(g.d.State().Problems)
	}
	for name, want := range map[string][]corev1.IPFamily{
		"plain": {"IPv4"}, "dual": {"IPv4", "IPv6"}, "six": {"IPv6"}, "sixfirst": {"IPv6", "IPv4"}, "half": {"IPv4", "IPv6"}, "given": {"IPv4"},
	} {
		s := g.service(name)
		if diff := cmp.Diff(want, s.Spec.IPFamilies); diff != "" {
			t.Errorf("%s: ipFamilies (-want +got): %s", name, diff)
		}
		for i, ip := range s.Spec.ClusterIPs {
			a := netip.MustParseAddr(ip)
			if familyOf(a) != want[i] || !slices.ContainsFunc(g.o.ServiceCIDRs, func(p netip.Prefix) bool { return p.Contains(a) }) {
				t.Errorf("%s: address %s, want %s in %v", name, ip, want[i], g.o.ServiceCIDRs)
			}
		}
		if len(s.Spec.ClusterIPs) != len(want) || s.Spec.ClusterIP != s.Spec.ClusterIPs[0] {
			t.Errorf("%s: clusterIP %q, clusterIPs %q", name, s.Spec.ClusterIP, s.Spec.ClusterIPs)
		}
	}
	if addrs(g.service("headless")) != "None" || addrs(g.service("name")) != "" || g.service("half").Spec.ClusterIP != "10.96.0.7" {
		t.Errorf("headless %q, ExternalName %q, half %q", addrs(g.service("headless")), addrs(g.service("name")), addrs(g.service("half")))
	}
}

func TestAddressesAndNodePortsSurviveARestart(t *testing.T) {
	g := newRig(t)
	// A range so full that most Services do not have the place they hash to.
	g.o.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/27")}
	text := ""
	for i := range 28 {
		text += svc(fmt.Sprintf("s%d", i), 1, "type: NodePort")
	}
	g.write("a.yaml", text)
	g.start()
	have := func() map[string]string {
		m := map[string]string{}
		for name, s := range g.services {
			m[name] = fmt.Sprint(s.Spec.ClusterIP, s.Spec.Ports[0].NodePort)
		}
		return m
	}
	before := have()
	if len(before) != 28 {
		t.Fatalf("Services %v, problems %q", before, g.d.State().Problems)
	}
	for round := range 3 {
		// Other neighbours, other files, other order.
		g.write("a.yaml", "")
		g.write(fmt.Sprintf("%d.yaml", round), text+svc(fmt.Sprintf("aa%d", round), 1))
		for _, old := range []int{round - 1} {
			os.Remove(filepath.Join(g.dir, fmt.Sprintf("%d.yaml", old)))
		}
		g.restart()
		after := have()
		for name, want := range before {
			if after[name] != want {
				t.Errorf("round %d: %s has %s, before %s", round, name, after[name], want)
			}
		}
	}
}

func TestAnExplicitAddressWinsAndItsHolderMoves(t *testing.T) {
	g := newRig(t)
	g.write("a.yaml", svc("a", 1, "type: NodePort"))
	g.start()
	ip, port := g.service("a").Spec.ClusterIP, g.service("a").Spec.Ports[0].NodePort
	g.write("b.yaml", svc("b", 1, "type: NodePort", "clusterIP: "+ip)+svc("c", 1, "type: NodePort")[:len(svc("c", 1, "type: NodePort"))-4]+fmt.Sprintf("    nodePort: %d\n", port))
	g.eventually("a moved", func() bool {
		s := g.service("a")
		return g.service("b") != nil && s.Spec.ClusterIP != ip && s.Spec.Ports[0].NodePort != port
	})
	if got := g.service("b").Spec.ClusterIP; got != ip || !g.noProblems() {
		t.Errorf("b has %s, want %s; problems %q", got, ip, g.d.State().Problems)
	}
	moved := addrs(g.service("a"))
	g.restart()
	if got := addrs(g.service("a")); got != moved {
		t.Errorf("after a restart a has %s, before %s", got, moved)
	}
}

func TestAFullRangeIsAProblemUntilThereIsRoom(t *testing.T) {
	g := newRig(t)
	g.o.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/30")} // .1 and .2
	g.write("a.yaml", svc("a", 1)+svc("b", 1))
	g.write("c.yaml", "\n"+svc("c", 1)+svc("d", 1, "ipFamilies: [IPv6]"))
	g.start()
	for _, want := range []string{"c.yaml:2: Service default/c no address left: all 2 of 10.96.0.0/30 are in use", "c.yaml:10: Service default/d wants an IPv6 address"} {
		if !g.problem(want)() {
			t.Errorf("no problem %q in %q", want, g.d.State().Problems)
		}
	}
	if g.service("c") != nil {
		t.Error("a Service without its address was delivered")
	}
	g.write("a.yaml", svc("a", 1))
	g.eventually("c with the address of b", func() bool { return g.service("c") != nil && len(g.d.State().Problems) == 1 })

	// A holder that has nowhere to move is withdrawn.
	ip := g.service("c").Spec.ClusterIP
	g.write("x.yaml", svc("x", 1, "clusterIP: "+ip))
	g.eventually("c withdrawn", func() bool { return g.service("c") == nil && addrs(g.service("x")) == ip })
}

func TestNodePortsAreAllocatedWhereTheAPIWould(t *testing.T) {
	g := newRig(t)
	two := "apiVersion: v1\nkind: Service\nmetadata: {name: two}\nspec:\n  type: NodePort\n  ports: [{name: t, port: 53}, {name: u, port: 53, protocol: UDP}, {name: v, port: 54}]\n---\n"
	g.write("a.yaml", two+svc("local", 1, "type: LoadBalancer", "externalTrafficPolicy: Local")+
		svc("none", 1, "type: LoadBalancer", "allocateLoadBalancerNodePorts: false")+svc("plain", 1))
	g.start()
	p := g.service("two").Spec.Ports
	if p[0].NodePort < 30000 || p[0].NodePort > 32767 || p[0].NodePort != p[1].NodePort || p[2].NodePort == p[0].NodePort {
		t.Errorf("node ports %d %d %d: want the first two equal, the third another", p[0].NodePort, p[1].NodePort, p[2].NodePort)
	}
	l := g.service("local").Spec
	if l.HealthCheckNodePort < 30000 || l.HealthCheckNodePort == l.Ports[0].NodePort || l.Ports[0].NodePort == 0 {
		t.Errorf("health check port %d, node port %d", l.HealthCheckNodePort, l.Ports[0].NodePort)
	}
	if g.service("none").Spec.Ports[0].NodePort != 0 || g.service("plain").Spec.Ports[0].NodePort != 0 {
		t.Error("a node port where none is wanted")
	}
	g.write("a.yaml", svc("two", 53)+svc("local", 1, "type: LoadBalancer")+svc("none", 1)+svc("plain", 1))
	g.eventually("no node ports", func() bool { return g.service("two").Spec.Ports[0].NodePort == 0 })
	if state, _ := os.ReadFile(g.o.StatePath); strings.Contains(string(state), "TCP/53") || strings.Contains(string(state), "healthCheck") {
		t.Errorf("node ports are still held: %s", state)
	}
}

func TestACorruptStateFileIsKeptAside(t *testing.T) {
	for _, content := range []string{"{", `{"version":2}`, `{"version":1,"services":{"x":{}}}`, `{"version":1,"services":{"a/x":{"nodePorts":{"TCP/1":0}}}}`, ""} {
		g := newRig(t)
		if err := os.WriteFile(g.o.StatePath, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		g.write("a.yaml", svc("a", 1))
		g.start()
		if aside, err := os.ReadFile(g.o.StatePath + ".corrupt"); err != nil || string(aside) != content {
			t.Errorf("%q: kept aside %q, %v", content, aside, err)
		}
		if state, err := os.ReadFile(g.o.StatePath); err != nil || !strings.Contains(string(state), g.service("a").Spec.ClusterIP) {
			t.Errorf("%q: new state %s, %v", content, state, err)
		}
	}
}

func TestAStateFileThatCannotBeWrittenIsAProblem(t *testing.T) {
	g := newRig(t)
	g.o.StatePath = "/dev/null/state.json"
	g.write("a.yaml", svc("a", 1))
	g.start()
	if addrs(g.service("a")) == "" || !g.problem("state file /dev/null/state.json")() {
		t.Errorf("a has %q, problems %q", addrs(g.service("a")), g.d.State().Problems)
	}
}

func TestAGrantOutlivesItsServiceForAWhile(t *testing.T) {
	a, err := newAllocator([]netip.Prefix{netip.MustParsePrefix("10.96.0.0/24")})
	if err != nil {
		t.Fatal(err)
	}
	s := &corev1.Service{}
	s.Namespace, s.Name = "default", "a"
	if err := a.fill(s); err != nil {
		t.Fatal(err)
	}
	key, now := types.NamespacedName{Namespace: "default", Name: "a"}, time.Now()
	a.gone(key, now)
	if a.expire(now.Add(-time.Second)); a.grants[key] == nil {
		t.Fatal("released at once")
	}
	if a.expire(now.Add(time.Second)); a.grants[key] != nil || len(a.addrs.held) != 0 {
		t.Error("not released")
	}
}

// TestTheAllocatorKeepsItsPromises under any order of events: no two Services
// share a granted value, no granted value is claimed, what a Service has does
// not change unless another claims it, and a restart changes nothing.
func TestTheAllocatorKeepsItsPromises(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		cidrs := []netip.Prefix{netip.MustParsePrefix("10.96.0.0/29"), netip.MustParsePrefix("fd00::/125")}
		a, err := newAllocator(cidrs)
		if err != nil {
			t.Fatal(err)
		}
		manifests, claims := map[types.NamespacedName]*corev1.Service{}, map[types.NamespacedName]claim{}
		last := map[types.NamespacedName]string{}
		for step := range rapid.IntRange(1, 60).Draw(t, "steps") {
			key := types.NamespacedName{Namespace: "d", Name: fmt.Sprintf("s%d", rapid.IntRange(0, 9).Draw(t, "service"))}
			dirty := []types.NamespacedName{key}
			switch rapid.SampledFrom([]string{"put", "put", "put", "delete", "restart"}).Draw(t, "what") {
			case "put":
				s := drawService(t, key)
				evicted := a.claim(key, claims[key], claimOf(s))
				manifests[key], claims[key] = s, claimOf(s)
				for _, k := range evicted {
					delete(last, k)
				}
				delete(last, key)
				dirty = append(dirty, evicted...)
			case "delete":
				if manifests[key] == nil {
					continue
				}
				a.claim(key, claims[key], claim{})
				a.gone(key, time.Now())
				delete(manifests, key)
				delete(claims, key)
				delete(last, key)
			case "restart":
				a = restarted(t, a, cidrs, dir, manifests, claims)
				dirty = slices.Collect(maps.Keys(manifests))
			}
			slices.SortFunc(dirty, func(a, b types.NamespacedName) int { return strings.Compare(a.Name, b.Name) })
			for _, k := range dirty {
				if manifests[k] == nil {
					continue
				}
				s := manifests[k].DeepCopy()
				if err := a.fill(s); err != nil {
					if !strings.Contains(err.Error(), "no address left") {
						t.Fatalf("step %d: %v: %v", step, k, err)
					}
					delete(last, k)
					continue
				}
				got := fmt.Sprint(s.Spec.ClusterIPs, s.Spec.Ports, s.Spec.HealthCheckNodePort)
				if want, ok := last[k]; ok && got != want {
					t.Fatalf("step %d: %v has %s, before %s", step, k, got, want)
				}
				last[k] = got
			}
			checkAllocator(t, a, claims)
		}
	})
}

func drawService(t *rapid.T, key types.NamespacedName) *corev1.Service {
	s := &corev1.Service{}
	s.Namespace, s.Name = key.Namespace, key.Name
	s.Spec.Ports = []corev1.ServicePort{{Name: "a", Port: 1, Protocol: "TCP"}, {Name: "b", Port: 1, Protocol: "UDP"}}
	s.Spec.Type = rapid.SampledFrom([]corev1.ServiceType{"ClusterIP", "NodePort", "LoadBalancer"}).Draw(t, "type")
	if rapid.Bool().Draw(t, "dual") {
		p := corev1.IPFamilyPolicyRequireDualStack
		s.Spec.IPFamilyPolicy = &p
	}
	if rapid.Bool().Draw(t, "explicit") {
		s.Spec.ClusterIPs = []string{fmt.Sprintf("10.96.0.%d", rapid.IntRange(1, 6).Draw(t, "ip"))}
	}
	if s.Spec.Type != "ClusterIP" && rapid.Bool().Draw(t, "explicit node port") {
		s.Spec.Ports[0].NodePort = rapid.Int32Range(30086, 30100).Draw(t, "node port")
	}
	defaultService(s)
	if s.Spec.Type == "LoadBalancer" && rapid.Bool().Draw(t, "local") {
		s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	}
	return s
}

func restarted(t *rapid.T, a *allocator, cidrs []netip.Prefix, dir string, manifests map[types.NamespacedName]*corev1.Service, claims map[types.NamespacedName]claim) *allocator {
	path := filepath.Join(dir, "state.json")
	if err := a.save(path); err != nil {
		t.Fatal(err)
	}
	b, err := newAllocator(cidrs)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.load(path, time.Now()); err != nil {
		t.Fatal(err)
	}
	for k, c := range claims {
		if evicted := b.claim(k, claim{}, c); len(evicted) > 0 {
			t.Fatalf("after a restart %v evicts %v", k, evicted)
		}
	}
	return b
}

func checkAllocator(t *rapid.T, a *allocator, claims map[types.NamespacedName]claim) {
	held, ports := 0, 0
	for key, g := range a.grants {
		for _, v := range g.addrs {
			if a.addrs.held[v] != key || a.addrs.claimed[v] > 0 {
				t.Fatalf("%v has %v, held by %v, claimed %d times", key, v, a.addrs.held[v], a.addrs.claimed[v])
			}
			held++
		}
		for name, v := range g.nodePorts {
			if a.ports.held[v] != key || a.ports.claimed[v] > 0 {
				t.Fatalf("%v has %s %v, held by %v, claimed %d times", key, name, v, a.ports.held[v], a.ports.claimed[v])
			}
			ports++
		}
		if v := g.healthCheck; v != 0 {
			if a.ports.held[v] != key || a.ports.claimed[v] > 0 {
				t.Fatalf("%v has health check port %v, held by %v", key, v, a.ports.held[v])
			}
			ports++
		}
	}
	if held != len(a.addrs.held) || ports != len(a.ports.held) {
		t.Fatalf("%d addresses and %d ports granted, %d and %d held", held, ports, len(a.addrs.held), len(a.ports.held))
	}
	claimed := map[netip.Addr]int{}
	for _, c := range claims {
		for _, v := range c.addrs {
			claimed[v]++
		}
	}
	if diff := cmp.Diff(claimed, a.addrs.claimed, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Fatalf("claims (-want +got): %s", diff)
	}
}
