// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"fairlead.dev/bpf"
	"fairlead.dev/bpf/bounce"
)

// BenchmarkTrace compares programs without any tracing in them with those that
// nobody listens to, and those that somebody does, who hears 1,000 decisions a
// second. All take turns; x is the ratio of medians to the first.
func BenchmarkTrace(b *testing.B) {
	newRig(b) // for its conditions
	object := filepath.Join(b.TempDir(), "untraced.o")
	include := "-I/usr/include/" + map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH] + "-linux-gnu"
	if out, err := exec.Command("clang-19", "-target", "bpfel", "-O2", "-g", "-DFAIRLEAD_UNTRACED", include, "-c", "fairlead.c", "-o", object).CombinedOutput(); err != nil {
		b.Fatalf("build the programs without tracing: %v\n%s", err, out)
	}
	var o bounce.BounceObjects
	if err := bounce.LoadBounceObjects(&o, nil); err != nil {
		b.Fatal(err)
	}
	defer o.Close()
	kinds := []string{"untraced", "nobody listens", "listener"}
	w := worldOf("IPv4", tcp)
	first := w.first(w.vip, servicePort)
	var states []*state
	cases := map[string][]*measurement{}
	names := []string{"not-ours", "forward", "new"}
	for i := range kinds {
		s := traceState(b, i == 0, object)
		states = append(states, s)
		s.enter(first, w.first(w.vip, 81))
		up := s.program(fromUplink)
		cases["not-ours"] = append(cases["not-ours"], &measurement{name: "not-ours", program: up, at: arriving, in: w.first(w.node, 22).data("")})
		cases["forward"] = append(cases["forward"], &measurement{name: "forward", program: up, at: arriving, in: first.data("")})
		cases["new"] = append(cases["new"], &measurement{name: "new", program: up, at: arriving, in: first, fresh: true})
	}
	listen := bpf.FairleadTraceSettings{UntilSeconds: 1<<32 - 1, PerSecond: 1000}
	states[2].must(states[2].objects.TraceListener.Put(uint32(0), &listen))
	for b.Loop() {
		for _, name := range names {
			for i, m := range cases[name] {
				m.round(states[i], &o)
			}
		}
	}
	b.ReportMetric(0, "ns/op")
	for _, name := range names {
		base := cases[name][0].median()
		for i, m := range cases[name] {
			b.Logf("%-9s %-15s %8.1f ns/packet  x %.3f", name, kinds[i], m.median(), m.median()/base)
		}
	}
}

// traceState is a rig of its own.
func traceState(b *testing.B, untraced bool, object string) *state {
	b.Helper()
	if untraced {
		b.Setenv("FAIRLEAD_TEST_OBJECT", object)
		defer b.Setenv("FAIRLEAD_TEST_OBJECT", "")
	}
	r, err := openRig(1 << 16)
	if err != nil {
		b.Fatal(err)
	}
	r.clear(b)
	s := &state{rig: r, t: b, backends: map[string]uint32{}}
	s.masqueradePorts(1024, 65535)
	w := worldOf("IPv4", tcp)
	plain, remote := w.both(w.pod, slotLocal, 0), w.both(w.remote, 0, frontendMasqueradeExternal)
	remote.id, remote.port = 2, 81
	s.add(plain, remote)
	return s
}
