// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// parts are what can be measured, in the order of a run.
var parts = []string{"connect", "flip", "load", "dump", "packet", "dataplanes"}

// settings are the command line's.
type settings struct {
	output     string
	parts      []string
	fairlead   string
	profile    string
	limit      time.Duration
	flips      int
	blocks     int
	dataplanes []string
	services   []int // of the part dataplanes
	kubeProxy  string
}

func main() {
	if role := os.Getenv(roleVariable); role != "" {
		play(role)
		return
	}
	s, err := parseFlags(os.Args[1:])
	if err == nil {
		err = run(s)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "fairlead bench: %v\n", err)
		os.Exit(1)
	}
}

func parseFlags(args []string) (settings, error) {
	var s settings
	f := flag.NewFlagSet("bench", flag.ExitOnError)
	only := f.String("only", strings.Join(parts, ","), "what to measure, with commas")
	f.StringVar(&s.output, "o", "table", "table or json")
	f.StringVar(&s.fairlead, "fairlead", "", "`FILE` of the fairlead binary (default: it is built)")
	f.StringVar(&s.profile, "profile", "", "existing `DIR` for CPU and heap profiles of the agents in this program")
	f.DurationVar(&s.limit, "limit", 10*time.Minute, "give up after so long")
	f.IntVar(&s.flips, "flips", 200, "changes of endpoints in each setting")
	f.IntVar(&s.blocks, "blocks", 100, "blocks of connects in each setting")
	which := f.String("dataplanes", "ebpf,nftables,iptables", "those that the part dataplanes compares, with commas")
	counts := f.String("services", "1000,10000", "numbers of Services that it compares them with, with commas")
	f.StringVar(&s.kubeProxy, "kube-proxy", "", "`FILE` of a kube-proxy that it compares them with, in nftables mode (test/e2e: go run ./cmd/build-controlplane kube-proxy)")
	_ = f.Parse(args)
	s.dataplanes = strings.Split(*which, ",")
	for _, n := range strings.Split(*counts, ",") {
		count, err := strconv.Atoi(n)
		if err != nil || count < 1 || count > 65536 {
			return s, fmt.Errorf("-services %s: want numbers from 1 to 65536", *counts)
		}
		s.services = append(s.services, count)
	}
	s.parts = strings.Split(*only, ",")
	for _, p := range s.parts {
		if !slices.Contains(parts, p) {
			return s, fmt.Errorf("-only %s: want some of %s", p, strings.Join(parts, ","))
		}
	}
	switch {
	case s.output != "table" && s.output != "json":
		return s, fmt.Errorf("-o %s: want table or json", s.output)
	case s.flips < 1 || s.blocks < 1:
		return s, fmt.Errorf("-flips %d, -blocks %d: want at least 1", s.flips, s.blocks)
	case os.Getuid() != 0:
		return s, fmt.Errorf("needs root: it makes network namespaces, a cgroup and loads eBPF programs")
	}
	return s, nil
}

// bench is one run.
type bench struct {
	settings
	lab    *lab
	report *report
}

func run(s settings) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), s.limit)
	defer cancel()
	ctx, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM)
	defer stop()

	l, err := newLab()
	if err != nil {
		return err
	}
	defer func() {
		if e := l.close(); e != nil && err == nil {
			err = e
		}
	}()
	// Whatever waits for a process of the lab learns that time is up from its end.
	defer context.AfterFunc(ctx, l.kill)()

	b := &bench{settings: s, lab: l, report: newReport()}
	for _, step := range []struct {
		part string
		do   func(context.Context) error
	}{
		{"", b.build}, {"connect", b.connect}, {"flip", b.flip}, {"load", b.load}, {"dump", b.dump}, {"packet", b.packet},
		{"dataplanes", b.dataplanes},
	} {
		if step.part != "" && !slices.Contains(s.parts, step.part) {
			continue
		}
		if err := step.do(ctx); err != nil {
			b.report.finish()
			_ = b.report.print(os.Stderr) // what there is
			if ctx.Err() != nil {
				err = fmt.Errorf("interrupted, or longer than -limit %v: %w", s.limit, err)
			}
			return err
		}
	}
	b.report.finish()
	if s.output == "json" {
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		return e.Encode(b.report)
	}
	return b.report.print(os.Stdout)
}

// build makes the binary that the directory's figures are of, as `make build`.
func (b *bench) build(ctx context.Context) error {
	if b.fairlead != "" {
		path, err := filepath.Abs(b.fairlead)
		b.fairlead = path
		return err
	}
	b.fairlead = filepath.Join(b.lab.root, "fairlead")
	cmd := exec.CommandContext(ctx, "go", "build", "-tags", "grpcnotrace", "-trimpath", "-ldflags", "-s -w", "-o", b.fairlead, "fairlead.dev/cmd/fairlead")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build fairlead (or give -fairlead FILE): %w\n%s", err, out)
	}
	return nil
}

// say tells on stderr what goes on.
func say(format string, args ...any) { fmt.Fprintf(os.Stderr, "# "+format+"\n", args...) }
