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

// backendRows turns the dump around. rows are sorted as dataplane.SortRows has
// them, so both scopes of a Frontend are neighbours.
func backendRows(rows []dataplane.Row) []backendRow {
	type key struct {
		service, portName, protocol string
		backend                     netip.AddrPort
	}
	type found struct {
		row  backendRow
		last dataplane.FrontendKey
	}
	index := map[key]int{}
	var all []found
	for _, r := range rows {
		// Protocols other than the three cannot be in a Table; they count as one.
		protocol, _ := dataplane.ParseProtocol(r.Protocol)
		frontend := dataplane.FrontendKey{Address: r.Address, Port: r.Port, Protocol: protocol}
		for _, b := range r.Backends {
			k := key{r.Service, r.PortName, r.Protocol, netip.AddrPortFrom(b.Address, b.Port)}
			i, ok := index[k]
			if !ok {
				i = len(all)
				index[k] = i
				all = append(all, found{row: backendRow{Service: r.Service, PortName: r.PortName, Protocol: r.Protocol,
					Address: b.Address, Port: b.Port, State: b.State, Local: b.Local}})
			}
			f := &all[i]
			if f.last != frontend {
				f.last = frontend
				f.row.Frontends++
			}
			f.row.Scopes = addScope(f.row.Scopes, r.Scope)
		}
	}
	result := make([]backendRow, len(all))
	for i, f := range all {
		result[i] = f.row
	}
	slices.SortFunc(result, func(a, b backendRow) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.PortName, b.PortName), cmp.Compare(a.Protocol, b.Protocol),
			cmp.Compare(a.State, b.State), a.Address.Compare(b.Address), cmp.Compare(a.Port, b.Port))
	})
	return result
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
