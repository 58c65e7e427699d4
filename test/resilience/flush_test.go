// SPDX-License-Identifier: Apache-2.0

package resilience

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"
	"time"
)

const (
	// repairedWithin is how soon a foreign flush must be repaired, net of the
	// time that the machine was short of CPU.
	repairedWithin = time.Second
	metricsAddress = "127.0.0.1:10249"
)

// flushes are what others do to our rules.
var flushes = []struct {
	dataplane string
	command   []string
}{
	{"nftables", []string{"nft", "flush", "ruleset"}},
	{"nftables", []string{"nft", "delete", "table", "ip", "fairlead"}},
	{"iptables", []string{"iptables-nft", "-t", "nat", "-F"}},
	{"iptables", []string{"iptables-nft", "-t", "nat", "-D", "PREROUTING", "1"}},
	{"iptables", []string{"nft", "flush", "ruleset"}},
}

func TestAForeignFlushIsRepairedWithinASecondAndCounted(t *testing.T) {
	for _, f := range flushes {
		t.Run(f.dataplane+" "+strings.Join(f.command, " "), func(t *testing.T) {
			k := newKillTown(t, rand.New(rand.NewPCG(1, 1)))
			k.withoutLoopback6()
			a := k.startAgent(0, append(k.flags(f.dataplane), "--metrics-bind-address", metricsAddress)...)
			k.holdsInKernel(f.dataplane, a)
			if n := k.drift(); n != 0 {
				t.Fatalf("%v drift before the flush", n)
			}
			begin, short := time.Now(), cpuShort()
			cmd := exec.Command(f.command[0], f.command[1:]...)
			if err := k.thread.Do(cmd.Run); err != nil {
				t.Fatalf("%v: %v", f.command, err)
			}
			patient := a.within(30 * time.Second)
			for k.drift() == 0 {
				if !patient() {
					t.Fatalf("no drift was counted; the agent said:\n%s", a.log.String())
				}
				time.Sleep(5 * time.Millisecond)
			}
			took := time.Since(begin)
			k.holdsInKernel(f.dataplane, a)
			fmt.Printf("flush: %s: repaired in %v\n", strings.Join(f.command, " "), took.Round(time.Millisecond))
			if took-(cpuShort()-short) > repairedWithin {
				t.Errorf("repaired after %v, want %v; the agent said:\n%s", took, repairedWithin, a.log.String())
			}
			stopCleanly(t, "flushed", a)
			if _, err := k.here("cleanup", "--cgroup-root", k.node.CgroupRoot); err != nil {
				t.Error(err)
			}
		})
	}
}

// drift is what the agent says it repaired.
func (k *killTown) drift() (n float64) {
	k.t.Helper()
	var body bytes.Buffer
	cmd := exec.Command("curl", "--silent", "--show-error", "--fail", "http://"+metricsAddress+"/metrics")
	cmd.Stdout = &body
	if err := k.thread.Do(cmd.Run); err != nil {
		k.t.Fatalf("read the agent's metrics: %v", err)
	}
	for line := range strings.Lines(body.String()) {
		if _, err := fmt.Sscanf(line, "fairlead_drift_repaired_total %g", &n); err == nil {
			return n
		}
	}
	k.t.Fatalf("no fairlead_drift_repaired_total in\n%s", body.String())
	return 0
}
