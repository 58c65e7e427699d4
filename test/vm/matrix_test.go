// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// run is what one machine is for.
type run struct {
	name    string
	kernel  Kernel
	pkg     string // whose tests are the payload
	tests   string // -test.run
	share   string // FAIRLEAD_CONFORMANCE_SHARE
	modules []string
	expect  *regexp.Regexp // in the output, beside success
}

var (
	packetModules = []string{"veth", "sctp"}
	labModules    = []string{"veth", "sctp", "bridge", "sch_ingress", "cls_bpf"}
	somePassed    = regexp.MustCompile(`(?m)^ebpf: [1-9]\d* passed, 0 failed, `)
	verified      = regexp.MustCompile(`\d+ instructions verified`)
	swept         = regexp.MustCompile(`--- PASS: TestASweep\w+/found`)
)

// matrix is the packet programs with their model on each kernel; real packets:
// one variant of each case; and sweeps, of which not every kernel lets all run.
var matrix = []run{
	{"bpf on 5.10", Debian11, "fairlead.dev/bpf", ".", "", packetModules, verified},
	{"bpf on 6.1", Debian12, "fairlead.dev/bpf", ".", "", packetModules, verified},
	{"bpf on 6.12", Debian13, "fairlead.dev/bpf", ".", "", packetModules, verified},
	{"sweeps on 6.12", Debian13, "fairlead.dev/dataplane/ebpf", "Sweep|WasChoosing|Namespaces", "", labModules, swept},
	{"conformance on 6.1", Debian12, "fairlead.dev/test/conformance", "TestEBPFTreats", "one", labModules, somePassed},
	{"conformance on 5.10", Debian11, "fairlead.dev/test/conformance", "TestEBPFTreats", "one", labModules, somePassed},
	{"conformance on 6.12", Debian13, "fairlead.dev/test/conformance", "TestEBPFTreats", "one", labModules, somePassed},
}

// whole are the runs that play every variant on 6.1, in ten minutes.
var whole = []run{
	{"conformance on 6.1, first half", Debian12, "fairlead.dev/test/conformance", "TestEBPFTreats", "1/2", labModules, somePassed},
	{"conformance on 6.1, second half", Debian12, "fairlead.dev/test/conformance", "TestEBPFTreats", "2/2", labModules, somePassed},
}

// TestEBPFOnDebiansKernels takes several minutes; FAIRLEAD_KERNEL_MATRIX=1 asks
// for it, and FAIRLEAD_KERNEL_MATRIX=whole for every variant too. Two machines
// run side by side with -test.parallel 2.
func TestEBPFOnDebiansKernels(t *testing.T) { playMatrix(t, matrix, slices.Concat(matrix, whole)) }

// playMatrix plays those that FAIRLEAD_KERNEL_MATRIX asks for, all being what it
// calls whole.
func playMatrix(t *testing.T, usual, all []run) {
	switch os.Getenv("FAIRLEAD_KERNEL_MATRIX") {
	case "", "kube-proxy":
		t.Skip("FAIRLEAD_KERNEL_MATRIX does not ask for it")
	case "whole":
		usual = all
	}
	t.Parallel()
	playAll(t, usual)
}

// playAll boots a machine for each run, as many at once as -test.parallel says.
func playAll(t *testing.T, runs []run) {
	dir := t.TempDir()
	payloads := map[string]string{}
	for _, r := range runs {
		if payloads[r.pkg] == "" {
			payloads[r.pkg] = filepath.Join(dir, filepath.Base(r.pkg)+".test")
			if err := BuildTest(t.Context(), ".", r.pkg, payloads[r.pkg]); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := r.kernel.Install(t.Context(), false); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range runs {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			r.play(t, r.machine(payloads[r.pkg]))
		})
	}
}

func (r run) machine(payload string) Machine {
	return Machine{
		Kernel: r.kernel, Modules: r.modules, Memory: 1536, Payload: payload, Timeout: time.Hour,
		Args: []string{fmt.Sprintf("-test.v=%v", r.share == ""), "-test.timeout=1h", "-test.run=" + r.tests},
		Env:  []string{"FAIRLEAD_CONFORMANCE_SHARE=" + r.share, "GOGC=400"},
	}
}

func (r run) play(t *testing.T, m Machine) {
	var out bytes.Buffer
	begin := time.Now()
	exit, err := Boot(t.Context(), m, &out)
	if err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	if exit != 0 || !r.expect.MatchString(out.String()) {
		t.Fatalf("exit %d, and want %q in:\n%s", exit, r.expect, out.String())
	}
	for line := range strings.Lines(out.String()) {
		if verified.MatchString(line) || strings.Contains(line, " passed, ") || strings.Contains(line, "not applicable: ") || strings.HasPrefix(line, "migrate: ") {
			t.Log(strings.TrimSpace(line))
		}
	}
	t.Logf("took %v", time.Since(begin).Round(time.Second))
}
