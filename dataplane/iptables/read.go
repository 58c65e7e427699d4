// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/netfilter"
)

// errNothing is what Read says where no agent has been.
var errNothing = errors.New("no chain of fairlead in iptables: start `fairlead run --dataplane iptables`")

// Reader reads the rules of an agent, which may be dead. It lists them in the
// network namespace of the thread that calls it.
type Reader struct {
	tools     []*tool
	conntrack *netfilter.Conntrack
}

var _ dataplane.Reader = (*Reader)(nil)

// Read finds the flavour that holds our rules.
func Read(o Options) (*Reader, error) {
	tools, err := present(o)
	if err != nil {
		return nil, err
	}
	if len(tools) == 0 {
		return nil, errNothing
	}
	return &Reader{tools: tools}, nil
}

// Present reports whether rules of ours exist, of whichever flavour unless the
// Options force one.
func Present(o Options) (bool, error) {
	tools, err := present(o)
	return len(tools) > 0, err
}

// present gives the tools of the families and flavours that have our chains.
func present(o Options) (tools []*tool, err error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, err
	}
	for _, f := range []Flavour{NFT, Legacy} {
		if o.Flavour != Auto && o.Flavour != f {
			continue
		}
		for _, v6 := range []bool{false, true} {
			t, err := newTool(f, v6)
			if err != nil {
				continue // not installed: nothing can have been made with it
			}
			if t.exists("nat", chainServices) || t.exists("filter", chainServices) || t.exists("raw", chainLocalnet) {
				tools = append(tools, t)
			}
		}
	}
	return tools, nil
}

// Close lets go of the kernel.
func (r *Reader) Close() error {
	if r.conntrack != nil {
		return r.conntrack.Close()
	}
	return nil
}

// Table implements dataplane.Reader.
func (r *Reader) Table() (dataplane.Dump, error) {
	d := dataplane.Dump{Dataplane: "iptables", Frontends: []dataplane.Row{}}
	for _, t := range r.tools {
		saved, err := t.save(context.Background())
		if err != nil {
			return d, err
		}
		rows, err := rows(saved["nat"])
		if err != nil {
			return d, fmt.Errorf("read %s: %w", command(t.flavour, t.v6, ""), err)
		}
		d.Frontends = append(d.Frontends, rows...)
	}
	dataplane.SortRows(d.Frontends)
	return d, nil
}

// Conntrack implements dataplane.Reader: the kernel's flows to Frontends.
func (r *Reader) Conntrack() ([]dataplane.ConntrackRow, error) {
	d, err := r.Table()
	if err != nil {
		return nil, err
	}
	if r.conntrack == nil {
		if r.conntrack, err = netfilter.Open(); err != nil {
			return nil, err
		}
	}
	return r.conntrack.Flows(netfilter.Lookup(d.Frontends))
}

// Counters implements dataplane.Reader. The nat table sees the first packet of
// a connection and no other: there are connections, and no packets or bytes.
// They are counted from when the Frontend got its present policy; a change of
// its Backends does not begin anew.
func (r *Reader) Counters() ([]dataplane.CounterRow, []dataplane.DropRow, error) {
	return counters(context.Background(), r.tools)
}

// dropChains are the chains of the filter table that refuse, and why.
var dropChains = []struct{ reason, chain string }{
	{"no_backends", chainReject}, {"no_local_backends", chainNoLocal}, {"unknown_port", chainUnknown}, {"source_range", chainRange},
}

func counters(ctx context.Context, tools []*tool) ([]dataplane.CounterRow, []dataplane.DropRow, error) {
	type port struct{ service, name string }
	sums := map[port]uint64{}
	drops := make([]dataplane.DropRow, len(dropChains))
	for _, t := range tools {
		saved, err := t.save(ctx)
		if err != nil {
			return nil, nil, err
		}
		ports, err := kernelPorts(saved["nat"])
		if err != nil {
			return nil, nil, err
		}
		for _, p := range ports {
			sums[port{p.service, p.portName}] += p.connections
		}
		for i, d := range dropChains {
			drops[i].Reason = d.reason
			drops[i].Count += saved["filter"].packetsOf(d.chain)
		}
	}
	rows := make([]dataplane.CounterRow, 0, len(sums))
	for p, n := range sums {
		rows = append(rows, dataplane.CounterRow{Service: p.service, PortName: p.name, Connections: n})
	}
	slices.SortFunc(rows, func(a, b dataplane.CounterRow) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.PortName, b.PortName))
	})
	return rows, drops, nil
}
