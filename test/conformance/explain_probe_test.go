// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
	"fairlead.dev/explain"
	"fairlead.dev/explain/kernel"
)

// explainClients may ask; those of packetPath pass no socket hook.
var (
	explainClients = []string{"client", "client", "bypass", "a", "c", "host1", "host1", "outside", "outside", "far", "pod2", "client-unhooked"}
	packetPath     = []string{"bypass", "c", "client-unhooked"}
)

// probe is one question, and what was answered.
type probe struct {
	p      *prober
	who    string
	q      explain.Question
	asking *asking
	answer explain.Answer
}

// ask asks one question about a Service and sends what the answer is about.
func (p *prober) ask(svc *service, who string, to netip.AddrPort) {
	p.t.Helper()
	s := svc.story
	s.family, s.protocol = familyFrom(svc.Spec.IPFamilies[0]), string(svc.Spec.Ports[0].Protocol)
	protocol, _ := dataplane.ParseProtocol(s.protocol)
	pr := &probe{p: p, who: who, asking: s.ask(to).by(who)}
	pr.q.To = dataplane.FrontendKey{Address: to.Addr(), Port: to.Port(), Protocol: protocol}
	if who != "host1" {
		pr.q.Client = s.addressOf(who)
	}
	pr.explain()
	before := p.drops(pr.answer.Reason)
	p.asked++
	p.outcomes[string(pr.answer.Outcome)]++
	switch pr.answer.Outcome {
	case explain.Forwarded:
		pr.forwarded()
	case explain.Refused:
		if o := pr.send(1)[0]; o.Failure != refused {
			pr.wrong("refused", o)
		}
	case explain.Dropped:
		pr.asking.r.Timeout = silentFor
		// A process of the node may be told by its own stack.
		told := func(o outcome) bool { return who == "host1" && strings.Contains(o.Detail, unix.EPERM.Error()) }
		if o := pr.send(1)[0]; o.Failure != timedOut && !told(o) {
			pr.wrong("silence", o)
		}
	case explain.NotService:
		pr.asking.r.Timeout = silentFor
		if o := pr.send(1)[0]; o.Failure == "" && (o.Local != to || pr.q.Client.IsValid() && o.Remote.Addr() != pr.q.Client) {
			pr.wrong("nobody's answer but that of "+to.String(), o)
		}
	}
	// The kernel's own drops are not counted, and iptables counts datagrams of the
	// node itself to unknown ports among those for no_backends.
	counted := pr.answer.Reason != "" && (pr.answer.Reason != "no_route" || p.Name == "ebpf") &&
		(pr.answer.Reason != "unknown_port" || p.Name != "iptables" || who != "host1" || s.protocol == "TCP")
	for again := 0; counted && p.drops(pr.answer.Reason) <= before; again++ {
		if again == 10 {
			pr.wrong("a drop for "+pr.answer.Reason+" that is counted", before)
		}
		pr.send(1) // a busy machine: it may have waited for a neighbour's address longer than silence does
	}
}

// drops is how often something was not let through for a reason.
func (p *prober) drops(reason string) (count uint64) {
	p.t.Helper()
	if reason == "" {
		return 0
	}
	err := p.agent().thread.Do(func() error {
		_, rows, err := p.reader.Counters()
		for _, row := range rows {
			if row.Reason == reason {
				count = row.Count
			}
		}
		return err
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return count
}

// destination is one of the Service's Frontends, or something near them.
func (p *prober) destination(svc *service, who string) netip.AddrPort {
	s := svc.story
	s.family = familyFrom(svc.Spec.IPFamilies[0])
	n := p.bench.lab.nodes[0]
	all := []netip.AddrPort{svc.atClusterIP(), svc.atClusterIP(), netip.AddrPortFrom(svc.atClusterIP().Addr(), 99), netip.AddrPortFrom(s.addressOf("a"), 8080)}
	if svc.Spec.Type != "ClusterIP" {
		nodePort := uint16(svc.Spec.Ports[0].NodePort)
		at := svc.atNodePort()
		all = append(all, at, at, at, netip.AddrPortFrom(at.Addr(), 29999))
		if who == "host1" || who == "client" || who == "a" {
			loopback := netip.MustParseAddr("127.0.0.1")
			if s.family == IPv6 {
				loopback = netip.IPv6Loopback()
			}
			all = append(all, netip.AddrPortFrom(n.gateway().of(s.family == IPv6), nodePort), netip.AddrPortFrom(loopback, nodePort))
		}
	}
	if svc.Spec.Type == "LoadBalancer" {
		all = append(all, svc.atExternal(), svc.atExternal(), svc.atExternal(), svc.atExternal(), netip.AddrPortFrom(svc.atExternal().Addr(), 99))
	}
	return pick(p, all...)
}

func (pr *probe) explain() {
	pr.p.t.Helper()
	err := pr.p.agent().thread.Do(func() (err error) {
		pr.answer, err = kernel.Explain(pr.p.reader, pr.q, kernel.Options{PacketPath: slices.Contains(packetPath, pr.who)})
		return err
	})
	if err != nil {
		pr.p.t.Fatalf("explain %s: %v", pr.q, err)
	}
}

func (pr *probe) send(times int) []outcome {
	pr.p.t.Helper()
	pr.asking.times(times)
	return pr.asking.do()
}

func (pr *probe) wrong(want string, seen any) {
	pr.p.t.Helper()
	text, _ := json.MarshalIndent(pr.answer, "", " ")
	if o, ok := seen.(outcome); ok {
		seen = fmt.Sprintf("%s (at %v, from %v)", o.describe(), o.Local, o.Remote)
	}
	pr.p.t.Fatalf("sent: %s\nwant: %s\nseen: %v\nexplained: %s", pr.asking, want, seen, text)
}

// forwarded sends until each Backend with a share must have been met.
func (pr *probe) forwarded() {
	pr.p.t.Helper()
	eligible := 0
	for _, b := range pr.answer.Backends {
		if b.Share > 0 {
			eligible++
		}
	}
	sticky := pr.answer.Policy.SessionAffinitySeconds > 0
	times := 16 * eligible
	if sticky {
		times = 1
	}
	met := map[netip.AddrPort]bool{}
	for _, o := range pr.send(times) {
		met[pr.reached(o).AddrPort()] = true
	}
	if sticky {
		pr.remembered(met)
		return
	}
	for _, b := range pr.answer.Backends {
		if b.Share > 0 && b.Dropped == "" && !met[b.AddrPort()] {
			pr.wrong(fmt.Sprintf("%s too, among %d", b.AddrPort(), times), met)
		}
	}
	if pr.answer.Path != "socket" {
		pr.known()
	}
}

// reached finds the Backend of an outcome among those with a share, and compares
// what it saw.
func (pr *probe) reached(o outcome) explain.Backend {
	pr.p.t.Helper()
	dropped := slices.IndexFunc(pr.answer.Backends, func(b explain.Backend) bool { return b.Share > 0 && b.Dropped != "" })
	if o.Failure == timedOut && dropped >= 0 {
		return pr.answer.Backends[dropped]
	}
	if o.Failure != "" {
		pr.wrong("an answer", o)
	}
	i := slices.IndexFunc(pr.answer.Backends, func(b explain.Backend) bool { return b.Share > 0 && b.AddrPort() == o.Local })
	if i < 0 {
		pr.wrong("an answer of a Backend with a share", o)
	}
	b := pr.answer.Backends[i]
	switch {
	case b.Dropped != "":
		pr.wrong("nothing from "+b.AddrPort().String(), o)
	case b.Source.Address == nil:
		pr.wrong("a source address that is known", o)
	case *b.Source.Address != o.Remote.Addr():
		pr.wrong("seen as "+b.Source.Address.String(), o)
	}
	return b
}

// remembered asks again: there must be an entry now, and it must hold.
func (pr *probe) remembered(met map[netip.AddrPort]bool) {
	pr.p.t.Helper()
	pr.explain()
	a := pr.answer.Affinity
	switch {
	case a == nil || !a.Honoured || !met[a.Backend]:
		pr.wrong(fmt.Sprintf("an entry that leads to %v", met), a)
	case a.RemainingSeconds < 500 || a.RemainingSeconds > 600:
		pr.wrong("almost 600 seconds left", a)
	}
	for _, b := range pr.answer.Backends {
		if (b.Share > 0) != (b.AddrPort() == a.Backend) {
			pr.wrong("no share for other Backends than that of the entry", b)
		}
	}
	for _, o := range pr.send(3) {
		if b := pr.reached(o); b.AddrPort() != a.Backend {
			pr.wrong("the Backend of the entry", o)
		}
	}
}

// known holds a connection and asks about its source port: the flow decides.
func (pr *probe) known() {
	pr.p.t.Helper()
	pr.asking.times(0)
	h, o := pr.asking.tryOpen()
	if o.Failure != "" {
		return // dropped on its way to one of the Backends, which reached knows
	}
	client := pr.q
	pr.q.Client, pr.q.ClientPort = o.Self.Addr(), o.Self.Port()
	pr.explain()
	pr.reached(o)
	if n := len(pr.answer.Flows); n != 1 || pr.answer.Flows[0].Client != o.Self || pr.answer.Flows[0].Backend != o.Local {
		pr.wrong(fmt.Sprintf("one flow %s -> %s", o.Self, o.Local), pr.answer.Flows)
	}
	if again := h.again(); again.Failure != "" || again.Local != o.Local {
		pr.wrong("the flow goes on", again)
	}
	pr.q = client
}
