// SPDX-License-Identifier: Apache-2.0

// Package kernel gathers the facts that package explain judges by: what a
// Dataplane left in the kernel, the node's routes, flows and affinity. It reads
// the network namespace of the calling thread, changes nothing, and decides
// nothing.
package kernel

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
	"fairlead.dev/explain"
)

// Options say what the kernel can't.
type Options struct {
	// From is the side the client's packets come from, empty: what the routing
	// table says.
	From explain.Origin
	// PacketPath: the client's sockets pass no hook.
	PacketPath bool
}

// Explain answers a question.
func Explain(r dataplane.Inspector, q explain.Question, o Options) (explain.Answer, error) {
	q, f, err := Gather(r, q, o)
	if err != nil {
		return explain.Answer{}, err
	}
	return explain.Judge(q, f), nil
}

// Gather reads the facts. The question it returns has a client: a process of
// the node has the address of its route to the destination.
func Gather(r dataplane.Inspector, q explain.Question, o Options) (explain.Question, explain.Facts, error) {
	f := explain.Facts{PacketPath: o.PacketPath}
	var err error
	if f.Inspection, err = r.Inspect(q.To); err != nil {
		return q, f, err
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return q, f, fmt.Errorf("open netlink socket: %w", err)
	}
	defer h.Close()
	t := newTable(h)
	if q, err = t.place(q, o, &f); err != nil {
		return q, f, err
	}
	if front := f.Inspection.Frontend; front != nil {
		for _, set := range []dataplane.BackendSet{front.Internal, front.External} {
			for i := range set.Backends {
				if _, err := t.to(set.Backends[i].Address); err != nil {
					return q, f, err
				}
			}
		}
	}
	f.Ways = t.ways
	return q, f, remembered(r, q, &f)
}

// place finds out where the client is.
func (t *table) place(q explain.Question, o Options, f *explain.Facts) (explain.Question, error) {
	there, err := t.to(q.To.Address)
	if err != nil {
		return q, err
	}
	if !q.Client.IsValid() {
		if o.From != "" && o.From != explain.FromNode {
			return q, fmt.Errorf("--from %s: say which client, as only a process of the node needs no address", o.From)
		}
		if q.Client = there.Source; !q.Client.IsValid() {
			return q, fmt.Errorf("the node has no route to %s (%s): say which client", q.To.Address, there)
		}
		f.Origin, f.OriginHow, f.Device = explain.FromNode, "a process of this node asks", there.Device
		return q, nil
	}
	back := explain.Way{Local: true}
	if !q.Client.IsLoopback() {
		if back, err = t.to(q.Client); err != nil {
			return q, err
		}
	}
	if why, is := f.Inspection.Unreadable(dataplane.UnreadUplinks); is && o.From == "" && !back.Local {
		return q, fmt.Errorf("%s: say where client %s is with --from pod, node or outside", why, q.Client)
	}
	uplink := explain.IsUplink(&f.Inspection.Rules, back.Device)
	switch {
	case o.From != "":
		f.Origin, f.OriginHow = o.From, fmt.Sprintf("%s comes from %s, as --from says", q.Client, side(o.From))
	case back.Unreachable != "":
		return q, fmt.Errorf("the node has no route to client %s (%s), so it is not known where that is: give --from pod, node or outside", q.Client, back.Unreachable)
	case back.Local:
		f.Origin, f.OriginHow = explain.FromNode, q.Client.String()+" is an address of this node"
	case uplink:
		f.Origin, f.OriginHow = explain.FromOutside, fmt.Sprintf("%s comes in by %s, an uplink, as the node's routes have it", q.Client, back.Device)
	default:
		f.Origin, f.OriginHow = explain.FromPod, fmt.Sprintf("%s comes in by %s, which is no uplink, as the node's routes have it", q.Client, back.Device)
	}
	switch {
	case f.Origin == explain.FromNode:
		f.Device = there.Device
	case uplink == (f.Origin == explain.FromOutside): // else --from contradicts the route, and the device is not known
		f.Device = back.Device
	}
	return q, nil
}

func side(o explain.Origin) string {
	switch o {
	case explain.FromPod:
		return "a pod of this node"
	case explain.FromNode:
		return "this node"
	}
	return "outside this node"
}

// remembered reads the flows of the client, and the affinity of the Service
// port.
func remembered(r dataplane.Inspector, q explain.Question, f *explain.Facts) error {
	front := f.Inspection.Frontend
	flows, err := r.Flows(q.To)
	if err != nil {
		return err
	}
	for _, row := range flows {
		if row.Client.Addr() != q.Client || q.ClientPort != 0 && q.ClientPort != row.Client.Port() {
			continue
		}
		if row.Service == "" && front != nil {
			row.Service, row.PortName = f.Inspection.Service.String(), front.PortName
		}
		f.Flows = append(f.Flows, row)
	}
	if front == nil || front.AffinitySeconds == 0 {
		return nil
	}
	clients, err := r.Affinity()
	if err != nil {
		f.Unknown = append(f.Unknown, fmt.Sprintf("affinity is not readable: %v", err))
		return nil
	}
	for _, row := range clients {
		if row.Service == f.Inspection.Service.String() && row.PortName == front.PortName {
			f.Affinity = append(f.Affinity, row)
		}
	}
	return nil
}
