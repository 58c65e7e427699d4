// SPDX-License-Identifier: Apache-2.0

package status

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// shownTraffic is how many Service ports fit on a screen beside the rest.
const shownTraffic = 10

// WriteText writes one screen.
func (s *Status) WriteText(w io.Writer, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	line("dataplane", "%s", s.Dataplane)
	line("in force", "%d Services, %d Frontends, %d Backends", s.Services, s.Frontends, s.Backends)
	if a := s.Agent; a == nil {
		line("agent", "%s; the kernel routes on", s.AgentError)
	} else {
		line("agent", "%s", a.Version)
		line("source", "%s, %s", printable(a.Source), connection(a))
		line("not in force", "%s", a.notInForce())
		line("last change", "in force after %s, %s", seconds(a.LastChangeSeconds), ago(a.LastSync, now))
		line("programming", "%s", a.programming())
		line("drift repaired", "%d Frontends", a.DriftRepaired)
		var fills []string
		for _, m := range a.Maps {
			fills = append(fills, fmt.Sprintf("%s %d of %d (%.0f%%)", m.Name, m.Entries, m.Max, m.Percent()))
		}
		line("maps", "%s", orNone(strings.Join(fills, "\n\t")))
	}
	var drops []string
	for _, d := range s.Drops {
		drops = append(drops, fmt.Sprintf("%s %d", d.Reason, d.Count))
	}
	line("refused, dropped", "%s", orNone(strings.Join(drops, ", ")))
	if err := t.Flush(); err != nil {
		return err
	}
	return s.writeTraffic(w)
}

func (s *Status) writeTraffic(w io.Writer) error {
	if len(s.Traffic) == 0 {
		_, err := fmt.Fprintln(w, "\nno Service had traffic yet")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "\nSERVICE\tPORT\tCONNECTIONS\tPACKETS\tBYTES")
	for i, x := range s.Traffic {
		if i == shownTraffic {
			fmt.Fprintf(t, "and %d more: fairlead dump counters\n", len(s.Traffic)-i)
			break
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%d\n", printable(x.Service), printable(orNone(x.PortName)), x.Connections, x.Packets, x.Bytes)
	}
	return t.Flush()
}

func connection(a *Agent) string {
	if a.SourceConnected {
		return "connected"
	}
	return "NOT connected: the last state is kept"
}

func (a *Agent) notInForce() string {
	if a.Pending+a.Problems+a.FailedServices+a.SourceProblems == 0 {
		return "nothing"
	}
	return fmt.Sprintf("%d changes pending, %d Services failed, %d problems of objects, %d of the source (the agent's log names them)",
		a.Pending, a.FailedServices, a.Problems, a.SourceProblems)
}

func (a *Agent) programming() string {
	if a.ProgrammingP99Seconds == nil {
		return "no endpoint change told when it began"
	}
	return "99% of endpoint changes within " + seconds(*a.ProgrammingP99Seconds) + ", control plane included"
}

func seconds(s float64) string {
	d := time.Duration(s * float64(time.Second))
	switch {
	case d >= time.Second:
		return d.Round(10 * time.Millisecond).String()
	case d >= time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	}
	return d.Round(time.Microsecond).String()
}

func ago(then, now time.Time) string {
	if then.IsZero() {
		return "never"
	}
	return max(0, now.Sub(then)).Round(time.Second).String() + " ago"
}

func orNone(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// printable keeps what an object is called from steering a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}
