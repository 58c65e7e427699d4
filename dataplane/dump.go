// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"cmp"
	"net/netip"
	"slices"
)

// Dump is the rule table as read from the kernel. Its JSON form is a contract,
// the same for every Dataplane (docs/semantics.md).
type Dump struct {
	Dataplane string `json:"dataplane"`
	Frontends []Row  `json:"frontends"`
}

// Row is one Frontend in one scope.
type Row struct {
	Service                string       `json:"service"`
	PortName               string       `json:"portName"`
	Kind                   string       `json:"kind"`
	Address                netip.Addr   `json:"address"`
	Port                   uint16       `json:"port"`
	Protocol               string       `json:"protocol"`
	Scope                  string       `json:"scope"`
	SessionAffinitySeconds uint32       `json:"sessionAffinitySeconds"`
	Backends               []BackendRow `json:"backends"`
}

// BackendRow is one Backend of a Row.
type BackendRow struct {
	Address netip.Addr `json:"address"`
	Port    uint16     `json:"port"`
	State   string     `json:"state"`
	Local   bool       `json:"local"`
}

// Rows gives the dump's rows of a Table, for a kernel that holds just it.
func (t *Table) Rows() []Row {
	var rows []Row
	for _, s := range t.Services {
		rows = append(rows, s.Rows()...)
	}
	SortRows(rows)
	return rows
}

// Rows gives the dump's rows of one Service, unsorted.
func (s *Service) Rows() []Row {
	rows := make([]Row, 0, 2*len(s.Frontends))
	for i := range s.Frontends {
		f := &s.Frontends[i]
		rows = append(rows, f.row(s.Name, Internal))
		if f.Kind != ClusterIP {
			rows = append(rows, f.row(s.Name, External))
		}
	}
	return rows
}

func (f *Frontend) row(name ServiceName, scope Scope) Row {
	set := f.Set(scope)
	r := Row{
		Service: name.String(), PortName: f.PortName, Kind: f.Kind.String(),
		Address: f.Address, Port: f.Port, Protocol: f.Protocol.String(), Scope: scope.String(),
		SessionAffinitySeconds: f.AffinitySeconds, Backends: make([]BackendRow, 0, len(set.Backends)),
	}
	for _, b := range set.Backends {
		r.Backends = append(r.Backends, BackendRow{Address: b.Address, Port: b.Port, State: b.State.String(), Local: b.Local})
	}
	return r
}

// SortRows sorts by service, portName, kind, address, port, protocol, scope,
// and each row's Backends in the order of CompareBackends.
func SortRows(rows []Row) {
	for i := range rows {
		slices.SortFunc(rows[i].Backends, func(a, b BackendRow) int {
			return cmp.Or(cmp.Compare(a.State, b.State), a.Address.Compare(b.Address), cmp.Compare(a.Port, b.Port))
		})
	}
	slices.SortFunc(rows, func(a, b Row) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.PortName, b.PortName), cmp.Compare(a.Kind, b.Kind),
			a.Address.Compare(b.Address), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol),
			cmp.Compare(a.Scope, b.Scope))
	})
}
