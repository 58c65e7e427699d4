// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/ebpf"
	"fairlead.dev/dataplane/netfilter"
	"fairlead.dev/dataplane/nftables"
)

// traced are the Services that decisions are heard of.
func traced(n *Node, a, d netip.Addr) *dataplane.Table {
	set := func(to netip.Addr, local bool) dataplane.BackendSet {
		return dataplane.BackendSet{Backends: []dataplane.Backend{{Address: to, Port: 8080, Local: local}}}
	}
	service := func(name string, fs ...dataplane.Frontend) *dataplane.Service {
		return &dataplane.Service{Name: dataplane.ServiceName{Namespace: "default", Name: name}, Frontends: fs}
	}
	at := func(k dataplane.Kind, a netip.Addr, port uint16, s dataplane.BackendSet) dataplane.Frontend {
		return dataplane.Frontend{FrontendKey: dataplane.FrontendKey{Address: a, Port: port, Protocol: dataplane.TCP}, Kind: k, PortName: "http",
			Internal: s, External: s, MasqueradeExternal: true}
	}
	vip := netip.MustParseAddr
	sticky := at(dataplane.ClusterIP, vip("10.96.7.2"), 80, set(a, true))
	sticky.AffinitySeconds = 600
	ranged := at(dataplane.LoadBalancer, vip("198.51.100.7"), 80, set(a, true))
	ranged.SourceRanges = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}
	t := &dataplane.Table{Services: map[dataplane.ServiceName]*dataplane.Service{}, Node: dataplane.Node{
		Addresses: n.Addresses, PrimaryIPv4: n.PrimaryIPv4, PrimaryIPv6: n.PrimaryIPv6, InternalSources: ClusterCIDRs, ServiceCIDRs: ServiceCIDRs,
	}}
	for _, s := range []*dataplane.Service{
		service("web", at(dataplane.ClusterIP, vip("10.96.7.1"), 80, set(a, true)), at(dataplane.NodePort, n.PrimaryIPv4, 30070, set(d, false))),
		service("sticky", sticky), service("ranged", ranged),
		service("none", at(dataplane.ClusterIP, vip("10.96.7.3"), 80, dataplane.BackendSet{})),
	} {
		t.Services[s.Name] = s
	}
	return t
}

// hearing is a Tracer that runs while questions are asked.
type hearing struct {
	mu    sync.Mutex
	heard []dataplane.Decision
	stop  func()
	done  chan struct{}
	lost  uint64
	err   error
}

func hear(t *testing.T, tracer dataplane.Tracer, o dataplane.TraceOptions) *hearing {
	ctx, cancel := context.WithCancel(t.Context())
	h := &hearing{stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(h.done)
		h.lost, h.err = tracer.Trace(ctx, o, func(d dataplane.Decision) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.heard = append(h.heard, d)
		})
	}()
	return h
}

// atLeast waits until n decisions were heard, or for a while.
func (h *hearing) atLeast(n int) []dataplane.Decision {
	for end := time.Now().Add(10 * time.Second * slowness); ; time.Sleep(10 * time.Millisecond) {
		h.mu.Lock()
		got := append([]dataplane.Decision(nil), h.heard...)
		h.mu.Unlock()
		if len(got) >= n || time.Now().After(end) {
			return got
		}
	}
}

// traceStory is a question of a member and what is heard of it.
type traceStory struct {
	from string
	to   string
	want dataplane.Decision // Client, Frontend, Protocol, Time and PortName are filled in
}

func (s *traceStory) fill(l *lab, d *dataplane.Decision) {
	s.want.Protocol, s.want.Frontend = "TCP", netip.MustParseAddrPort(s.to)
	s.want.Client = netip.AddrPortFrom(l.members[s.from].v4, d.Client.Port())
	if s.want.Service != "" {
		s.want.PortName = "http"
	}
	if s.want.Path == "socket" {
		s.want.Command, s.want.PID = d.Command, uint32(l.members[s.from].cmd.Process.Pid)
		if d.Command == "" {
			s.want.Command = "the name of the process"
		}
	}
	s.want.Time = d.Time
}

func TestTraceTellsEveryDecisionOnce(t *testing.T) {
	l := newLab(t)
	n := l.nodes[0]
	a, d := l.members["a"].v4, l.members["d"].v4
	toA, toD := netip.AddrPortFrom(a, 8080), netip.AddrPortFrom(d, 8080)
	nodePort := netip.AddrPortFrom(n.PrimaryIPv4, 30070).String()
	stories := []traceStory{
		{"client", "10.96.7.1:80", dataplane.Decision{Kind: "new", Path: "socket", Backend: toA, Service: "default/web"}},
		{"bypass", "10.96.7.1:80", dataplane.Decision{Kind: "new", Path: "tc", From: "pod", Backend: toA, Service: "default/web"}},
		{"outside", nodePort, dataplane.Decision{Kind: "new", Path: "tc", From: "uplink", Backend: toD, Service: "default/web", Masquerade: true}},
		{"client", "10.96.7.2:80", dataplane.Decision{Kind: "new", Path: "socket", Backend: toA, Service: "default/sticky"}},
		{"client", "10.96.7.2:80", dataplane.Decision{Kind: "affinity", Path: "socket", Backend: toA, Service: "default/sticky"}},
		{"client", "10.96.7.3:80", dataplane.Decision{Kind: "rejected", Path: "socket", Service: "default/none", Reason: "no_backends"}},
		{"bypass", "10.96.7.3:80", dataplane.Decision{Kind: "rejected", Path: "tc", From: "pod", Service: "default/none", Reason: "no_backends"}},
		{"client", "10.96.7.1:81", dataplane.Decision{Kind: "rejected", Path: "socket", Reason: "unknown_port"}},
		{"outside", "198.51.100.7:80", dataplane.Decision{Kind: "dropped", Path: "tc", From: "uplink", Service: "default/ranged", Reason: "source_range"}},
	}
	inNode(t, n, func() {
		dp, err := ebpf.New(t.Context(), ebpf.Options{BPFFS: n.BPFFS, CgroupRoot: n.CgroupRoot, Devices: n.Devices})
		if err != nil {
			t.Error(err)
			return
		}
		defer dp.Close()
		if _, err := dp.Sync(t.Context(), traced(n, a, d)); err != nil {
			t.Error(err)
			return
		}
		l.ask(t, "client", "10.96.7.1:80") // so that its address is known
		tracer, err := ebpf.OpenTracer(n.BPFFS)
		if err != nil {
			t.Error(err)
			return
		}
		defer tracer.Close()
		if _, err := ebpf.OpenTracer(n.BPFFS); err == nil {
			t.Error("a second listener was let in")
		}
		h := hear(t, tracer, dataplane.TraceOptions{PerSecond: 1000})
		waitForListener(t, l, h)
		before := len(h.atLeast(0))
		for _, s := range stories {
			l.ask(t, s.from, s.to)
			got := h.atLeast(before + 1)[before:]
			if len(got) == 0 {
				t.Errorf("%s to %s: nothing was heard", s.from, s.to)
				continue
			}
			s.fill(l, &got[0])
			if diff := cmp.Diff([]dataplane.Decision{s.want}, distinct(got), compareAddresses); diff != "" {
				t.Errorf("%s to %s (-want +heard):\n%s", s.from, s.to, diff)
			}
			if off := time.Since(got[0].Time); off < 0 || off > time.Minute {
				t.Errorf("%s to %s: heard of %v ago", s.from, s.to, off)
			}
			before = len(h.atLeast(0))
		}
		h.stop()
		<-h.done
		if h.err != nil || h.lost != 0 {
			t.Errorf("trace ended with %d lost, error %v", h.lost, h.err)
		}
		heardOnly(t, l, tracer, dataplane.TraceOptions{PerSecond: 1000, OnlyDrops: true}, "default/none")
		heardOnly(t, l, tracer, dataplane.TraceOptions{PerSecond: 1000, Wants: func(s dataplane.ServiceName, _ string) bool { return s.Name == "sticky" }}, "default/sticky")
		boundHolds(t, l, tracer)
		knownFlowsAreHeard(t, l, tracer)
	})
}

// distinct leaves out what TCP sent again: a dropped SYN is dropped twice.
func distinct(ds []dataplane.Decision) (out []dataplane.Decision) {
	for _, d := range ds {
		if len(out) == 0 || out[0].Client != d.Client {
			out = append(out, d)
		}
	}
	return out
}

var compareAddresses = cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })

func (l *lab) ask(t *testing.T, from, to string) {
	if _, err := l.members[from].do(call{Op: opAsk, Request: request{Protocol: "TCP", To: netip.MustParseAddrPort(to), Timeout: silentFor}}); err != nil {
		t.Errorf("%s asks %s: %v", from, to, err)
	}
}

// waitForListener asks until the first decision is heard.
func waitForListener(t *testing.T, l *lab, h *hearing) {
	for end := time.Now().Add(10 * time.Second * slowness); len(h.heardNow()) == 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Errorf("nothing is heard: %v", h.err)
			return
		}
		for _, to := range []string{"10.96.7.3:80", "10.96.7.2:80"} {
			l.ask(t, "host1", to)
		}
	}
	time.Sleep(100 * time.Millisecond) // the second one's, too
}

func (h *hearing) heardNow() []dataplane.Decision {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]dataplane.Decision(nil), h.heard...)
}

// heardOnly asks two Services, of which the options let one be heard.
func heardOnly(t *testing.T, l *lab, tracer dataplane.Tracer, o dataplane.TraceOptions, service string) {
	h := hear(t, tracer, o)
	waitForListener(t, l, h)
	for range 3 {
		l.ask(t, "client", "10.96.7.2:80")
		l.ask(t, "client", "10.96.7.3:80")
	}
	h.atLeast(4)
	h.stop()
	<-h.done
	if len(h.heard) < 4 {
		t.Errorf("heard %d decisions of %s, want 4 at least", len(h.heard), service)
	}
	for _, d := range h.heard {
		if d.Service != service {
			t.Errorf("heard of %q, want %s only: %+v", d.Service, service, d)
		}
	}
}

// boundHolds asks far more often than may be heard.
func boundHolds(t *testing.T, l *lab, tracer dataplane.Tracer) {
	const burst, rate = 200, 5
	h := hear(t, tracer, dataplane.TraceOptions{PerSecond: rate})
	waitForListener(t, l, h)
	begun := time.Now()
	if _, err := l.members["client"].do(call{Op: opAsk, Request: request{Protocol: "TCP", To: netip.MustParseAddrPort("10.96.7.1:80"), Times: burst}}); err != nil {
		t.Error(err)
	}
	// Decisions are heard in their order: one after the burst is heard after it.
	asked, ended := burst, time.Now()
	later := func(d dataplane.Decision) bool { return d.Service == "default/sticky" && d.Time.After(ended) }
	for !slices.ContainsFunc(h.heardNow(), later) {
		if time.Since(ended) > 10*time.Second*slowness {
			t.Error("nothing is heard after the burst")
			break
		}
		l.ask(t, "client", "10.96.7.2:80")
		asked++
	}
	seconds := int(time.Since(begun)/time.Second) + 2
	h.stop()
	<-h.done
	if n := len(h.heard); n > (seconds+2)*rate || h.lost == 0 || n+int(h.lost) < asked {
		t.Errorf("heard %d and lost %d of %d decisions in %d s, want %d a second and to know of the others", n, h.lost, asked, seconds, rate)
	}
}

// knownFlowsAreHeard counts the packets of one connection.
func knownFlowsAreHeard(t *testing.T, l *lab, tracer dataplane.Tracer) {
	h := hear(t, tracer, dataplane.TraceOptions{PerSecond: 1000, KnownFlows: true})
	waitForListener(t, l, h)
	l.ask(t, "bypass", "10.96.7.1:80")
	h.atLeast(8)
	h.stop()
	<-h.done
	kinds := map[string]int{}
	for _, d := range h.heard {
		if d.Path == "tc" {
			kinds[d.Kind]++
		}
	}
	if kinds["new"] != 1 || kinds["known"] < 3 {
		t.Errorf("of one connection were heard: %v; want 1 new and the packets after it", kinds)
	}
}

func TestTraceOfNetfilterTellsNewFlows(t *testing.T) {
	l := newLab(t)
	n := l.nodes[0]
	a, d := l.members["a"].v4, l.members["d"].v4
	inNode(t, n, func() {
		dp, err := nftables.New(t.Context(), nftables.Options{Devices: n.Devices})
		if err != nil {
			t.Error(err)
			return
		}
		defer dp.Close()
		table := traced(n, a, d)
		if _, err := dp.Sync(t.Context(), table); err != nil {
			t.Error(err)
			return
		}
		tracer, err := netfilter.OpenTracer(func() ([]dataplane.Row, error) { return table.Rows(), nil })
		if err != nil {
			t.Error(err)
			return
		}
		defer tracer.Close()
		if _, err := tracer.Trace(t.Context(), dataplane.TraceOptions{PerSecond: 1, OnlyDrops: true}, nil); err == nil {
			t.Error("drops were promised, which conntrack does not tell")
		}
		h := hear(t, tracer, dataplane.TraceOptions{PerSecond: 1000})
		nodePort := netip.AddrPortFrom(n.PrimaryIPv4, 30070).String()
		stories := []traceStory{
			{"client", "10.96.7.1:80", dataplane.Decision{Kind: "new", Path: "netfilter", Backend: netip.AddrPortFrom(a, 8080), Service: "default/web"}},
			{"outside", nodePort, dataplane.Decision{Kind: "new", Path: "netfilter", Backend: netip.AddrPortFrom(d, 8080), Service: "default/web", Masquerade: true}},
		}
		for i, s := range stories {
			l.ask(t, s.from, s.to)
			got := h.atLeast(i + 1)[i:]
			if len(got) != 1 {
				t.Errorf("%s to %s: %d decisions were heard, want 1", s.from, s.to, len(got))
				continue
			}
			s.fill(l, &got[0])
			if diff := cmp.Diff(s.want, got[0], compareAddresses); diff != "" {
				t.Errorf("%s to %s (-want +heard):\n%s", s.from, s.to, diff)
			}
		}
		h.stop()
		<-h.done
		if h.err != nil || h.lost != 0 {
			t.Errorf("trace ended with %d lost, error %v", h.lost, h.err)
		}
	})
}

// inNode runs f on a thread in a node's network namespace. The Tracer's own
// goroutine need not be there.
func inNode(t *testing.T, n *Node, f func()) {
	t.Helper()
	if err := n.ns.Do(func() error { f(); return nil }); err != nil {
		t.Fatal(fmt.Errorf("in %s: %w", n.Name, err))
	}
}
