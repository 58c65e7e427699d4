// SPDX-License-Identifier: Apache-2.0

package resilience

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

// alone is how long the kernel goes on without any agent.
const alone = 2 * time.Second

func TestAgentIsReplacedAndStoppedWithoutALossAndCleanedUpWhole(t *testing.T) {
	k := newKillTown(t, rand.New(rand.NewPCG(1, 1)))
	first := k.startAgent(0)
	if _, err := k.settle(k.world, first.within(30*time.Second)); err != nil {
		t.Fatalf("first agent: %v\n%s", err, first.log.String())
	}
	loads := k.everyPath(streamsFor, loadPlan{Patience: patience}, 1)
	await(loads)
	before := k.programs(1)

	k.refusesASecondAgent(first)
	second := k.startAgent(1) // waits for the first to end
	time.Sleep(500 * time.Millisecond)
	stopCleanly(t, "first", first)
	if err := k.change(); err != nil {
		t.Fatal(err)
	}
	took, err := k.settle(k.world, second.within(30*time.Second))
	if err != nil || !strings.Contains(second.log.String(), "version=resilience-b") {
		t.Fatalf("second agent: %v\n%s", err, second.log.String())
	}
	after := k.programs(1)
	if slices.ContainsFunc(after, func(id ebpf.ProgramID) bool { return slices.Contains(before, id) }) {
		t.Errorf("the second build left programs of the first attached: %v, then %v", before, after)
	}
	stopCleanly(t, "second", second)
	time.Sleep(alone)
	if _, err := k.settle(k.world, within(0)); err != nil {
		t.Errorf("with no agent: %v", err)
	}
	if there := k.programs(1); !slices.Equal(there, after) {
		t.Errorf("with no agent: want programs %v attached, seen %v", after, there)
	}

	v := judge(loads, k, &killHistory{})
	v.failures = append(v.failures, reconnected(loads)...)
	for _, f := range v.failures[:min(len(v.failures), 20)] {
		t.Error(f)
	}
	fmt.Printf("replace: build B took over %v after A was told to stop, then %v without an agent: %s; %d failed\n",
		time.Duration(took.equal-first.stopped).Round(time.Millisecond), alone, v, len(v.failures))
	k.cleansUp(after)
}

// programs are those attached to node1's hooks, which must be want each.
func (k *killTown) programs(want int) []ebpf.ProgramID {
	k.t.Helper()
	count, ids, err := k.attached()
	if err != nil {
		k.t.Fatal(err)
	}
	if wrong := onePerHook(count, want); len(wrong) > 0 {
		k.t.Errorf("%q", wrong)
	}
	return ids
}

// refusesASecondAgent: one on the same bpffs ends with a line that says why,
// and so does a cleanup.
func (k *killTown) refusesASecondAgent(running *agent) {
	k.t.Helper()
	other := k.startAgent(1, "--state-dir", filepath.Join(k.manifests, "..", "other-state"))
	want := fmt.Sprintf("fairlead: --bpffs %s: in use by another fairlead (pid %d): stop it, or give this one its own --bpffs\n", k.node.BPFFS, running.cmd.Process.Pid)
	code, err := other.exitCode(30 * time.Second)
	if err != nil || code != 1 || !strings.HasSuffix(other.log.String(), want) {
		k.t.Errorf("a second agent on the same bpffs: %v\nwant exit 1 and %q\nseen exit %d and %q", err, want, code, other.log.String())
	}
	if out, err := k.command("cleanup"); err == nil || out != "" || !strings.HasSuffix(err.Error(), want) {
		k.t.Errorf("cleanup beside an agent:\nwant %q\nseen %v, and on stdout %q", want, err, out)
	}
}

func stopCleanly(t *testing.T, which string, a *agent) {
	t.Helper()
	if code, err := a.terminate(20 * time.Second); err != nil || code != 0 {
		t.Errorf("%s agent after SIGTERM: want exit 0, seen %d, %v; it said:\n%s", which, code, err, a.log.String())
	}
}

// reconnected finds streams that had to connect again though they hold.
func reconnected(loads []*load) (failures []string) {
	for _, l := range loads {
		connects := map[uint16]int{}
		for _, r := range l.report.Records {
			if !r.Again {
				connects[r.Stream]++
			}
		}
		for i, s := range l.plan.Streams {
			if s.Mode.Holds() && connects[uint16(i)] != 1 {
				failures = append(failures, fmt.Sprintf("%s -> %v %s: want one connection, seen %d", l.name, s.To, s.Mode, connects[uint16(i)]))
			}
		}
	}
	return failures
}

// cleansUp: no pin, attachment or program of ours is left, and cleaning up
// again finds nothing.
func (k *killTown) cleansUp(programs []ebpf.ProgramID) {
	t := k.t
	t.Helper()
	if _, err := k.command("cleanup", "--cgroup-root", k.node.CgroupRoot); err != nil {
		t.Error(err)
	}
	var there []ebpf.ProgramID
	for range 1000 { // the kernel frees them a little later
		if there = loaded(programs); len(there) == 0 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if len(there) > 0 {
		t.Errorf("after cleanup: programs %v of %v are still loaded", there, programs)
	}
	k.programs(0)
	if pins, err := k.pins(); err != nil || len(pins) > 0 {
		t.Errorf("after cleanup: pins %q, %v", pins, err)
	}
	if out, err := k.command("cleanup", "--cgroup-root", k.node.CgroupRoot); err != nil || out != "nothing to remove\n" {
		t.Errorf("a second cleanup: want nothing to remove, seen %q, %v", out, err)
	}
	if entries, err := os.ReadDir(k.node.BPFFS); err != nil || slices.ContainsFunc(entries, func(e os.DirEntry) bool { return strings.HasPrefix(e.Name(), "fairlead") }) {
		t.Errorf("after cleanup: %v, %v", entries, err)
	}
}
