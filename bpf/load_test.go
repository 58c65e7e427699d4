// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"fairlead.dev/bpf"
)

// processed is what a verifier says last.
var processed = regexp.MustCompile(`processed (\d+) insns \(limit \d+\)`)

func TestTheVerifierTakesEveryProgram(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: eBPF programs are loaded")
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	spec, err := bpf.LoadFairlead()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Sorted(maps.Keys(spec.Programs)) {
		t.Run(strings.TrimPrefix(name, "fairlead_"), func(t *testing.T) {
			if strings.HasPrefix(name, "fairlead_sweep_") && !kernelHasFunction(t, "bpf_sock_destroy") {
				t.Skip("this kernel has no bpf_sock_destroy (6.5)")
			}
			if name == "fairlead_sweep_find" && !kernelWalksSocketStorage(t) {
				t.Skip("this kernel does not let socket storage be walked: sweeps visit every network namespace")
			}
			log, err := verify(spec, name, ebpf.LogLevelStats)
			if err != nil {
				_, err = verify(spec, name, ebpf.LogLevelBranch|ebpf.LogLevelStats)
				t.Fatalf("refused: %v", err)
			}
			count := processed.FindStringSubmatch(log)
			if count == nil {
				t.Fatalf("the verifier counted nothing:\n%s", log)
			}
			t.Logf("%s instructions verified", count[1])
		})
	}
}

// verify loads one program. An error has the end of what the verifier says.
func verify(spec *ebpf.CollectionSpec, name string, level ebpf.LogLevel) (log string, err error) {
	one := spec.Copy()
	maps.DeleteFunc(one.Programs, func(other string, _ *ebpf.ProgramSpec) bool { return other != name })
	coll, err := ebpf.NewCollectionWithOptions(one, ebpf.CollectionOptions{Programs: ebpf.ProgramOptions{LogLevel: level}})
	var refused *ebpf.VerifierError
	if errors.As(err, &refused) {
		return "", fmt.Errorf("%w:\n%s", err, strings.Join(refused.Log[max(0, len(refused.Log)-60):], "\n"))
	}
	if err != nil {
		return "", err
	}
	defer coll.Close()
	return coll.Programs[name].VerifierLog, nil
}

// kernelWalksSocketStorage loads a program that does nothing there: some kernels
// refuse any, with EPERM.
func kernelWalksSocketStorage(t *testing.T) bool {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.Tracing, AttachType: ebpf.AttachTraceIter, AttachTo: "bpf_sk_storage_map", License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err == nil {
		p.Close()
	}
	return !errors.Is(err, unix.EPERM)
}

func kernelHasFunction(t *testing.T, name string) bool {
	t.Helper()
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		t.Fatal(err)
	}
	var f *btf.Func
	return kernel.TypeByName(name, &f) == nil
}
