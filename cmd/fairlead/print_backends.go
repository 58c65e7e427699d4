// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"fairlead.dev/dataplane"
)

// backendRow is one Backend of one Service port.
type backendRow struct {
	Service  string     `json:"service"`
	PortName string     `json:"portName"`
	Protocol string     `json:"protocol"`
	Address  netip.Addr `json:"address"`
	Port     uint16     `json:"port"`
	State    string     `json:"state"`
	Local    bool       `json:"local"`
	// Scopes are those it is reached in: internal, external or both.
	Scopes string `json:"scopes"`
	// Frontends counts those (address, port, protocol) that can reach it.
	Frontends int `json:"frontends"`
}

// backendRows turns the dump around, one Service port after the other. rows are
// sorted as dataplane.SortRows has them, so the rows of a Service port are
// neighbours, and in them both scopes of a Frontend.
func backendRows(rows []dataplane.Row) []backendRow {
	var result []backendRow
	var group portBackends
	for len(rows) > 0 {
		n := 1
		for n < len(rows) && rows[n].Service == rows[0].Service && rows[n].PortName == rows[0].PortName {
			n++
		}
		result = append(result, group.of(rows[:n])...)
		rows = rows[n:]
	}
	return result
}

// portBackends collects the Backends of one Service port. It is used again for
// the next one, as a large node has many.
type portBackends struct {
	index map[portBackend]int
	rows  []backendRow
	// last is the Frontend that was counted last, for each of rows.
	last []netip.AddrPort
}

type portBackend struct {
	protocol string
	address  netip.AddrPort
}

// of gives the sorted Backends, in a slice that the next call overwrites.
func (g *portBackends) of(rows []dataplane.Row) []backendRow {
	if g.index == nil {
		g.index = map[portBackend]int{}
	}
	clear(g.index)
	g.rows, g.last = g.rows[:0], g.last[:0]
	for _, r := range rows {
		frontend := netip.AddrPortFrom(r.Address, r.Port)
		for _, b := range r.Backends {
			k := portBackend{r.Protocol, netip.AddrPortFrom(b.Address, b.Port)}
			i, ok := g.index[k]
			if !ok {
				i = len(g.rows)
				g.index[k] = i
				g.last = append(g.last, netip.AddrPort{})
				g.rows = append(g.rows, backendRow{Service: r.Service, PortName: r.PortName, Protocol: r.Protocol,
					Address: b.Address, Port: b.Port, State: b.State, Local: b.Local})
			}
			if g.last[i] != frontend {
				g.last[i] = frontend
				g.rows[i].Frontends++
			}
			g.rows[i].Scopes = addScope(g.rows[i].Scopes, r.Scope)
		}
	}
	slices.SortFunc(g.rows, func(a, b backendRow) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.State, b.State), a.Address.Compare(b.Address), cmp.Compare(a.Port, b.Port))
	})
	return g.rows
}

func addScope(scopes, scope string) string {
	switch {
	case scopes == "" || scopes == scope:
		return scope
	case strings.Contains(scopes, ","):
		return scopes
	}
	return "internal,external"
}

func backendsListing(rows []backendRow) listing[backendRow] {
	type row = backendRow
	return listing[row]{name: "backends", rows: rows, columns: []column[row]{
		{head: "SERVICE", cell: func(r *row) string { return r.Service }},
		{head: "PORT", cell: func(r *row) string { return r.PortName }},
		{head: "PROTOCOL", wide: true, cell: func(r *row) string { return r.Protocol }},
		{head: "BACKEND", cell: func(r *row) string { return hostPort(r.Address, r.Port) }},
		{head: "STATE", cell: func(r *row) string { return r.State }},
		{head: "LOCAL", cell: func(r *row) string { return strconv.FormatBool(r.Local) }},
		{head: "SCOPES", wide: true, cell: func(r *row) string { return r.Scopes }},
		{head: "FRONTENDS", cell: func(r *row) string { return strconv.Itoa(r.Frontends) }},
	}}
}
