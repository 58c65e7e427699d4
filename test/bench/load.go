// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"time"
)

const (
	loadServices = 10_000
	// settleFor is how long an agent is left alone before its memory is read.
	settleFor = 10 * time.Second
	dumps     = 5
)

// load measures the first complete programming, and what memory it takes.
func (b *bench) load(ctx context.Context) error {
	say("load: %d Services", loadServices)
	inner, err := b.startInner(loadOrder{Services: loadServices})
	if err == nil {
		err = b.loadRow(ctx, inner, "objects in memory")
	}
	if err != nil {
		return err
	}
	outer, err := b.startOuter(ctx, loadServices)
	if err != nil {
		return err
	}
	if err := b.loadRow(ctx, outer, "a directory"); err != nil {
		return err
	}
	if b.profile == "" {
		return nil
	}
	return b.profileDirectory(ctx)
}

func (b *bench) loadRow(ctx context.Context, a *agent, from string) error {
	defer a.stop()
	select {
	case <-ctx.Done():
	case <-time.After(settleFor):
	}
	m, err := a.memory()
	if err != nil {
		return err
	}
	ms := func(c cost) costRow { return costRow{float64(c.Wall) / 1e6, float64(c.CPU) / 1e6} }
	row := loadRow{From: from, Services: loadServices, Load: ms(a.load.Load), Memory: m}
	if a.inner != nil {
		row.Programs, row.Making, row.SyncMs = ms(a.load.Programs), ms(a.load.Making), float64(a.load.Sync.Wall)/1e6
	}
	b.report.Load = append(b.report.Load, row)
	return a.leave()
}

// profileDirectory is for the profile of what `fairlead run` does with a
// directory: it has none of its own.
func (b *bench) profileDirectory(ctx context.Context) error {
	p, err := b.lab.newPlace()
	if err != nil {
		return err
	}
	if err := writeManifests(p.manifests, loadServices); err != nil {
		return err
	}
	a, err := b.startInner(loadOrder{Services: loadServices, Manifests: p.manifests, State: p.state})
	if err != nil {
		return err
	}
	return b.loadRow(ctx, a, "a directory, in this program")
}

// dump measures `fairlead dump services -o json`.
func (b *bench) dump(ctx context.Context) error {
	for _, n := range []int{10_000, 50_000} {
		say("dump: %d Services", n)
		a, err := b.startInner(loadOrder{Services: n})
		if err != nil {
			return err
		}
		row, err := b.dumpRow(ctx, a, n)
		a.stop()
		if err != nil {
			return err
		}
		b.report.Dump = append(b.report.Dump, row)
		if err := a.place.leave(); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) dumpRow(ctx context.Context, a *agent, n int) (dumpRow, error) {
	row := dumpRow{Services: n, Runs: dumps, LoadMs: float64(a.load.Load.Wall) / 1e6}
	var took, cpu []float64
	for range dumps {
		cmd := exec.CommandContext(ctx, b.fairlead, "dump", "services", "-o", "json", "--bpffs", a.place.bpffs)
		begin := time.Now()
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			return row, fmt.Errorf("fairlead dump: %w", err)
		}
		took = append(took, float64(time.Since(begin).Microseconds())/1e3)
		cpu = append(cpu, float64((cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime()).Microseconds())/1e3)
		if rows, err := countRows(out); err != nil || rows != n+3 { // the probed Service has four
			return row, fmt.Errorf("fairlead dump printed %d Frontends of %d: %v", rows, n+3, err)
		}
		row.MiB = float64(len(out)) / (1 << 20)
	}
	row.Ms, row.CPUMs = median(took), median(cpu)
	return row, nil
}
