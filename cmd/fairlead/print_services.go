// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"strconv"

	"fairlead.dev/dataplane"
)

// shownBackends is how many Backends -o table names in a line.
const shownBackends = 3

func servicesListing(rows []dataplane.Row) listing[dataplane.Row] {
	type row = dataplane.Row
	return listing[row]{name: "frontends", rows: rows, columns: []column[row]{
		{head: "SERVICE", cell: func(r *row) string { return r.Service }},
		{head: "PORT", cell: func(r *row) string { return r.PortName }},
		{head: "KIND", cell: func(r *row) string { return r.Kind }},
		{head: "FRONTEND", cell: func(r *row) string { return hostPort(r.Address, r.Port) + "/" + r.Protocol }},
		{head: "SCOPE", cell: func(r *row) string { return r.Scope }},
		{head: "AFFINITY", wide: true, cell: func(r *row) string { return seconds(r.SessionAffinitySeconds) }},
		{head: "ACTIVE", wide: true, cell: func(r *row) string { return strconv.Itoa(countState(r, "active")) }},
		{head: "TERMINATING", wide: true, cell: func(r *row) string { return strconv.Itoa(countState(r, "terminating")) }},
		{head: "BACKENDS", cell: func(r *row) string { return list(backendNames(r.Backends), shownBackends) }},
	}}
}

// wideServicesListing names every Backend, a terminating one with a mark.
func wideServicesListing(rows []dataplane.Row) listing[dataplane.Row] {
	l := servicesListing(rows)
	l.columns[len(l.columns)-1].cell = func(r *dataplane.Row) string {
		names := backendNames(r.Backends)
		for i, b := range r.Backends {
			if b.Local {
				names[i] += "(local)"
			}
			if b.State != "active" {
				names[i] += "(" + b.State + ")"
			}
		}
		return list(names, len(names))
	}
	return l
}

func backendNames(bs []dataplane.BackendRow) []string {
	names := make([]string, len(bs))
	for i, b := range bs {
		names[i] = hostPort(b.Address, b.Port)
	}
	return names
}

func countState(r *dataplane.Row, state string) int {
	n := 0
	for _, b := range r.Backends {
		if b.State == state {
			n++
		}
	}
	return n
}

func hostPort(a netip.Addr, port uint16) string { return netip.AddrPortFrom(a, port).String() }

func seconds(n uint32) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatUint(uint64(n), 10) + "s"
}
