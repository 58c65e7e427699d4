// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"net/netip"
	"strings"
	"unicode"

	"fairlead.dev/explain"
)

// Backends and flows that a reader is shown; -o json has all.
const (
	explainBackendsMax = 20
	explainFlowsMax    = 5
)

// printAnswer writes an answer for people: what happens, the decisions in
// their order, then what they were taken from.
func printAnswer(w io.Writer, a *explain.Answer) error {
	b := bufio.NewWriter(w)
	client := a.Client.String()
	if a.ClientPort != 0 {
		client = netip.AddrPortFrom(a.Client, a.ClientPort).String()
	}
	fmt.Fprintf(b, "%s -> %s/%s (%s)\n", client, netip.AddrPortFrom(a.Address, a.Port), a.Protocol, a.Dataplane)
	fmt.Fprintln(b, headline(a))
	fmt.Fprintln(b)
	for _, s := range a.Because {
		if s.Topic != "outcome" {
			fmt.Fprintf(b, "%-14s%s\n", heading(s.Topic), s.Text)
		}
	}
	printBackends(b, a)
	printFlows(b, a)
	for _, u := range a.Unknown {
		fmt.Fprintf(b, "%-14s%s\n", "Unknown", u)
	}
	return b.Flush()
}

// headline says what happens.
func headline(a *explain.Answer) string {
	end := ""
	for _, s := range a.Because {
		if s.Topic == "outcome" {
			end = s.Text
		}
	}
	switch a.Outcome {
	case explain.Refused, explain.Dropped:
		return strings.ToUpper(string(a.Outcome)) + " (" + a.Reason + "): " + end
	case explain.NotService:
		return "NO SERVICE: " + end
	}
	return "FORWARDED: " + end
}

// heading is a topic in words: "sourceRanges" is "Source ranges".
func heading(topic string) string {
	var b strings.Builder
	for i, r := range topic {
		switch {
		case i == 0:
			r = unicode.ToUpper(r)
		case unicode.IsUpper(r):
			b.WriteByte(' ')
			r = unicode.ToLower(r)
		}
		b.WriteRune(r)
	}
	return b.String()
}

func printBackends(b *bufio.Writer, a *explain.Answer) {
	if len(a.Backends) == 0 {
		return
	}
	shown := listing[explain.Backend]{rows: a.Backends[:min(len(a.Backends), explainBackendsMax)], columns: backendColumns}
	fmt.Fprintln(b)
	writeTable(b, shown, false)
	if n := len(a.Backends) - explainBackendsMax; n > 0 {
		fmt.Fprintf(b, "and %d more (-o json has all)\n", n)
	}
	if len(a.Unknown)+len(a.Flows) > 0 {
		fmt.Fprintln(b)
	}
}

var backendColumns = []column[explain.Backend]{
	{head: "BACKEND", cell: func(r *explain.Backend) string { return r.AddrPort().String() }},
	{head: "STATE", cell: func(r *explain.Backend) string { return r.State }},
	{head: "WHERE", cell: where},
	{head: "SHARE", cell: func(r *explain.Backend) string { return share(r.Share) }},
	{head: "SEES", cell: sees},
}

func where(r *explain.Backend) string {
	switch {
	case r.HostNetwork:
		return "this node's own"
	case r.Local:
		return "this node"
	}
	return "another node"
}

// share writes 1/n for the share of one of n.
func share(s float64) string {
	switch {
	case s == 0:
		return "-"
	case s == 1:
		return "all"
	}
	return fmt.Sprintf("1/%.0f", math.Round(1/s))
}

func sees(r *explain.Backend) string {
	switch {
	case r.Dropped != "":
		return "nothing: " + r.Dropped
	case r.Source == nil:
		return "-"
	case r.Source.Address == nil && r.Source.Masquerade:
		return "an address of this node (SNAT)"
	case r.Source.Address == nil:
		return "an address of the client"
	case r.Source.Masquerade:
		return r.Source.Address.String() + " (SNAT)"
	}
	return r.Source.Address.String()
}

func printFlows(b *bufio.Writer, a *explain.Answer) {
	for i, f := range a.Flows {
		if i == explainFlowsMax {
			fmt.Fprintf(b, "%-14sand %d more (-o json has all)\n", "Flows", len(a.Flows)-i)
			break
		}
		as := ""
		if f.Masquerade != "" {
			as = " as " + f.Masquerade
		}
		fmt.Fprintf(b, "%-14s%s%s -> %s, %s, idle for %s\n", "Flow", f.Client, as, f.Backend, f.State, duration(f.IdleSeconds))
	}
}
