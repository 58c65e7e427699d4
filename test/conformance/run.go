// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Run puts a Dataplane through the table, one subtest ID/variant each, and
// prints a line of how many passed, failed and did not apply.
func Run(t *testing.T, target Target) {
	RunCases(t, target, Cases())
}

// RunCases is Run with a table of the caller's.
func RunCases(t *testing.T, target Target, cases []Case) {
	checkTable(t, target, cases)
	mine, err := shareOfThisProcess()
	if err != nil {
		t.Fatal(err)
	}
	variants := make([][]variant, len(cases))
	for i, c := range cases {
		variants[i] = mine.variants(i, c.variants())
	}
	var sum summary
	amongBenches(t, target, len(cases), func(b *bench, i int) {
		b.run(t, cases[i], variants[i], &sum)
	})
	sum.print(target.Name)
}

// benchesMost: a case mostly waits, for the kernel to forget what was replaced
// and for answers that must not come. So each processor has a bench, up to here.
const benchesMost = 4

// amongBenches plays so many cases, each on the bench that is free next.
func amongBenches(t *testing.T, target Target, cases int, play func(b *bench, i int)) {
	benches := make([]*bench, min(runtime.GOMAXPROCS(0), benchesMost, cases))
	for i := range benches {
		b := &bench{lab: newLab(t), target: target}
		benches[i] = b
		t.Cleanup(func() { b.close(t) })
		if err := b.start(0); err != nil {
			t.Fatal(err)
		}
	}
	next := make(chan int)
	var players sync.WaitGroup
	for _, b := range benches {
		players.Go(func() {
			for i := range next {
				play(b, i)
			}
		})
	}
	for i := range cases {
		next <- i
	}
	close(next)
	players.Wait()
}

// run plays variants of a case as a subtest.
func (b *bench) run(t *testing.T, c Case, variants []variant, sum *summary) {
	if reason, ok := b.target.Unsupported[c.ID]; ok {
		sum.skip(c, reason)
		t.Run(c.ID, func(t *testing.T) { t.Skip(reason) })
		return
	}
	t.Run(c.ID, func(t *testing.T) {
		for _, v := range variants {
			if reason, ok := b.target.unsupported(c, v); ok {
				sum.skipVariant(c, v, reason)
				t.Run(v.String(), func(t *testing.T) { t.Skip(reason) })
				continue
			}
			ran := false
			ok := t.Run(v.String(), func(t *testing.T) {
				ran = true
				b.play(t, c, v)
			})
			sum.count(c, v, ran, ok)
		}
	})
}

// checkTable refuses a table or a Target that names cases wrongly.
func checkTable(t *testing.T, target Target, cases []Case) {
	t.Helper()
	seen := map[string]bool{}
	for _, c := range cases {
		if c.ID == "" || c.Clause == "" || c.Steps == nil || seen[c.ID] {
			t.Fatalf("case %q: an ID, used once, a Clause and Steps are needed", c.ID)
		}
		seen[c.ID] = true
	}
	for key, reason := range target.Unsupported {
		id, part, _ := strings.Cut(key, "/")
		applies := slices.ContainsFunc(cases, func(c Case) bool {
			return c.ID == id && (part == "" || slices.ContainsFunc(c.variants(), func(v variant) bool { return v.has(part) }))
		})
		if !applies || reason == "" {
			t.Fatalf("%s: Unsupported names %q: want a case of the table or CASE/PART of its variants, with a reason", target.Name, key)
		}
	}
}

// bench is one lab with one Dataplane on it.
type bench struct {
	lab    *lab
	target Target
	agents [2]*agent
	// numbers gives every Service its own addresses and ports.
	numbers int
	// ports counts the source ports that were chosen.
	ports int
	// patience is how long an answer may take, 0: answerWithin.
	patience time.Duration
}

// start puts the Dataplane on a node, once.
func (b *bench) start(node int) error {
	if b.agents[node] != nil {
		return nil
	}
	a, err := newAgent(b.target, b.lab.nodes[node])
	b.agents[node] = a
	return err
}

func (b *bench) close(t *testing.T) {
	for _, a := range b.agents {
		if a == nil {
			continue
		}
		if err := a.close(); err != nil {
			t.Errorf("close %s on %s: %v", b.target.Name, a.node.Name, err)
		}
	}
}

// play runs one variant of a case, and leaves no Service behind.
func (b *bench) play(t reporter, c Case, v variant) {
	s := &Story{t: t, bench: b, kase: c, variant: v, given: newObjects(), agents: b.agents[:1]}
	if c.BothNodes {
		if err := b.start(1); err != nil {
			t.Fatal(err)
		}
		s.agents = b.agents[:]
	}
	start := time.Now()
	defer func() {
		s.checkDrift()
		s.cleanUp()
		if took := time.Since(start); took > time.Second {
			t.Logf("took %v", took.Round(10*time.Millisecond))
		}
	}()
	c.Steps(s)
}

// checkDrift lets the full check find what Apply should have done.
func (s *Story) checkDrift() {
	for _, a := range s.agents {
		changed, err := a.sync()
		if err != nil {
			s.t.Errorf("%s: %v", s.kase.ID, err)
		} else if changed != 0 {
			s.t.Errorf("%s: after every Change was applied, a full Sync on %s still changed %d Frontends", s.kase.ID, a.node.Name, changed)
		}
	}
}

func (s *Story) cleanUp() {
	for handle, m := range s.held {
		_, _ = m.do(call{Op: opClose, Handle: handle})
	}
	for _, a := range s.agents {
		if err := a.forget(s.given); err != nil {
			s.t.Errorf("%s: remove all: %v", s.kase.ID, err)
		}
		if left := a.compiler.Table().Services; len(left) != 0 {
			s.t.Errorf("%s: Services left in the Table of %s: %v", s.kase.ID, a.node.Name, slices.Collect(maps.Keys(left)))
		}
	}
}

// summary counts variants, of several cases at once.
type summary struct {
	mu                      sync.Mutex
	passed, failed, skipped int
	failures                []string
	reasons                 []string
}

func (s *summary) skip(c Case, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.skipped += len(c.variants())
	s.reasons = append(s.reasons, fmt.Sprintf("  not applicable: %s: %s", c.ID, reason))
}

func (s *summary) skipVariant(c Case, v variant, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.skipped++
	if line := fmt.Sprintf("  not applicable: %s: %s", c.ID, reason); !slices.Contains(s.reasons, line) {
		s.reasons = append(s.reasons, line)
	}
}

func (s *summary) count(c Case, v variant, ran, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !ran: // -run left it out
	case ok:
		s.passed++
	default:
		s.failed++
		s.failures = append(s.failures, fmt.Sprintf("  failed: %s/%s: %s", c.ID, v, c.Clause))
	}
}

func (s *summary) print(name string) {
	fmt.Fprintf(os.Stdout, "%s: %d passed, %d failed, %d not applicable\n", name, s.passed, s.failed, s.skipped)
	slices.Sort(s.failures)
	slices.Sort(s.reasons)
	for _, line := range slices.Concat(s.failures, s.reasons) {
		fmt.Fprintln(os.Stdout, line)
	}
}
