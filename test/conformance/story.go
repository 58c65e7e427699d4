// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// reporter is what a Story needs of *testing.T.
type reporter interface {
	Helper()
	Name() string
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// Story is one variant of a case while it runs: it applies objects and asks
// questions. The first expectation that is not met ends it.
type Story struct {
	variant
	t      reporter
	bench  *bench
	kase   Case
	agents []*agent
	// given is all that the nodes were told and have to be told the end of.
	given objects
	held  map[string]*member
}

// node1 is node1's address of the variant's family.
func (s *Story) node1() netip.Addr { return s.nodeAddress(0) }
func (s *Story) node2() netip.Addr { return s.nodeAddress(1) }

func (s *Story) nodeAddress(i int) netip.Addr {
	n := s.bench.lab.nodes[i]
	return addresses{n.PrimaryIPv4, n.PrimaryIPv6}.of(s.family == IPv6)
}

func (s *Story) member(name string) *member {
	m := s.bench.lab.members[name]
	if m == nil {
		s.t.Fatalf("the case names %q, which is nobody in the lab", name)
	}
	return m
}

// addressOf is the address of a member in the variant's family.
func (s *Story) addressOf(name string) netip.Addr { return s.member(name).of(s.family == IPv6) }

// apply makes the nodes know the services as they are now, and no longer know
// slices of theirs that are no more.
func (s *Story) apply(services ...*service) {
	s.t.Helper()
	now := newObjects()
	for _, svc := range services {
		for key := range s.given.slices {
			if strings.HasPrefix(key.Name, svc.Name+"-") {
				now.slices[key] = nil
			}
		}
		svc.render(now)
	}
	s.give(now)
}

// remove deletes services and their slices.
func (s *Story) remove(services ...*service) {
	s.t.Helper()
	now := newObjects()
	for _, svc := range services {
		now.services[types.NamespacedName{Namespace: svc.Namespace, Name: svc.Name}] = nil
		for key := range s.given.slices {
			if strings.HasPrefix(key.Name, svc.Name+"-") {
				now.slices[key] = nil
			}
		}
	}
	s.give(now)
}

// applyPod makes the nodes know a Pod.
func (s *Story) applyPod(p *corev1.Pod) {
	s.t.Helper()
	now := newObjects()
	now.pods[types.NamespacedName{Namespace: p.Namespace, Name: p.Name}] = p
	s.give(now)
}

func (s *Story) give(now objects) {
	s.t.Helper()
	maps.Copy(s.given.services, now.services)
	maps.Copy(s.given.slices, now.slices)
	maps.Copy(s.given.pods, now.pods)
	for _, a := range s.agents {
		if err := a.give(now); err != nil {
			s.t.Fatal(err)
		}
	}
}

// freshPort is an address of the variant's client with a source port that no
// flow of the run had: below those that the kernel chooses itself.
func (s *Story) freshPort() netip.AddrPort {
	s.bench.ports++
	return netip.AddrPortFrom(s.bindAddress(), uint16(10000+s.bench.ports))
}

// asking is a request and who sends it, before its expectation.
type asking struct {
	story *Story
	who   string
	r     request
	seen  []netip.Addr
	// port is the Backend's that must answer, 0 for any.
	port uint16
}

// ask prepares a request of the variant's client and protocol.
func (s *Story) ask(to netip.AddrPort) *asking {
	return &asking{story: s, who: s.client, r: request{Protocol: s.protocol, To: to, Timeout: s.bench.patience}}
}

func (a *asking) by(who string) *asking         { a.who = who; return a }
func (a *asking) over(protocol string) *asking  { a.r.Protocol = protocol; return a }
func (a *asking) times(n int) *asking           { a.r.Times, a.r.Parallel = n, 8; return a }
func (a *asking) from(p netip.AddrPort) *asking { a.r.From, a.r.Reuse = p, true; return a }

// with changes the request.
func (a *asking) with(f func(*request)) *asking { f(&a.r); return a }

// seenAs is what the Backend must see as the client's address, one of them.
func (a *asking) seenAs(addrs ...netip.Addr) *asking { a.seen = addrs; return a }

// servedAt is the port of the Backends that must answer.
func (a *asking) servedAt(port uint16) *asking { a.port = port; return a }

func (a *asking) do() []outcome {
	a.story.t.Helper()
	out, err := a.story.member(a.who).do(call{Op: opAsk, Request: a.r})
	if err != nil {
		a.story.t.Fatal(err)
	}
	return out
}

func (a *asking) String() string {
	s := fmt.Sprintf("%s -> %s/%s", a.who, a.r.To, a.r.Protocol)
	if a.r.Times > 1 {
		s += fmt.Sprintf(" x%d", a.r.Times)
	}
	if a.r.From.IsValid() {
		s += " from " + a.r.From.String()
	}
	if a.r.Unconnected {
		s += " unconnected"
	}
	if a.r.Mapped {
		s += " IPv4-mapped"
	}
	return s
}

func (a *asking) fail(want string, seen any) {
	a.story.t.Helper()
	a.story.t.Fatalf("clause: %s\nsent: %s\nwant: %s\nseen: %v", a.story.kase.Clause, a, want, seen)
}

// reaches expects every request to be answered, by these Backends and no
// others, each of them at least once. It asks often enough for that.
func (a *asking) reaches(backends ...string) []outcome {
	a.story.t.Helper()
	if a.r.Times == 0 && len(backends) > 1 {
		// A fair choice of 3 misses one with a chance of 3 * (2/3)^48 = 1e-8.
		a.times(16 * len(backends))
	} else if a.r.Times == 0 {
		a.times(4)
	}
	out := a.do()
	got := a.check(out)
	slices.Sort(backends)
	if names := slices.Sorted(maps.Keys(got)); !slices.Equal(names, backends) {
		a.fail("answers of "+strings.Join(backends, ", "), got)
	}
	return out
}

// reachesOneOf expects one answer, of any of these.
func (a *asking) reachesOneOf(backends ...string) string {
	a.story.t.Helper()
	for name := range a.check(a.do()) {
		if slices.Contains(backends, name) {
			return name
		}
		a.fail("answer of one of "+strings.Join(backends, ", "), name)
	}
	return ""
}

// spreads is reaches with equal shares: none further from its mean than six
// standard deviations.
func (a *asking) spreads(n int, backends ...string) {
	a.story.t.Helper()
	counts := map[string]int{}
	for _, o := range a.times(n).reaches(backends...) {
		counts[o.Backend]++
	}
	p := 1 / float64(len(backends))
	mean, bound := p*float64(n), 6*math.Sqrt(float64(n)*p*(1-p))
	for _, got := range counts {
		if math.Abs(float64(got)-mean) > bound {
			a.fail(fmt.Sprintf("%.0f answers of each, give or take %.0f", mean, bound), counts)
		}
	}
}

// check expects answers, each from whom the client asked, seen as expected,
// and returns how often each Backend answered.
func (a *asking) check(out []outcome) map[string]int {
	a.story.t.Helper()
	got := map[string]int{}
	for _, o := range out {
		a.checkOne(o)
		got[o.Backend]++
		if o.SYNsAgain > 0 {
			// No link of the lab loses packets, but machines can be too busy.
			a.story.t.Logf("%s: a SYN had to be sent %d times again before %s answered", a, o.SYNsAgain, o.Backend)
		}
	}
	return got
}

func (a *asking) checkOne(o outcome) {
	a.story.t.Helper()
	switch {
	case o.Failure != "":
		a.fail("an answer", fmt.Sprintf("%s after %v (%s)", o.Failure, o.Elapsed.Round(time.Microsecond), o.Detail))
	case o.Corrupt:
		a.fail("payload as sent", fmt.Sprintf("other payload, %+v", o.answer))
	case len(a.seen) > 0 && !slices.Contains(a.seen, o.Remote.Addr()):
		a.fail(fmt.Sprintf("the Backend sees the client as one of %v", a.seen), fmt.Sprintf("%s sees %v", o.Backend, o.Remote))
	case a.port != 0 && o.Local.Port() != a.port:
		a.fail(fmt.Sprintf("an answer from port %d of the Backend", a.port), o.Local)
	case !a.r.Unconnected && o.Peer != a.r.To:
		a.fail("getpeername answers the Service address", o.Peer)
	case a.r.Protocol == "UDP" && o.Source != a.r.To:
		a.fail("the answer comes from the Service address", o.Source)
	}
}

// refusedAtOnce expects ECONNREFUSED without waiting.
func (a *asking) refusedAtOnce() {
	a.story.t.Helper()
	for _, o := range a.do() {
		if o.Failure != refused || o.Elapsed > atOnce {
			a.fail(fmt.Sprintf("refused within %v", atOnce), o.describe())
		}
	}
}

// dropped expects that nothing comes back.
func (a *asking) dropped() {
	a.story.t.Helper()
	for _, o := range a.awaitSilence(!a.r.From.IsValid()) {
		if o.Failure != timedOut {
			a.fail("silence", o.describe())
		}
	}
}

// unanswered expects that nobody answers, in whatever way: the address is not
// a Service's, so what happens to it is the network's business.
func (a *asking) unanswered() {
	a.story.t.Helper()
	for _, o := range a.awaitSilence(false) {
		if o.Failure == "" {
			a.fail("no answer", o.describe())
		}
	}
}

// awaitSilence asks, and waits for as long as nothing must come back. Where a
// pod's answer to the same client takes nearly as long, silence says nothing:
// it asks again, and waits longer. fresh: from another port each time, as what
// passed before may go on with a port of its flows.
func (a *asking) awaitSilence(fresh bool) []outcome {
	a.story.t.Helper()
	for a.r.Timeout = silentFor; ; a.r.Timeout *= 2 {
		if fresh {
			a.from(a.story.freshPort())
		}
		prompt := a.story.isPrompt(a.who, a.r.Timeout/2)
		out := a.do()
		silent := !slices.ContainsFunc(out, func(o outcome) bool { return o.Failure != timedOut })
		if <-prompt || !silent || 2*a.r.Timeout > answerWithin {
			return out
		}
	}
}

// isPrompt asks the pod "a", whom everybody reaches without a Service, and says
// whether its answer came in time.
func (s *Story) isPrompt(who string, within time.Duration) <-chan bool {
	s.t.Helper()
	client := s.member(who)
	r := request{Protocol: "UDP", To: netip.AddrPortFrom(s.addressOf("a"), serverPorts[0]), Timeout: within}
	prompt := make(chan bool, 1)
	go func() {
		out, err := client.do(call{Op: opAsk, Request: r})
		prompt <- err == nil && out[0].Failure == ""
	}()
	return prompt
}

func (o outcome) describe() string {
	if o.Failure == "" {
		return fmt.Sprintf("answer of %s after %v", o.Backend, o.Elapsed.Round(time.Microsecond))
	}
	return fmt.Sprintf("%s after %v (%s)", o.Failure, o.Elapsed.Round(time.Microsecond), o.Detail)
}

// open asks once and keeps the connection (or the unconnected socket).
func (a *asking) open() *heldConnection {
	a.story.t.Helper()
	h, o := a.tryOpen()
	a.checkOne(o)
	h.backend = o.Backend
	return h
}

func (a *asking) tryOpen() (*heldConnection, outcome) {
	s := a.story
	s.t.Helper()
	m := s.member(a.who)
	h := &heldConnection{asking: a, handle: fmt.Sprintf("%s-%d", s.t.Name(), len(s.held))}
	if s.held == nil {
		s.held = map[string]*member{}
	}
	s.held[h.handle] = m
	out, err := m.do(call{Op: opOpen, Handle: h.handle, Request: a.r})
	if err != nil {
		s.t.Fatal(err)
	}
	return h, out[0]
}

// heldConnection stays open between steps.
type heldConnection struct {
	*asking
	handle  string
	backend string
}

// again asks once more over it.
func (h *heldConnection) again() outcome {
	h.story.t.Helper()
	out, err := h.story.member(h.who).do(call{Op: opAgain, Handle: h.handle, Request: h.r})
	if err != nil {
		h.story.t.Fatal(err)
	}
	return out[0]
}

// stays expects the same Backend to answer again.
func (h *heldConnection) stays() {
	h.story.t.Helper()
	o := h.again()
	h.checkOne(o)
	if o.Backend != h.backend {
		h.fail("the connection stays with "+h.backend, "answer of "+o.Backend)
	}
}
