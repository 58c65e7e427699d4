// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/netfilter"
)

// Reader reads what an agent left in IPVS and nftables. The agent may be dead.
type Reader struct {
	options   Options
	table     *table
	kernel    *kernel
	conntrack *netfilter.Conntrack
}

var _ dataplane.Reader = (*Reader)(nil)

// Read opens the kernel state of the calling thread's network namespace, and
// only reads it.
func Read(o Options) (dataplane.Reader, error) {
	r := &Reader{options: o.withDefaults()}
	if err := r.open(); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

func (r *Reader) open() (err error) {
	if r.table, err = openTable(r.options.AffinityMax); err != nil {
		return err
	}
	there, err := r.table.present()
	if err != nil {
		return err
	}
	if !there {
		return errors.New("no table fairlead-ipvs in this network namespace: start `fairlead run --dataplane ipvs`")
	}
	if r.kernel, err = openKernel(r.options.marks()); err != nil {
		return err
	}
	r.conntrack, err = netfilter.Open()
	return err
}

// Close implements dataplane.Reader.
func (r *Reader) Close() error {
	var errs []error
	if r.table != nil {
		errs = append(errs, r.table.close())
	}
	if r.kernel != nil {
		r.kernel.close()
	}
	if r.conntrack != nil {
		errs = append(errs, r.conntrack.Close())
	}
	return errors.Join(errs...)
}

// Table implements dataplane.Reader: of the Backends that the table names, it
// has those that IPVS has.
func (r *Reader) Table() (dataplane.Dump, error) {
	d := dataplane.Dump{Dataplane: "ipvs", Frontends: []dataplane.Row{}}
	all, err := r.table.elements()
	if err != nil {
		return d, err
	}
	servers, err := r.kernel.servers()
	if err != nil {
		return d, err
	}
	found := decode(all)
	for _, f := range found.frontends {
		name, ok := found.names[f.port]
		if !ok {
			continue
		}
		for scope, mark := range f.marks {
			if f.kind == dataplane.ClusterIP && dataplane.Scope(scope) == dataplane.External {
				continue
			}
			d.Frontends = append(d.Frontends, dataplane.Row{
				Service: name.service.String(), PortName: name.port, Kind: f.kind.String(),
				Address: f.Address, Port: f.Port, Protocol: f.Protocol.String(), Scope: dataplane.Scope(scope).String(),
				SessionAffinitySeconds: f.affinitySeconds, Backends: backendRows(found.members[mark], servers[mark]),
			})
		}
	}
	dataplane.SortRows(d.Frontends)
	return d, nil
}

func backendRows(members map[netip.AddrPort]uint32, s *server) []dataplane.BackendRow {
	rows := make([]dataplane.BackendRow, 0, len(members))
	if s == nil {
		return rows
	}
	for a, flags := range members {
		if _, ok := s.weights[a]; !ok {
			continue
		}
		state := dataplane.Active
		if flags&memberTerminating != 0 {
			state = dataplane.Terminating
		}
		rows = append(rows, dataplane.BackendRow{Address: a.Addr(), Port: a.Port(), State: state.String(), Local: flags&memberLocal != 0})
	}
	return rows
}

// Conntrack implements dataplane.Reader. IPVS leaves its flows to conntrack.
func (r *Reader) Conntrack() ([]dataplane.ConntrackRow, error) {
	d, err := r.Table()
	if err != nil {
		return nil, err
	}
	internal, err := r.internalSources()
	if err != nil {
		return nil, err
	}
	rows, err := r.conntrack.Flows(netfilter.Lookup(d.Frontends))
	if err != nil {
		return nil, err
	}
	for i := range rows {
		scope := dataplane.External
		if internal(rows[i].Client.Addr()) {
			scope = dataplane.Internal
		}
		rows[i].Scope = scope.String()
	}
	return rows, nil
}

// internalSources reports whether an address is internal traffic's.
func (r *Reader) internalSources() (func(netip.Addr) bool, error) {
	type border struct {
		at  netip.Addr
		end bool
	}
	borders := map[*family][]border{}
	for _, f := range families {
		err := r.table.readSet("internal-sources"+f.suffix, func(e nftables.SetElement) {
			if a, ok := netip.AddrFromSlice(e.Key); ok {
				borders[f] = append(borders[f], border{a, e.IntervalEnd})
			}
		})
		if err != nil {
			return nil, err
		}
		slices.SortFunc(borders[f], func(a, b border) int { return a.at.Compare(b.at) })
	}
	return func(a netip.Addr) bool {
		inside := a.IsLoopback()
		for _, b := range borders[familyOf(a)] {
			if a.Less(b.at) {
				break
			}
			inside = !b.end
		}
		return inside
	}, nil
}

// Affinity implements dataplane.Reader.
func (r *Reader) Affinity() ([]dataplane.AffinityRow, error) {
	all, err := r.table.elements()
	if err != nil {
		return nil, err
	}
	found := decode(all)
	backends := map[uint32]netip.AddrPort{}
	for _, homes := range found.homes {
		for a, mark := range homes {
			backends[mark] = a
		}
	}
	rows := []dataplane.AffinityRow{}
	for _, f := range families {
		err := r.table.readSet("affinity"+f.suffix, func(e nftables.SetElement) {
			if len(e.Key) < 8 || len(e.Val) != 4 {
				return
			}
			name, ok := found.names[binary.NativeEndian.Uint32(e.Key)]
			backend, served := backends[binary.NativeEndian.Uint32(e.Val)]
			client, valid := netip.AddrFromSlice(e.Key[4:])
			if !ok || !served || !valid {
				return
			}
			rows = append(rows, dataplane.AffinityRow{
				Service: name.service.String(), PortName: name.port, Client: client.String(), Backend: backend,
				IdleSeconds: uint32((e.Timeout - e.Expires).Seconds()),
			})
		})
		if err != nil {
			return nil, err
		}
	}
	slices.SortFunc(rows, compareAffinity)
	return rows, nil
}

// Counters implements dataplane.Reader: IPVS counts per virtual server, and
// what a server that went had counted is gone.
func (r *Reader) Counters() ([]dataplane.CounterRow, []dataplane.DropRow, error) {
	rows, err := r.counters()
	if err != nil {
		return nil, nil, err
	}
	drops, err := r.table.drops()
	return rows, drops, err
}

func (r *Reader) counters() ([]dataplane.CounterRow, error) {
	all, err := r.table.elements()
	if err != nil {
		return nil, err
	}
	stats, err := r.kernel.stats()
	if err != nil {
		return nil, err
	}
	return countersOf(decode(all), stats), nil
}

// drops are the counters of the table.
func (t *table) drops() ([]dataplane.DropRow, error) {
	rows := make([]dataplane.DropRow, 0, len(dropCounters))
	for _, name := range dropCounters {
		o, err := t.conn.GetObject(&nftables.CounterObj{Table: t.table, Name: name})
		if err != nil {
			return nil, fmt.Errorf("read counter %s: %w", name, err)
		}
		c, ok := o.(*nftables.CounterObj)
		if !ok {
			return nil, fmt.Errorf("read counter %s: it is a %T", name, o)
		}
		rows = append(rows, dataplane.DropRow{Reason: name, Count: c.Packets})
	}
	return rows, nil
}
