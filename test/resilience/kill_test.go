// SPDX-License-Identifier: Apache-2.0

package resilience

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"fairlead.dev/dataplane/ebpf"
)

const (
	// killsDefault is how often the agent is killed.
	killsDefault = 200
	// equalWithin is how soon after its start the agent must have made the
	// kernel equal the manifests (DESIGN.md, promise 1).
	equalWithin = time.Second
	// equalAtMost bounds it on a machine without a CPU to spare: at a load of 60
	// on 2 CPUs it took 9.7 s.
	equalAtMost = 30 * time.Second
	// endedWithin is how soon sockets to a removed Backend are ended there.
	endedWithin = 10 * time.Second
	// killsBudget is what all the kills may take. On a machine that is too busy
	// for it, fewer agents live until the kernel equals the manifests.
	killsBudget = 100 * time.Second
	// equalMin is the part of the starts, one in so many, that is waited for in
	// any case.
	equalMin = 5
	// changeEvery is the mean time between two changes of the manifests.
	changeEvery = 100 * time.Millisecond
	// patience of the load: what takes longer is a failed connection.
	patience = 3 * time.Second
)

// killTown is the cast of the kill test: a Service whose Backends never change,
// and one with Backends that stay and Backends that come and go.
type killTown struct {
	*bed
	*world
	always, visitors []endpoint
	steadyBackends   []netip.AddrPort
	healthy          []netip.AddrPort // of both Services, at all times
	random           *rand.Rand       // of the changes only
	fickle           bool             // the Service that comes and goes is there
	udpMayEnd        bool             // a dataplane that ends its UDP sockets is being replaced
}

func newKillTown(t *testing.T, random *rand.Rand) *killTown {
	t.Helper()
	b := newBed(t)
	k := &killTown{bed: b, world: newWorld(b.manifests, b.node), random: random}
	k.always = []endpoint{{"node1", b.member("b")}, {"node2", b.member("e")}}
	k.visitors = []endpoint{{"node1", b.member("c")}, {"node2", b.member("narrow")}, {"node1", b.member("a")}, {"node2", b.member("d")}}
	steady := []endpoint{{"node1", b.member("a")}, {"node2", b.member("d")}}
	s, c := steadyService(), churnedService()
	objects := []struct {
		name   string
		object any
	}{
		{"steady", s}, {"steady-4", newSlice("steady-4", s, false, 8080, steady)}, {"steady-6", newSlice("steady-6", s, true, 8080, steady)},
		{"churned", c}, {"always-4", newSlice("always-4", c, false, 8081, k.always)}, {"always-6", newSlice("always-6", c, true, 8081, k.always)},
	}
	for _, o := range objects {
		if err := k.put(o.name, o.object); err != nil {
			t.Fatal(err)
		}
	}
	for _, e := range steady {
		k.steadyBackends = append(k.steadyBackends, netip.AddrPortFrom(e.IPv4, 8080), netip.AddrPortFrom(e.IPv6, 8080))
	}
	k.healthy = slices.Clone(k.steadyBackends)
	for _, e := range k.always {
		k.healthy = append(k.healthy, netip.AddrPortFrom(e.IPv4, 8081), netip.AddrPortFrom(e.IPv6, 8081))
	}
	return k
}

// change changes one file: the visitors of one family, or whether the fickle
// Service is there.
func (k *killTown) change() error {
	if k.random.IntN(8) == 0 {
		k.fickle = !k.fickle
		if !k.fickle {
			return k.put("fickle", nil)
		}
		return k.put("fickle", newService("fickle", 3, port{"main", 80, 30082}))
	}
	var here []endpoint
	for _, v := range k.visitors {
		if k.random.IntN(2) == 0 {
			here = append(here, v)
		}
	}
	ipv6 := k.random.IntN(2) == 0
	name := map[bool]string{false: "visitors-4", true: "visitors-6"}[ipv6]
	return k.put(name, newSlice(name, churnedService(), ipv6, 9090, here))
}

// churn changes the manifests until stop is closed.
func (k *killTown) churn(changing *sync.Mutex, stop chan struct{}) error {
	for {
		select {
		case <-stop:
			return nil
		case <-time.After(changeEvery/2 + rand.N(changeEvery)):
		}
		changing.Lock()
		err := k.change()
		changing.Unlock()
		if err != nil {
			return err
		}
	}
}

func TestAgentKilled200TimesUnderLoadLosesNoConnection(t *testing.T) {
	random, seed := seed(t)
	kills := killsDefault
	if text := os.Getenv("FAIRLEAD_KILLS"); text != "" {
		var err error
		if kills, err = strconv.Atoi(text); err != nil {
			t.Fatalf("FAIRLEAD_KILLS=%q: want a number", text)
		}
	}
	k := newKillTown(t, rand.New(rand.NewPCG(seed, 1)))
	a := k.startAgent(0)
	if _, err := k.settle(k.world, a.within(30*time.Second)); err != nil {
		t.Fatalf("before the first kill: %v; the agent said:\n%s", err, a.log.String())
	}
	h := &killHistory{}
	loads := k.everyPath(streamsFor, loadPlan{Patience: patience}, 1, 2)
	await(loads)

	var changing sync.Mutex // the world changes either in churn or after a kill
	stop, churned := make(chan struct{}), make(chan error, 1)
	go func() { churned <- k.churn(&changing, stop) }()
	begin := time.Now()
	err := k.killAgain(&a, random, &changing, kills, h)
	took := time.Since(begin)
	close(stop)
	if err := errors.Join(err, <-churned, a.alive()); err != nil {
		t.Errorf("FAIRLEAD_SEED=%d: %v", seed, err)
	}
	v := judge(loads, k, h)
	for _, f := range v.failures[:min(len(v.failures), 20)] {
		t.Errorf("FAIRLEAD_SEED=%d: %s", seed, f)
	}
	checkAfterKills(t, k)
	fmt.Printf("kill: %d kills in %.0f s (%d of them while starting), %d builds by turns, %d changes of the manifests\n",
		len(h.kills), took.Seconds(), h.early, len(binaries), len(k.versions))
	fmt.Printf("kill: start to kernel equal to the manifests: p50 %s p99 %s max %s of %d starts (%d later than %v, while the machine was short of CPU); to the end of a dump process that agrees: p50 %s p99 %s max %s\n",
		quantile(h.equal, 0.5), quantile(h.equal, 0.99), quantile(h.equal, 1), len(h.equal), h.late, equalWithin,
		quantile(h.known, 0.5), quantile(h.known, 0.99), quantile(h.known, 1))
	fmt.Printf("kill: %s; %d failed (seed %d)\n", v, len(v.failures), seed)
	if len(h.kills) < kills {
		t.Errorf("only %d of %d kills", len(h.kills), kills)
	}
}

// killHistory is what happened when. Times are CLOCK_MONOTONIC in nanoseconds.
type killHistory struct {
	kills []int64
	early int
	// equal are the times from a start until the kernel equalled the manifests,
	// known until a dump process had said so. late counts those that took longer
	// than they may, because the machine was short of CPU.
	equal, known []time.Duration
	late         int
	settled      []settled
}

// killAgain kills and starts the agent, each time another build. The manifests
// change while it is dead, so that the next one always has something to do.
func (k *killTown) killAgain(a **agent, random *rand.Rand, changing *sync.Mutex, kills int, h *killHistory) error {
	begin := time.Now()
	for i := range kills {
		late := time.Since(begin) > killsBudget*time.Duration(i)/time.Duration(kills)
		if i > 0 && i%equalMin != 0 && (late || random.IntN(3) == 0) {
			h.early++
			time.Sleep(time.Duration(random.Int64N(int64(400 * time.Millisecond))))
		} else {
			if i > 0 {
				if err := k.equalInTime(*a, h); err != nil {
					return fmt.Errorf("after kill %d of %d: %w", i, kills, err)
				}
			}
			time.Sleep(time.Duration(random.Int64N(int64(50 * time.Millisecond))))
		}
		if err := (*a).alive(); err != nil {
			return fmt.Errorf("before kill %d of %d: %w", i+1, kills, err)
		}
		h.kills = append(h.kills, monotonic())
		(*a).kill()
		changing.Lock()
		err := k.change()
		changing.Unlock()
		if err != nil {
			return err
		}
		*a = k.startAgent((i + 1) % len(binaries))
	}
	return k.equalInTime(*a, h)
}

// equalInTime waits for the kernel to equal the manifests, in time.
func (k *killTown) equalInTime(a *agent, h *killHistory) error {
	var took, short time.Duration
	late := func() bool {
		took, short = time.Duration(monotonic()-a.started), cpuShort()-a.short
		return took-short > equalWithin || took > equalAtMost
	}
	got, err := k.settle(k.world, func() bool { return !late() })
	if err != nil {
		return fmt.Errorf("%v after its start, want %v (in %v of that time the machine was short of CPU): %w\nthe agent said:\n%s",
			took, equalWithin, short, errors.Join(err, a.alive()), a.log.String())
	}
	took = time.Duration(got.equal - a.started)
	h.equal, h.known = append(h.equal, took), append(h.known, time.Duration(got.known-a.started))
	h.settled = append(h.settled, got)
	if took > equalWithin {
		h.late++
	}
	return nil
}

// checkAfterKills looks at what many agents may have left in the kernel.
func checkAfterKills(t *testing.T, k *killTown) {
	t.Helper()
	count, _, err := k.attached()
	if err != nil {
		t.Error(err)
	}
	if wrong := onePerHook(count, 1); len(wrong) > 0 || len(count) < 20 {
		t.Errorf("after all kills: %d hooks, %q", len(count), wrong)
	}
	pins, err := k.pins()
	if want := k.wantedPins(count); err != nil || !slices.Equal(pins, want) {
		t.Errorf("after all kills, pins:\nwant %q\nseen %q, %v", want, pins, err)
	}
	drops, err := k.drops()
	if err != nil {
		t.Error(err)
	}
	for _, reason := range []string{"no_backends", "no_conntrack", "conntrack_full", "masquerade_ports_exhausted", "no_masquerade_address", "no_route", "malformed"} {
		if drops[reason] != 0 {
			t.Errorf("fairlead_drops_total{reason=%q} is %d, want 0: a lookup missed", reason, drops[reason])
		}
	}
}

// drops reads the kernel's drop counters.
func (b *bed) drops() (map[string]uint64, error) {
	r, err := ebpf.Read(b.node.BPFFS)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	_, rows, err := r.Counters()
	out := map[string]uint64{}
	for _, row := range rows {
		out[row.Reason] = row.Count
	}
	return out, err
}

// quantile of q between 0 and 1.
func quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(d))
	return s[min(int(q*float64(len(s))), len(s)-1)].Round(time.Millisecond / 10)
}
