// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fairlead.dev/controller/compile"
	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/ebpf"
	"fairlead.dev/dataplane/iptables"
	"fairlead.dev/dataplane/ipvs"
	"fairlead.dev/dataplane/nftables"
	"fairlead.dev/explain"
	"fairlead.dev/test/internal/namespace"
)

// inspected is a Dataplane that explain is asked about.
type inspected struct {
	Target
	check func() []dataplane.CheckResult
	read  func(*Node) (dataplane.Reader, error)
	// In each of rounds there are random Services, and random questions beside
	// those that are always asked.
	rounds, questions int
}

const (
	servicesARound = 6
	seedVariable   = "FAIRLEAD_SEED"
)

func TestExplainAgreesWithPackets(t *testing.T) {
	for _, d := range []inspected{
		{
			Target: Target{Name: "ebpf", New: func(n *Node) (dataplane.Dataplane, error) {
				return ebpf.New(context.Background(), ebpf.Options{BPFFS: n.BPFFS, CgroupRoot: n.CgroupRoot, Devices: n.Devices})
			}},
			read:   func(n *Node) (dataplane.Reader, error) { return ebpf.Read(n.BPFFS) },
			rounds: 6, questions: 20,
		},
		{
			Target: Target{Name: "nftables", New: func(n *Node) (dataplane.Dataplane, error) {
				return nftables.New(context.Background(), nftables.Options{Devices: n.Devices})
			}},
			read:   func(*Node) (dataplane.Reader, error) { return nftables.Read(nftables.Options{}) },
			rounds: 6, questions: 20,
		},
		{
			Target: Target{Name: "iptables", New: func(n *Node) (dataplane.Dataplane, error) {
				return iptables.New(context.Background(), iptables.Options{Flavour: iptables.NFT, Devices: n.Devices})
			}},
			read: func(*Node) (dataplane.Reader, error) {
				return iptables.Read(iptables.Options{Flavour: iptables.NFT})
			},
			rounds: 4, questions: 20,
		},
		{
			Target: Target{Name: "ipvs", New: func(n *Node) (dataplane.Dataplane, error) {
				return ipvs.New(context.Background(), ipvs.Options{Devices: n.Devices})
			}},
			check:  func() []dataplane.CheckResult { return ipvs.Check(ipvs.Options{}) },
			read:   func(*Node) (dataplane.Reader, error) { return ipvs.Read(ipvs.Options{}) },
			rounds: 4, questions: 20,
		},
	} {
		t.Run(d.Name, func(t *testing.T) {
			if d.check != nil {
				if ok, reason := dataplane.Usable(d.check()); !ok {
					t.Skip("this machine can't do " + d.Name + ": " + reason)
				}
			}
			d.run(t)
		})
	}
}

func (d *inspected) run(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv(seedVariable); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("%s=%q: want a number", seedVariable, text)
		}
	}
	t.Logf("%s=%d repeats the choices of this run", seedVariable, seed)
	b := &bench{lab: newLab(t), target: d.Target}
	t.Cleanup(func() { b.close(t) })
	// Refusals are many, and ICMP errors are limited by default.
	if err := b.lab.nodes[0].ns.Do(func() error {
		return namespace.WriteSysctls(map[string]string{"ipv4/icmp_ratelimit": "0", "ipv6/icmp/ratelimit": "0"})
	}); err != nil {
		t.Fatal(err)
	}
	if err := b.start(0); err != nil {
		t.Fatal(err)
	}
	p := &prober{inspected: d, t: t, bench: b, rng: rand.New(rand.NewPCG(seed, 0)), outcomes: map[string]int{}}
	p.openReader()
	start := time.Now()
	for range d.rounds {
		p.round()
	}
	t.Logf("%d questions in %v: %v", p.asked, time.Since(start).Round(time.Millisecond), p.outcomes)
	for _, o := range []explain.Outcome{explain.Forwarded, explain.Refused, explain.Dropped, explain.NotService} {
		if p.outcomes[string(o)] == 0 {
			t.Errorf("no question ended with %s", o)
		}
	}
}

// prober asks, and sends what it asked about.
type prober struct {
	*inspected
	t        *testing.T
	bench    *bench
	rng      *rand.Rand
	reader   dataplane.Inspector
	asked    int
	outcomes map[string]int
}

func (p *prober) agent() *agent { return p.bench.agents[0] }

func (p *prober) openReader() {
	p.t.Helper()
	err := p.agent().thread.Do(func() error {
		r, err := p.read(p.bench.lab.nodes[0])
		if err == nil {
			p.reader = r.(dataplane.Inspector)
		}
		return err
	})
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { p.reader.Close() })
}

// round makes Services, asks about them, and takes them away.
func (p *prober) round() {
	s := &Story{t: p.t, bench: p.bench, kase: Case{ID: "explain", Clause: "explain says what packets then do"}, given: newObjects(), agents: p.bench.agents[:1]}
	defer s.cleanUp()
	var services []*service
	for range servicesARound {
		s.variant = variant{family: pick(p, IPv4, IPv6), protocol: pick(p, "TCP", "UDP")}
		services = append(services, p.service(s))
	}
	s.variant = variant{family: pick(p, IPv4, IPv6), protocol: pick(p, "TCP", "UDP")}
	narrow := p.narrow(s)
	p.knowPods(!p.oneIn(3))
	s.apply(append(services, narrow)...)
	p.compare()
	// One question with each outcome, whatever the others come to.
	p.ask(narrow, "outside", narrow.atExternal())
	p.ask(narrow, "far", narrow.atExternal())
	p.ask(narrow, "pod2", narrow.atNodePort())
	p.ask(narrow, "client", netip.AddrPortFrom(narrow.atClusterIP().Addr(), 99))
	p.ask(narrow, "bypass", netip.AddrPortFrom(narrow.atExternal().Addr(), 99))
	for range p.questions {
		svc := services[p.rng.IntN(len(services))]
		who := pick(p, explainClients...)
		p.ask(svc, who, p.destination(svc, who))
	}
}

// knowPods tells the node the ranges of pods, or that none is known: then what
// is internal is up to the Dataplane.
func (p *prober) knowPods(known bool) {
	n := p.bench.lab.nodes[0]
	facts := compile.NodeFacts{
		Name: n.Name, Zone: zone, Addresses: n.Addresses,
		NodePortAddresses: append([]netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}, n.Addresses...),
		PrimaryIPv4:       n.PrimaryIPv4, PrimaryIPv6: n.PrimaryIPv6, ServiceCIDRs: ServiceCIDRs,
	}
	if known {
		facts.InternalSources = ClusterCIDRs
	}
	p.agent().compiler.SetNode(facts)
}

// narrow makes a Service that outside clients can't reach: some by its source
// ranges, the others as it has no Backend here.
func (p *prober) narrow(s *Story) *service {
	svc := s.service().loadBalancer(vip).externalLocal().to(on("d")...)
	svc.Spec.LoadBalancerSourceRanges = []string{"203.0.113.0/24", "2001:db8:ffff::/64"}
	return svc
}

func pick[T any](p *prober, of ...T) T { return of[p.rng.IntN(len(of))] }

func (p *prober) oneIn(n int) bool { return p.rng.IntN(n) == 0 }

// service makes a Service of random fields and endpoints, of the story's family.
func (p *prober) service(s *Story) *service {
	svc := s.service()
	switch p.rng.IntN(3) {
	case 1:
		svc.nodePort()
	case 2:
		svc.loadBalancer(vip)
		if p.oneIn(2) {
			ranges := []string{"192.0.2.0/24", "192.0.2.100/32", "10.244.0.0/16", "10.244.1.10/32", "203.0.113.0/24",
				"2001:db8::/64", "2001:db8::100/128", "fd00:10:244::/48", "fd00:10:244:1::a/128", "2001:db8:ffff::/64"}
			p.rng.Shuffle(len(ranges), func(i, j int) { ranges[i], ranges[j] = ranges[j], ranges[i] })
			svc.Spec.LoadBalancerSourceRanges = ranges[:1+p.rng.IntN(4)]
		}
	}
	if svc.Spec.Type != "ClusterIP" && p.oneIn(2) {
		svc.externalLocal()
	}
	if p.oneIn(3) {
		svc.internalLocal()
	}
	if p.oneIn(3) {
		svc.sticky(600)
	}
	hinted := p.oneIn(4)
	members := []string{"a", "b", "c", "d", "e", "narrow", "host1"}
	p.rng.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
	var endpoints []endpoint
	for _, m := range members[:p.rng.IntN(5)] {
		e := one(m)
		switch p.rng.IntN(6) {
		case 0:
			e = e.leaving()
		case 1:
			e = pick(p, e.notReady(), e.dying())
		}
		if hinted {
			e = e.forZones(pick(p, zone, "zone-2"))
		}
		endpoints = append(endpoints, e)
	}
	return svc.to(endpoints...)
}

// compare reads every Frontend of the Table back.
func (p *prober) compare() {
	p.t.Helper()
	for name, svc := range p.agent().compiler.Table().Services {
		for i := range svc.Frontends {
			want := svc.Frontends[i]
			if want.Address.Is6() && want.Address.IsLoopback() && p.Name != "ebpf" && p.Name != "ipvs" {
				continue // not programmed, see docs/semantics.md
			}
			var in *dataplane.Inspection
			err := p.agent().thread.Do(func() (err error) {
				in, err = p.reader.Inspect(want.FrontendKey)
				return err
			})
			switch {
			case err != nil:
				p.t.Fatal(err)
			case in.Frontend == nil || in.Service != name:
				p.t.Errorf("%s of %s is not there: %+v", want.FrontendKey, name, in)
				continue
			}
			for _, u := range in.Unread {
				switch u.Part {
				case dataplane.UnreadDraining:
					want.Draining = nil
				case dataplane.UnreadMasquerade:
					want.MasqueradeExternal = false
				}
			}
			want.SourceRanges, in.Frontend.SourceRanges = outermost(want.SourceRanges), outermost(in.Frontend.SourceRanges)
			for _, set := range []*dataplane.BackendSet{&want.Internal, &want.External, &in.Frontend.Internal, &in.Frontend.External} {
				if len(set.Backends) > 0 {
					set.OnEmpty = dataplane.Reject // it means nothing
				}
			}
			if !in.Frontend.Equal(&want) {
				p.t.Errorf("%s of %s is read as (-Table +kernel):\n%s", want.FrontendKey, name, cmp.Diff(want, *in.Frontend,
					cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })))
			}
		}
	}
}

// outermost leaves out ranges that lie in others, which change nothing.
func outermost(ranges []netip.Prefix) (out []netip.Prefix) {
	for _, r := range ranges {
		if !slices.ContainsFunc(ranges, func(o netip.Prefix) bool { return o.Bits() < r.Bits() && o.Contains(r.Addr()) }) {
			out = append(out, r)
		}
	}
	return out
}
