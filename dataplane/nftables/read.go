// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/netfilter"
)

// Reader reads the tables of an agent, which may be dead.
type Reader struct {
	kernel    *socket
	conntrack *netfilter.Conntrack
}

var _ dataplane.Reader = (*Reader)(nil)

// Read opens what an agent left in the calling thread's network namespace, and
// only reads it.
func Read(Options) (*Reader, error) {
	r := &Reader{}
	err := r.open()
	if err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

func (r *Reader) open() (err error) {
	if r.kernel, err = openSocket(); err != nil {
		return err
	}
	there, err := r.kernel.hasTables()
	if err != nil {
		return err
	}
	if !there {
		return fmt.Errorf("there is no nftables table %s in this network namespace: start `fairlead run --dataplane nftables`", tableName)
	}
	r.conntrack, err = netfilter.Open()
	return err
}

// Close closes the sockets.
func (r *Reader) Close() error {
	var errs []error
	if r.conntrack != nil {
		errs = append(errs, r.conntrack.Close())
	}
	if r.kernel != nil {
		errs = append(errs, r.kernel.close())
	}
	return errors.Join(errs...)
}

// frontendRead is what was read of one Frontend.
type frontendRead struct {
	names
	comment, rest string
	packets       uint64
	split         bool
	backends      [2][]dataplane.BackendRow
	stickyID      uint32
}

// read lists the sets wanted of each family. An agent may be changing them
// meanwhile: then they are read again, so that what is read was there at one
// instant.
func (r *Reader) read(sets ...setID) (map[dataplane.FrontendKey]*frontendRead, error) {
	for attempt := 0; ; attempt++ {
		out, err := r.readOnce(sets)
		if !errors.Is(err, errInterrupted) || attempt == readAttempts {
			return out, err
		}
	}
}

func (r *Reader) readOnce(sets []setID) (map[dataplane.FrontendKey]*frontendRead, error) {
	before, err := r.kernel.generation()
	if err != nil {
		return nil, err
	}
	out := map[dataplane.FrontendKey]*frontendRead{}
	for _, f := range families {
		for _, id := range sets {
			err := r.kernel.listElements(f, id, func(e *element) {
				k, ok := f.decodeTuple(e.key)
				if !ok {
					return
				}
				if out[k] == nil {
					out[k] = &frontendRead{}
				}
				out[k].take(f, id, e)
			})
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("read %s of table %s %s: %w", id, f, tableName, err)
			}
		}
	}
	for k, read := range out {
		var ok bool
		if read.names, ok = parseNames(read.comment + read.rest); !ok {
			delete(out, k) // an element that no agent made
		}
	}
	after, err := r.kernel.generation()
	if err == nil && after != before {
		err = errInterrupted
	}
	return out, err
}

func (r *frontendRead) take(f *family, id setID, e *element) {
	scope := dataplane.Internal
	switch id {
	case setServices:
		r.comment, r.packets = e.comment, e.packets
	case setFrontends:
		r.rest = e.comment
	case setFrontendsExternal:
		r.split = true
	case setStickyIDs:
		r.stickyID = wideU32(e.data)
	case setSlotsExternal, setStickySlotsExternal:
		scope = dataplane.External
		fallthrough
	case setSlots, setStickySlots:
		at, ok := f.decodeBackend(slotData(id, e))
		if !ok {
			return
		}
		row := dataplane.BackendRow{Address: at.Addr(), Port: at.Port(), State: dataplane.Active.String()}
		row.Local = e.comment == slotComments[1] || e.comment == slotComments[3]
		if e.comment == slotComments[2] || e.comment == slotComments[3] {
			row.State = dataplane.Terminating.String()
		}
		r.backends[scope] = append(r.backends[scope], row)
	}
}

// Table reads the rule table.
func (r *Reader) Table() (dataplane.Dump, error) {
	d := dataplane.Dump{Dataplane: "nftables", Frontends: []dataplane.Row{}}
	read, err := r.read(setServices, setFrontends, setFrontendsExternal, setSlots, setStickySlots, setSlotsExternal, setStickySlotsExternal)
	if err != nil {
		return d, err
	}
	for k, f := range read {
		d.Frontends = append(d.Frontends, f.row(k, dataplane.Internal, f.backends[0]))
		switch {
		case f.kind == dataplane.ClusterIP:
		case f.split:
			d.Frontends = append(d.Frontends, f.row(k, dataplane.External, f.backends[1]))
		default:
			d.Frontends = append(d.Frontends, f.row(k, dataplane.External, slices.Clone(f.backends[0])))
		}
	}
	dataplane.SortRows(d.Frontends)
	return d, nil
}

func (r *frontendRead) row(k dataplane.FrontendKey, scope dataplane.Scope, backends []dataplane.BackendRow) dataplane.Row {
	if backends == nil {
		backends = []dataplane.BackendRow{}
	}
	return dataplane.Row{
		Service: r.service, PortName: r.portName, Kind: r.kind.String(), Address: k.Address, Port: k.Port, Protocol: k.Protocol.String(),
		Scope: scope.String(), SessionAffinitySeconds: r.affinitySeconds, Backends: backends,
	}
}

// Conntrack lists the flows to Frontends. Their scope is not known to
// conntrack, so it is empty.
func (r *Reader) Conntrack() ([]dataplane.ConntrackRow, error) {
	read, err := r.read(setServices, setFrontends)
	if err != nil {
		return nil, err
	}
	return r.conntrack.Flows(func(k dataplane.FrontendKey) (name, portName string, ok bool) {
		if f := read[k]; f != nil {
			return f.service, f.portName, true
		}
		return "", "", false
	})
}

// Affinity lists the clients that are kept on a Backend.
func (r *Reader) Affinity() ([]dataplane.AffinityRow, error) {
	read, err := r.read(setServices, setFrontends, setStickyIDs)
	if err != nil {
		return nil, err
	}
	owners := map[stickyNumber]*frontendRead{}
	for k, f := range read {
		if f.stickyID != 0 {
			owners[stickyNumber{familyOf(k.Address), f.stickyID}] = f
		}
	}
	rows := []dataplane.AffinityRow{}
	for _, f := range families {
		err := r.kernel.listElements(f, setAffinity, func(e *element) {
			if len(e.key) != 4+f.addressBytes {
				return
			}
			owner, client := owners[stickyNumber{f, nativeU32(e.key[:4])}], e.key[4:]
			at, ok := f.decodeBackend(e.data[min(len(e.data), wideBytes):])
			if owner == nil || !ok {
				return // the Service is gone, the entry will expire
			}
			a, _ := netip.AddrFromSlice(client)
			row := dataplane.AffinityRow{Service: owner.service, PortName: owner.portName, Client: a.String(), Backend: at}
			if e.timeout > e.expires {
				row.IdleSeconds = uint32((e.timeout - e.expires) / 1000)
			}
			rows = append(rows, row)
		})
		if err != nil && !errors.Is(err, errInterrupted) && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("read affinity: %w", err)
		}
	}
	slices.SortFunc(rows, func(a, b dataplane.AffinityRow) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.PortName, b.PortName), cmp.Compare(a.Client, b.Client))
	})
	return rows, nil
}

// Counters sums the connections of each Service port over its Frontends.
func (r *Reader) Counters() ([]dataplane.CounterRow, []dataplane.DropRow, error) {
	return readCounters(r.kernel, r.read)
}

// readCounters is Counters for whoever can read Frontends.
func readCounters(k *socket, read func(...setID) (map[dataplane.FrontendKey]*frontendRead, error)) ([]dataplane.CounterRow, []dataplane.DropRow, error) {
	found, err := read(setServices, setFrontends)
	if err != nil {
		return nil, nil, err
	}
	type port struct{ service, name string }
	sums := map[port]uint64{}
	for _, f := range found {
		sums[port{f.service, f.portName}] += f.packets
	}
	rows := make([]dataplane.CounterRow, 0, len(sums))
	for p, n := range sums {
		rows = append(rows, dataplane.CounterRow{Service: p.service, PortName: p.name, Connections: n})
	}
	slices.SortFunc(rows, func(a, b dataplane.CounterRow) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.PortName, b.PortName))
	})
	drops, err := readDrops(k)
	return rows, drops, err
}

func readDrops(k *socket) ([]dataplane.DropRow, error) {
	drops := make([]dataplane.DropRow, len(dropReasons))
	for i, reason := range dropReasons {
		drops[i].Reason = reason
	}
	for _, f := range families {
		s, err := k.readStructure(f, tableName)
		if err != nil {
			return nil, fmt.Errorf("read drop counters: %w", err)
		}
		for i := range drops {
			if s != nil {
				drops[i].Count += s.counters[drops[i].Reason]
			}
		}
	}
	return drops, nil
}
