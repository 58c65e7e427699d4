// SPDX-License-Identifier: Apache-2.0

package resilience

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sort"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/controller/compile"
	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/ebpf"
)

const (
	churnFor = 20 * time.Second
	// churnRate is the number of replacements a second that is aimed at.
	churnRate = 1000
	// churnLeast is how many there must be, or the test proves too little: on a
	// busy machine it goes on for so many, up to churnForMost.
	churnLeast   = 5000
	churnForMost = 2 * time.Minute
)

// churner replaces all Backends of a Service through the Dataplane's interface.
type churner struct {
	*bed
	random   *rand.Rand
	service  *corev1.Service
	pods     []endpoint
	compiler *compile.Compiler
	dp       dataplane.Dataplane
	port     int // which of the pods' ports serves
	epochs   []epoch
	applies  []time.Duration
}

// epoch is a set of Backends: it may be chosen from begun, before its Apply was
// called, until the next epoch's done, when that one's Apply had returned.
type epoch struct {
	begun, done int64
	backends    []netip.AddrPort
}

func newChurner(t *testing.T, random *rand.Rand) *churner {
	t.Helper()
	b := newBed(t)
	c := &churner{bed: b, random: random, service: churnedService(), compiler: compile.New(compile.Options{})}
	for _, name := range []string{"a", "b", "c"} {
		c.pods = append(c.pods, endpoint{"node1", b.member(name)})
	}
	for _, name := range []string{"d", "e", "narrow"} {
		c.pods = append(c.pods, endpoint{"node2", b.member(name)})
	}
	c.compiler.SetNode(facts(b.node))
	c.compiler.SetService(types.NamespacedName{Namespace: "default", Name: c.service.Name}, c.service)
	c.choose()
	c.compiler.Compile()
	err := b.thread.Do(func() (err error) {
		c.dp, err = ebpf.New(context.Background(), ebpf.Options{BPFFS: b.node.BPFFS, CgroupRoot: b.node.CgroupRoot, Devices: b.node.Devices})
		if err == nil {
			t.Cleanup(func() { c.dp.Close() })
			c.epochs[0].begun = monotonic()
			_, err = c.dp.Sync(context.Background(), c.compiler.Table())
			c.epochs[0].done = monotonic()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// choose sets other Backends than there are: one to three pods, at another port.
func (c *churner) choose() {
	numbers := []int32{8080, 8081, 9090}
	c.port = (c.port + 1 + c.random.IntN(2)) % len(numbers)
	number := numbers[c.port]
	var e epoch
	for _, ipv6 := range []bool{false, true} {
		c.random.Shuffle(len(c.pods), func(i, j int) { c.pods[i], c.pods[j] = c.pods[j], c.pods[i] })
		s := newSlice(map[bool]string{false: "churned-4", true: "churned-6"}[ipv6], c.service, ipv6, number, c.pods[:1+c.random.IntN(3)])
		c.set(s)
		e.backends = append(e.backends, backendsOf(s)...)
	}
	c.epochs = append(c.epochs, e)
}

func (c *churner) set(s *discoveryv1.EndpointSlice) {
	c.compiler.SetEndpointSlice(types.NamespacedName{Namespace: s.Namespace, Name: s.Name}, s)
}

// replace makes the kernel follow another choice.
func (c *churner) replace() error {
	c.choose()
	r := c.compiler.Compile()
	e := &c.epochs[len(c.epochs)-1]
	e.begun = monotonic()
	err := c.thread.Do(func() error { return c.dp.Apply(context.Background(), r.Change) })
	e.done = monotonic()
	c.applies = append(c.applies, time.Duration(e.done-e.begun))
	return err
}

// run replaces as often as it is to, and says how often a second it did.
func (c *churner) run() (float64, error) {
	begin := time.Now()
	n := 0
	for time.Since(begin) < churnFor || n < churnLeast && time.Since(begin) < churnForMost {
		if wait := time.Until(begin.Add(time.Duration(n) * time.Second / churnRate)); wait > 0 {
			time.Sleep(wait)
		}
		if err := c.replace(); err != nil {
			return 0, fmt.Errorf("replacement %d: %w", n, err)
		}
		n++
	}
	return float64(n) / time.Since(begin).Seconds(), nil
}

// mayReach reports whether a Backend was in an epoch that may have been chosen
// from between two times, and else when it was last.
func (c *churner) mayReach(a netip.AddrPort, from, to int64) (bool, string) {
	first := sort.Search(len(c.epochs), func(i int) bool { return i+1 == len(c.epochs) || c.epochs[i+1].done >= from })
	for i := first; i < len(c.epochs) && c.epochs[i].begun <= to; i++ {
		if slices.Contains(c.epochs[i].backends, a) {
			return true, ""
		}
	}
	for i := first - 1; i >= 0; i-- {
		if slices.Contains(c.epochs[i].backends, a) {
			return false, fmt.Sprintf("its removal, replacement %d, was applied %.3f ms before", i+1, float64(from-c.epochs[i+1].done)/1e6)
		}
	}
	return false, "it was never one"
}

// churnStreams connect as quickly as they can.
func churnStreams(c client, at netip.AddrPort) []stream {
	to := []netip.AddrPort{at}
	return []stream{
		{Mode: tcpFresh, To: to, Reset: true},
		{Mode: udpFresh, To: to, Every: 2 * time.Millisecond},
		{Mode: udpSendto, To: to, Every: 2 * time.Millisecond},
		{Mode: udpShared, To: to, Every: time.Millisecond},
	}
}

func TestChurnOf1000ReplacementsASecondNeverReachesARemovedBackend(t *testing.T) {
	random, seed := seed(t)
	c := newChurner(t, random)
	// Clients that are as quick as they can take every CPU there is: what is
	// left of it is for the replacements.
	loads := c.everyPath(churnStreams, loadPlan{Patience: patience, Nice: 10}, 2)
	rate, err := c.run()
	if err != nil {
		t.Errorf("FAIRLEAD_SEED=%d: %v", seed, err)
	}
	v, ended := c.judge(loads)
	for _, f := range v.failures[:min(len(v.failures), 20)] {
		t.Errorf("FAIRLEAD_SEED=%d: %s", seed, f)
	}
	drops, err := c.drops()
	if err != nil {
		t.Error(err)
	}
	for reason, n := range drops {
		if n != 0 {
			t.Errorf("fairlead_drops_total{reason=%q} is %d, want 0", reason, n)
		}
	}
	if len(c.epochs) < churnLeast {
		t.Errorf("%d replacements in %v, want %d at least", len(c.epochs), churnForMost, churnLeast)
	}
	fmt.Printf("churn: %d replacements, %.0f a second (aim %d), Apply p50 %v p99 %v max %v\n", len(c.epochs), rate, churnRate,
		quantile(c.applies, 0.5), quantile(c.applies, 0.99), quantile(c.applies, 1))
	fmt.Printf("churn: %s; %d sockets ended because their Backend was removed; %d failed or reached a removed Backend; drops %v (seed %d)\n",
		v, ended, len(v.failures), drops, seed)
}

// judge finds every question that failed or was answered by a Backend that was
// removed before it was asked. A socket that was connected to a Backend when
// that was removed is ended, which is counted.
func (c *churner) judge(loads []*load) (v verdict, ended int) {
	for _, l := range loads {
		report, err := l.stop()
		if err != nil {
			v.failures = append(v.failures, err.Error())
			continue
		}
		if len(report.Records) < 100 {
			v.failures = append(v.failures, fmt.Sprintf("load from %s asked %d questions only", l.name, len(report.Records)))
		}
		for i := range report.Records {
			r := &report.Records[i]
			v.count(r)
			if wasEnded(r) && l.plan.Streams[r.Stream].Mode != udpShared {
				ended++
			} else if r.Failure != "" {
				v.failures = append(v.failures, fmt.Sprintf("%s:\nwant an answer\nseen %s after %v", l.question(r), r.Failure, time.Duration(r.Took)))
			} else if ok, why := c.mayReach(l.server(r), r.Start, r.Chosen); !ok {
				v.failures = append(v.failures, fmt.Sprintf("%s:\nwant no answer of %v: %s\nseen one after %v", l.question(r), l.server(r), why, time.Duration(r.Took)))
			}
		}
	}
	return v, ended
}
