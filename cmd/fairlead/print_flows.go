// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strconv"
	"time"

	"fairlead.dev/dataplane"
)

func conntrackListing(rows []dataplane.ConntrackRow) listing[dataplane.ConntrackRow] {
	type row = dataplane.ConntrackRow
	return listing[row]{name: "conntrack", rows: rows, columns: []column[row]{
		{head: "SERVICE", cell: func(r *row) string { return r.Service }},
		{head: "PORT", cell: func(r *row) string { return r.PortName }},
		{head: "PROTOCOL", cell: func(r *row) string { return r.Protocol }},
		{head: "CLIENT", cell: func(r *row) string { return r.Client.String() }},
		{head: "FRONTEND", cell: func(r *row) string { return r.Frontend.String() }},
		{head: "BACKEND", cell: func(r *row) string { return r.Backend.String() }},
		{head: "STATE", cell: func(r *row) string { return r.State }},
		{head: "IDLE", cell: func(r *row) string { return duration(r.IdleSeconds) }},
		{head: "SCOPE", wide: true, cell: func(r *row) string { return r.Scope }},
		{head: "MASQUERADE", wide: true, cell: func(r *row) string { return r.Masquerade }},
		{head: "AGE", wide: true, cell: func(r *row) string { return duration(r.AgeSeconds) }},
	}}
}

func affinityListing(rows []dataplane.AffinityRow) listing[dataplane.AffinityRow] {
	type row = dataplane.AffinityRow
	return listing[row]{name: "affinity", rows: rows, columns: []column[row]{
		{head: "SERVICE", cell: func(r *row) string { return r.Service }},
		{head: "PORT", cell: func(r *row) string { return r.PortName }},
		{head: "CLIENT", cell: func(r *row) string { return r.Client }},
		{head: "BACKEND", cell: func(r *row) string { return r.Backend.String() }},
		{head: "IDLE", cell: func(r *row) string { return duration(r.IdleSeconds) }},
	}}
}

func duration(seconds uint32) string { return (time.Duration(seconds) * time.Second).String() }

func countersListing(rows []dataplane.CounterRow) listing[dataplane.CounterRow] {
	type row = dataplane.CounterRow
	number := func(n uint64) string { return strconv.FormatUint(n, 10) }
	return listing[row]{name: "counters", rows: rows, columns: []column[row]{
		{head: "SERVICE", cell: func(r *row) string { return r.Service }},
		{head: "PORT", cell: func(r *row) string { return r.PortName }},
		{head: "CONNECTIONS", cell: func(r *row) string { return number(r.Connections) }},
		{head: "PACKETS-IN", cell: func(r *row) string { return number(r.ForwardPackets) }},
		{head: "PACKETS-OUT", cell: func(r *row) string { return number(r.ReversePackets) }},
		{head: "BYTES-IN", wide: true, cell: func(r *row) string { return number(r.ForwardBytes) }},
		{head: "BYTES-OUT", wide: true, cell: func(r *row) string { return number(r.ReverseBytes) }},
	}}
}

func dropsListing(rows []dataplane.DropRow) listing[dataplane.DropRow] {
	type row = dataplane.DropRow
	return listing[row]{name: "drops", rows: rows, columns: []column[row]{
		{head: "DROP-REASON", cell: func(r *row) string { return r.Reason }},
		{head: "COUNT", cell: func(r *row) string { return strconv.FormatUint(r.Count, 10) }},
	}}
}
