// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"fairlead.dev/dataplane"
)

// report is what a run found. Its JSON form is for comparing runs.
type report struct {
	Began, Ended    time.Time
	Kernel          string
	CPUs            int
	LoadAverage     string // as the run began, /proc/loadavg
	LoadAverageThen string // as it ended
	Connect         []connectRow
	Flip            []flipRow
	Load            []loadRow
	Dump            []dumpRow
	Packet          []packetRow
	Dataplanes      []dataplaneRow
}

// connectRow has medians in nanoseconds, and medians of the ratios of blocks.
type connectRow struct {
	Name                                                 string
	Blocks, PerBlock                                     int
	BareNs, NoHooksNs, DirectNs, ServiceNs               float64
	ServiceOverDirect, DirectOverNoHooks, DirectOverBare float64
}

// flipRow has what a change took in milliseconds. Checks counts the full checks
// of the kernel that ran meanwhile, CheckMs is the median of theirs.
type flipRow struct {
	From                string
	Services, Flips     int
	P50Ms, P99Ms, MaxMs float64
	Checks              int
	CheckMs             float64
	Memory              memory // after them
}

type costRow struct{ WallMs, CPUMs float64 }

type loadRow struct {
	From     string
	Services int
	// Load is from the first object on; from a directory, of the whole process.
	Load costRow
	// Making, part of Load, is the making of the objects; Programs comes
	// before it. SyncMs is the last part of Load.
	Programs, Making costRow
	SyncMs           float64
	Memory           memory
}

type dumpRow struct {
	Services, Runs int
	Ms, CPUMs, MiB float64
	LoadMs         float64
}

// dataplaneRow is one contestant at one size, fed by the same API server.
type dataplaneRow struct {
	Name     string
	Services int
	// Without says why there are no figures; empty where there are.
	Without string
	// Load is from exec until all is in force, with the agent's children.
	Load                costRow
	Memory              memory // of the agent alone, dataplaneSettle later
	Connect             connectRow
	Flips               int
	StaleAnswers        int // of removed Backends, after the first of a new one
	P50Ms, P99Ms, MaxMs float64
	CPUMsPerFlip        float64 // with the agent's children
}

// packetRow is one figure of BenchmarkNorthSouth.
type packetRow struct {
	Name               string
	NsPerPacket, Ratio float64 // Ratio 0: none
}

func newReport() *report {
	return &report{Began: time.Now(), Kernel: kernelRelease(), CPUs: runtime.NumCPU(), LoadAverage: loadAverage()}
}

func (r *report) finish() { r.Ended, r.LoadAverageThen = time.Now(), loadAverage() }

func loadAverage() string {
	text, _ := os.ReadFile("/proc/loadavg")
	f := strings.Fields(string(text))
	return strings.Join(f[:min(3, len(f))], " ")
}

// countRows counts the Frontends of a dump.
func countRows(out []byte) (int, error) {
	var d dataplane.Dump
	err := json.Unmarshal(out, &d)
	return len(d.Frontends), err
}

// goal says whether a figure meets the one of issue 2.
func goal(got, want float64) string {
	if got <= want {
		return fmt.Sprintf("goal %g: met", want)
	}
	return fmt.Sprintf("goal %g: missed", want)
}

func (r *report) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	line := func(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }
	line("Linux %s, %d CPUs, %s, load %s to %s, took %.0f s", r.Kernel, r.CPUs, r.Began.Format(time.DateTime),
		r.LoadAverage, r.LoadAverageThen, r.Ended.Sub(r.Began).Seconds())
	if len(r.Connect) > 0 {
		line("\nconnect, µs (UDP: connect, send, receive)\tno fairlead\tno hooks\tpod\tClusterIP\tpod/no hooks\tpod/no fairlead\tClusterIP/pod\t")
		for _, c := range r.Connect {
			line("%s\t%.2f\t%.2f\t%.2f\t%.2f\t%.3f\t%.3f\t%.3f\t  %s", c.Name, c.BareNs/1e3, c.NoHooksNs/1e3, c.DirectNs/1e3, c.ServiceNs/1e3,
				c.DirectOverNoHooks, c.DirectOverBare, c.ServiceOverDirect, goal(c.ServiceOverDirect, 1.02))
		}
	}
	if len(r.Flip) > 0 {
		line("\nflip, ms\tServices x 10\tflips\tp50\tp99\tmax\tchecks\tms each\tRSS MiB\tanonymous\t")
		for _, f := range r.Flip {
			line("%s\t%d\t%d\t%.2f\t%.2f\t%.2f\t%d\t%.0f\t%.1f\t%.1f\t  p99 %s", f.From, f.Services, f.Flips, f.P50Ms, f.P99Ms, f.MaxMs, f.Checks, f.CheckMs, f.Memory.RSS, f.Memory.Anonymous, goal(f.P99Ms, 5))
		}
	}
	if len(r.Load) > 0 {
		line("\nload\tServices x 10\twall ms\tCPU ms\tof that objects\tSync ms\tRSS MiB\tanonymous\tfile, maps\tpeak\t")
		for _, l := range r.Load {
			line("%s\t%d\t%.0f\t%.0f\t%.0f\t%.0f\t%.1f\t%.1f\t%.1f\t%.1f\t  CPU %s, RSS %s", l.From, l.Services, l.Load.WallMs, l.Load.CPUMs, l.Making.CPUMs, l.SyncMs,
				l.Memory.RSS, l.Memory.Anonymous, l.Memory.File, l.Memory.Peak, goal(l.Load.CPUMs, 1000), goal(l.Memory.RSS, 60))
			if l.Programs.WallMs > 0 {
				line("  before it, loading the programs\t\t%.0f\t%.0f\t\t\t\t\t\t\t", l.Programs.WallMs, l.Programs.CPUMs)
			}
		}
	}
	if len(r.Dump) > 0 {
		line("\ndump services -o json\tServices x 10\twall ms\tCPU ms\tMiB\tload ms\t")
		for _, d := range r.Dump {
			line("median of %d\t%d\t%.0f\t%.0f\t%.1f\t%.0f\t", d.Runs, d.Services, d.Ms, d.CPUMs, d.MiB, d.LoadMs)
		}
	}
	if len(r.Packet) > 0 {
		line("\npacket path (PROG_TEST_RUN)\tns/packet\tover a bounce\t")
		for _, p := range r.Packet {
			switch {
			case p.Ratio == 0:
				line("%s\t%.1f\t\t", p.Name, p.NsPerPacket)
			case strings.HasPrefix(p.Name, "new"): // once a flow
				line("%s\t%.1f\t%.2f\t", p.Name, p.NsPerPacket, p.Ratio)
			default:
				line("%s\t%.1f\t%.2f\t  %s", p.Name, p.NsPerPacket, p.Ratio, goal(p.Ratio, 1.5))
			}
		}
	}
	r.printDataplanes(line)
	return w.Flush()
}

func (r *report) printDataplanes(line func(format string, args ...any)) {
	if len(r.Dataplanes) == 0 {
		return
	}
	line("\ndataplanes\tServices x 10\tload ms\tload CPU ms\tRSS MiB\tanonymous\tflips\tstale\tp50 ms\tp99 ms\tmax ms\tCPU ms each\tconnect µs\tClusterIP/pod\tpod/no agent\t")
	for _, d := range r.Dataplanes {
		if d.Without != "" {
			line("%s\t%d\t%s\t", d.Name, d.Services, d.Without)
			continue
		}
		line("%s\t%d\t%.0f\t%.0f\t%.1f\t%.1f\t%d\t%d\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.3f\t%.3f\t", d.Name, d.Services, d.Load.WallMs, d.Load.CPUMs,
			d.Memory.RSS, d.Memory.Anonymous, d.Flips, d.StaleAnswers, d.P50Ms, d.P99Ms, d.MaxMs, d.CPUMsPerFlip,
			d.Connect.ServiceNs/1e3, d.Connect.ServiceOverDirect, d.Connect.DirectOverBare)
	}
}
