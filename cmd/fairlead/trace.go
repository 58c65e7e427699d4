// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"fairlead.dev/controller/config"
	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/ebpf"
	"fairlead.dev/dataplane/netfilter"
)

var traceFormats = []string{"text", "json"}

// traceRateMax bounds --rate: what a terminal shows is far less, and what a
// file takes is about this.
const traceRateMax = 100_000

func newTraceCommand() *cobra.Command {
	var filter serviceFilter
	var o dataplane.TraceOptions
	var lasts time.Duration
	output, c := "text", config.Default()
	cmd := &cobra.Command{
		Use:   "trace",
		Short: "Print decisions as the kernel makes them",
		Long: `Prints each decision as it is made: who asked for which Frontend, which Backend it
got and by which path, or why it was refused or dropped. While nobody traces it
costs nothing that can be measured. With the ebpf dataplane the programs tell;
with the others the kernel's conntrack does, which knows of new flows only.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output, traceFormats...); err != nil {
				return err
			}
			if err := filter.check(); err != nil {
				return err
			}
			if o.PerSecond == 0 || o.PerSecond > traceRateMax {
				return usagef("--rate %d: want 1 to %d", o.PerSecond, traceRateMax)
			}
			if filter != (serviceFilter{}) {
				o.Wants = func(s dataplane.ServiceName, _ string) bool { return filter.takes(s.String()) }
			}
			t, err := openTracer(&c)
			if err != nil {
				return err
			}
			defer t.Close()
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, unix.SIGTERM)
			defer stop()
			if lasts > 0 {
				ctx, stop = context.WithTimeout(ctx, lasts)
				defer stop()
			}
			return trace(ctx, stop, t, o, output, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	addOutputFlag(cmd, &output, traceFormats...)
	f := cmd.Flags()
	filter.addFlags(f)
	f.BoolVar(&o.OnlyDrops, "drops", false, "only what is refused or dropped")
	f.BoolVar(&o.KnownFlows, "known-flows", false, "each packet of flows that are known, too (ebpf's packet path)")
	f.Uint32Var(&o.PerSecond, "rate", 1000, "decisions printed a second at most; how many more there were is said at the end")
	f.DurationVar(&lasts, "for", 0, "how long to listen; 0: until interrupted")
	f.StringVar(&c.BPFFS, "bpffs", c.BPFFS, "mount of bpffs in which the agent pins its maps")
	f.StringVar(&c.Dataplane, "dataplane", c.Dataplane, "whose decisions: auto (what is in force), ebpf, nftables, iptables or ipvs")
	return cmd
}

// openTracer listens to what is in force.
func openTracer(c *config.Configuration) (dataplane.Tracer, error) {
	r, err := openReader(c)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if r.name == ebpfTechnology.name {
		return ebpf.OpenTracer(c.BPFFS)
	}
	return netfilter.OpenTracer(func() ([]dataplane.Row, error) {
		r, err := openReader(c)
		if err != nil {
			return nil, err
		}
		defer r.Close()
		d, err := r.Table()
		return d.Frontends, err
	})
}

// trace prints until ctx ends, or stop is called because w is gone.
func trace(ctx context.Context, stop func(), t dataplane.Tracer, o dataplane.TraceOptions, format string, w, notes io.Writer) error {
	buffered := bufio.NewWriter(w)
	var failed error
	lost, err := t.Trace(ctx, o, func(d dataplane.Decision) {
		if format == "json" {
			failed = errors.Join(failed, json.NewEncoder(buffered).Encode(&d))
		} else {
			fmt.Fprintln(buffered, decisionLine(&d))
		}
		// A line at a time: who pipes it wants to see it now.
		if failed = errors.Join(failed, buffered.Flush()); failed != nil {
			stop()
		}
	})
	if lost > 0 {
		fmt.Fprintf(notes, "fairlead: %d more decisions were not printed: --rate is %d\n", lost, o.PerSecond)
	}
	if errors.Is(failed, unix.EPIPE) {
		failed = nil
	}
	return errors.Join(err, failed)
}

// decisionLine is one decision in one line.
func decisionLine(d *dataplane.Decision) string {
	var b strings.Builder
	path := d.Path
	if d.From != "" {
		path += "/" + d.From
	}
	fmt.Fprintf(&b, "%s  %-8s  %-9s  %-4s  %s -> %s", d.Time.Format("15:04:05.000000"), d.Kind, path, d.Protocol, endName(d.Client), endName(d.Frontend))
	if d.Backend.IsValid() {
		fmt.Fprintf(&b, " => %s", d.Backend)
	}
	if d.Masquerade {
		b.WriteString(" masqueraded")
	}
	if d.Reason != "" {
		fmt.Fprintf(&b, "  %s", d.Reason)
	}
	if d.Service != "" {
		fmt.Fprintf(&b, "  %s", d.Service)
		if d.PortName != "" {
			fmt.Fprintf(&b, ":%s", d.PortName)
		}
	}
	if d.PID != 0 {
		fmt.Fprintf(&b, "  %s[%d]", printable(d.Command), d.PID)
	}
	return b.String()
}

// printable keeps what a process calls itself from speaking to the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// endName is an address without the port that a socket has not got yet.
func endName(a netip.AddrPort) string {
	switch {
	case !a.IsValid():
		return "?"
	case a.Port() == 0:
		return a.Addr().String()
	}
	return a.String()
}
