// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"encoding/binary"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"fairlead.dev/bpf/bounce"
)

// BenchmarkNorthSouth prints nanoseconds per packet of the packet path beside
// a program that only parses and bounces, and one that also finds a flow in a
// hash table and the route, from BPF_PROG_TEST_RUN. In each round all take
// turns, and the median over the rounds is reported. x/bounce and x/routed are
// ratios of what the test run reports; over-floor leaves out what an empty
// program costs in both (the test run itself and putting the packet back).
func BenchmarkNorthSouth(b *testing.B) {
	newRig(b) // for its conditions; this one has room for many flows
	r, err := openRig(1 << 16)
	if err != nil {
		b.Fatal(err)
	}
	r.clear(b)
	s := &state{rig: r, t: b, backends: map[string]uint32{}}
	var o bounce.BounceObjects
	if err := bounce.LoadBounceObjects(&o, nil); err != nil {
		b.Fatal(err)
	}
	defer o.Close()
	s.masqueradePorts(1024, 65535)
	w := worldOf("IPv4", tcp)
	plain, remote, affine := w.both(w.pod, slotLocal, 0), w.both(w.remote, 0, frontendMasqueradeExternal), w.both(w.pod, slotLocal, 0)
	remote.id, remote.port = 2, 81
	affine.id, affine.port, affine.affinity = 3, 82, 3600
	s.add(plain, remote, affine)
	first := w.first(w.vip, servicePort)
	there := first.destination(w.pod, targetPort).toPod()
	away := w.first(w.vip, 81)
	s.enter(first, away)

	// The route it asks for is the one that a translated packet takes.
	routed := first.data("").destination(w.pod, targetPort)
	s.must(o.KnownFlows.Put(knownFlow(routed), uint32(1)))

	up, down := s.program(fromUplink), s.program(fromPod)
	cases := []*measurement{
		{name: "floor", program: o.Nothing, at: arriving, in: first.data("")},
		{name: "bounce", program: o.Bounce, at: arriving, in: first.data("")},
		{name: "bounce-routed", program: o.BounceRouted, at: arriving, in: routed},
		{name: "forward", program: up, at: arriving, in: first.data("")},
		{name: "forward-masq", program: up, at: arriving, in: away.data("")},
		{name: "reply", program: down, at: leavingPod, in: there.reply().flagged(ack)},
		{name: "not-ours", program: up, at: arriving, in: w.first(w.node, 22).data("")},
		{name: "new", program: up, at: arriving, in: first, fresh: true},
		{name: "new-affinity", program: up, at: arriving, in: w.first(w.vip, 82), fresh: true},
	}
	for b.Loop() {
		for _, c := range cases {
			c.round(s, &o)
		}
	}
	floor, base, route := cases[0].median(), cases[1].median(), cases[2].median()
	b.ReportMetric(0, "ns/op")
	b.Logf("%-14s %9s %9s %9s %11s  (%d rounds)", "", "ns/packet", "x bounce", "x routed", "over floor", len(cases[0].rounds))
	for i, c := range cases {
		b.ReportMetric(c.median(), c.name+"-ns/packet")
		if i >= 3 {
			b.ReportMetric(c.median()/base, c.name+"-x/bounce")
			b.ReportMetric(c.median()/route, c.name+"-x/routed")
		}
		b.Logf("%-14s %9.1f %9.2f %9.2f %11.1f", c.name, c.median(), c.median()/base, c.median()/route, c.median()-floor)
	}
}

func knownFlow(p packet) bounce.BounceKnownFlow {
	a, b := p.src.As4(), p.dst.As4()
	return bounce.BounceKnownFlow{
		Source: binary.NativeEndian.Uint32(a[:]), Destination: binary.NativeEndian.Uint32(b[:]),
		SourcePort: swap(p.sport), DestinationPort: swap(p.dport), Protocol: uint32(p.proto),
	}
}

// measurement is one program with one packet, measured over and over.
type measurement struct {
	name    string
	program *ebpf.Program
	at      hook
	in      packet
	fresh   bool // every packet begins a flow
	rounds  []float64
}

func (m *measurement) median() float64 {
	slices.Sort(m.rounds)
	return m.rounds[len(m.rounds)/2]
}

func (m *measurement) round(s *state, o *bounce.BounceObjects) {
	s.t.Helper()
	frame := m.in.bytes()
	start := bounce.BounceFresh{}
	copy(start.Header[:], frame[:54])
	repeat := uint32(100_000)
	if m.fresh {
		start.VaryPort, repeat = 1, 20_000 // fewer than conntrack holds
		s.must(clearMap(s.objects.Conntrack))
	}
	s.must(o.FreshPacket.Put(uint32(0), start))
	s.must(o.Measured.Put(uint32(0), m.program))
	var took time.Duration
	var code uint32
	var err error
	opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, 256), Repeat: repeat, Context: skBuff{Ifindex: uint32(s.index[m.at.device])}}
	s.in(func() {
		began := time.Now()
		code, err = o.Begin.Run(&opts)
		took = time.Since(began)
	})
	s.must(err)
	if want := m.want(); verdict(code) != want && os.Getenv("FAIRLEAD_TEST_OBJECT") == "" {
		s.t.Fatalf("%s: %v, want %v: %q", m.name, verdict(code), want, describe(opts.DataOut))
	}
	m.rounds = append(m.rounds, float64(took.Nanoseconds())/float64(repeat))
	if m.fresh { // the flow of the other cases comes back
		w := worldOf("IPv4", tcp)
		s.must(clearMap(s.objects.Conntrack))
		s.enter(w.first(w.vip, servicePort), w.first(w.vip, 81))
	}
}

func (m *measurement) want() verdict {
	if m.name == "floor" || m.name == "not-ours" {
		return stack
	}
	return redirect
}

// enter begins flows. It looks at verdicts only, so that programs with a part
// left out can be measured too (FAIRLEAD_TEST_OBJECT).
func (s *state) enter(ps ...packet) {
	s.t.Helper()
	for _, p := range ps {
		if v, _, err := s.run(arriving, p.bytes()); err != nil || v != redirect {
			s.t.Fatalf("%v, %v", v, err)
		}
	}
}
