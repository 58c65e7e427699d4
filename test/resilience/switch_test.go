// SPDX-License-Identifier: Apache-2.0

package resilience

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fairlead.dev/dataplane"
)

// switchable are the dataplanes that this kernel can run. IPVS is not here: see
// test/vm.
var switchable = []string{"ebpf", "nftables", "iptables"}

// walk is a way through every ordered pair of n things, each once, that ends
// where it began.
func walk(n int) []int {
	left := map[[2]int]bool{}
	for i := range n {
		for j := range n {
			if i != j {
				left[[2]int{i, j}] = true
			}
		}
	}
	// Hierholzer: a complete digraph has an Eulerian circuit.
	var out, stack []int
	stack = append(stack, 0)
	for len(stack) > 0 {
		at, moved := stack[len(stack)-1], false
		for next := range n {
			if left[[2]int{at, next}] {
				delete(left, [2]int{at, next})
				stack, moved = append(stack, next), true
				break
			}
		}
		if !moved {
			out, stack = append(out, at), stack[:len(stack)-1]
		}
	}
	return out
}

func TestEveryDataplaneReplacesEveryOtherUnderLoadWithoutALoss(t *testing.T) {
	k := newKillTown(t, rand.New(rand.NewPCG(1, 1)))
	k.withoutLoopback6()
	way := walk(len(switchable))
	running := k.startAgent(0, k.flags(switchable[way[0]])...)
	k.holdsInKernel(switchable[way[0]], running)
	for i, to := range way[1:] {
		from, to := switchable[way[i]], switchable[to]
		ok := t.Run(from+" to "+to, func(t *testing.T) {
			running = k.replaces(t, running, from, to)
		})
		if !ok {
			t.Fatalf("what follows would begin from a state that is not as it should be; the agent said:\n%s", running.log.String())
		}
	}
	stopCleanly(t, "last", running)
	if _, err := k.here("cleanup", "--cgroup-root", k.node.CgroupRoot); err != nil {
		t.Error(err)
	}
	if out, err := k.here("cleanup", "--cgroup-root", k.node.CgroupRoot); err != nil || out != "nothing to remove\n" {
		t.Errorf("a second cleanup: want nothing to remove, seen %q, %v", out, err)
	}
}

// withoutLoopback6 takes NodePorts on ::1 out of the world: netfilter cannot
// have them.
func (k *killTown) withoutLoopback6() {
	f := facts(k.node)
	f.NodePortAddresses = slices.DeleteFunc(f.NodePortAddresses, func(a netip.Addr) bool { return a == netip.IPv6Loopback() })
	k.compiler.SetNode(f)
	k.compiler.Compile()
	k.versions[len(k.versions)-1].rows = k.compiler.Table().Rows()
}

func (k *killTown) flags(dataplane string) []string {
	cidrs := []string{"127.0.0.1/32"}
	for _, a := range k.node.Addresses {
		cidrs = append(cidrs, netip.PrefixFrom(a, a.BitLen()).String())
	}
	return []string{"--dataplane", dataplane, "--nodeport-addresses", strings.Join(cidrs, ",")}
}

// replaces stops an agent, starts one with another dataplane, and judges a load
// that went on meanwhile.
func (k *killTown) replaces(t *testing.T, running *agent, from, to string) *agent {
	k.udpMayEnd = from == "ebpf" || to == "ebpf"
	loads := k.everyPath(streamsFor, loadPlan{Patience: patience}, 1)
	await(loads)
	stopCleanly(t, from, running)
	begin := time.Now()
	next := k.startAgent(1, k.flags(to)...)
	k.holdsInKernel(to, next)
	took := time.Since(begin)
	if err := k.change(); err != nil {
		t.Fatal(err)
	}
	k.holdsInKernel(to, next)
	time.Sleep(time.Second)
	v := judge(loads, k, &killHistory{})
	for _, f := range reconnected(loads) {
		if !k.udpMayEnd || strings.Contains(f, string(tcpHeld)) {
			v.failures = append(v.failures, f)
		}
	}
	for _, f := range v.failures[:min(len(v.failures), 20)] {
		t.Error(f)
	}
	fmt.Printf("switch: %s to %s in %v: %s; %d failed\n", from, to, took.Round(time.Millisecond), v, len(v.failures))
	k.isGone(t, from, next)
	return next
}

// holdsInKernel waits until `fairlead dump` prints the manifests' table from
// the dataplane that was asked for.
func (k *killTown) holdsInKernel(name string, a *agent) {
	k.t.Helper()
	patient := a.within(time.Minute)
	for {
		begin := monotonic()
		var d dataplane.Dump
		out, err := k.here("dump", "services", "-o", "json", "--dataplane", name)
		if err == nil {
			err = json.Unmarshal([]byte(out), &d)
		}
		if err == nil {
			if _, ok := k.inForce(d.Frontends, begin, monotonic()); ok && d.Dataplane == name {
				return
			}
		}
		if !patient() {
			k.t.Fatalf("%s does not hold what the manifests say: %v (-want +got):\n%.3000s\nthe agent said:\n%s", name, err, cmp.Diff(k.wanted(), d.Frontends, sameAddr), a.log.String())
		}
		time.Sleep(15 * time.Millisecond)
	}
}

// isGone waits until nothing of a dataplane that was replaced is left. One that
// carries flows itself waits half a minute for silent UDP.
func (k *killTown) isGone(t *testing.T, name string, a *agent) {
	t.Helper()
	patient := within(2 * time.Minute)
	for {
		_, err := k.here("dump", "services", "--dataplane", name)
		if err != nil {
			return
		}
		if !patient() {
			t.Fatalf("%s is still in the kernel two minutes after its last flow; the agent said:\n%s", name, a.log.String())
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// here is command in the node's network namespace.
func (k *killTown) here(args ...string) (string, error) {
	cmd := exec.Command(binaries[0], append(args, "--bpffs", k.node.BPFFS)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := k.thread.Do(cmd.Run); err != nil {
		return stdout.String(), fmt.Errorf("fairlead %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return stdout.String(), nil
}

func TestWalkUsesEveryOrderedPairOnce(t *testing.T) {
	for n := 2; n < 6; n++ {
		seen := map[[2]int]int{}
		w := walk(n)
		for i := range w[1:] {
			seen[[2]int{w[i], w[i+1]}]++
		}
		if len(seen) != n*(n-1) || len(w) != n*(n-1)+1 {
			t.Errorf("walk(%d) = %v: %d pairs, want each of %d once", n, w, len(seen), n*(n-1))
		}
	}
}
