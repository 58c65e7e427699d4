// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"net/netip"
	"slices"

	"fairlead.dev/dataplane"
)

var _ dataplane.Inspector = (*Reader)(nil)

// Inspect implements dataplane.Inspector. It asks for single elements, so that
// its cost does not follow the number of Services.
func (r *Reader) Inspect(at dataplane.FrontendKey) (*dataplane.Inspection, error) {
	for attempt := 0; ; attempt++ {
		before, err := r.kernel.generation()
		if err != nil {
			return nil, err
		}
		l := &look{kernel: r.kernel, family: familyOf(at.Address), at: at}
		in, err := l.inspect()
		if err == nil {
			var after uint32
			if after, err = r.kernel.generation(); err == nil && after != before {
				err = errInterrupted
			}
		}
		if !errors.Is(err, errInterrupted) || attempt == readAttempts {
			return in, err
		}
	}
}

// Flows implements dataplane.Inspector.
func (r *Reader) Flows(to dataplane.FrontendKey) ([]dataplane.ConntrackRow, error) {
	return r.conntrack.Flows(func(k dataplane.FrontendKey) (name, portName string, ok bool) { return "", "", k == to })
}

// look is one look at a destination.
type look struct {
	kernel *socket
	family *family
	at     dataplane.FrontendKey

	first, rest string // of the names
	there       bool
	actions     [2]uint32
	idle        [2]int
	split       bool
	restricted  bool
	keepsSource bool
	clusterIP   bool
	sets        [2][]dataplane.Backend
	local       map[netip.Addr]bool // setLocalBackends has it
}

func (l *look) inspect() (*dataplane.Inspection, error) {
	in := &dataplane.Inspection{Dataplane: "nftables"}
	if err := l.readRules(in); err != nil {
		return nil, err
	}
	if err := l.readTuple(); err != nil {
		return nil, err
	}
	if !l.there {
		if l.clusterIP {
			in.RefusedPort = "the address is a ClusterIP"
		}
		return in, nil
	}
	n, ok := parseNames(l.first + l.rest)
	if !ok {
		return nil, errors.New("table fairlead: Frontend " + l.at.String() + " has no names: no agent made it")
	}
	if err := l.readSlots(); err != nil {
		return nil, err
	}
	f := &dataplane.Frontend{
		FrontendKey: l.at, Kind: n.kind, PortName: n.portName, AffinitySeconds: n.affinitySeconds, MasqueradeExternal: !l.keepsSource,
	}
	if l.restricted {
		var err error
		if f.SourceRanges, err = l.readRanges(); err != nil {
			return nil, err
		}
	}
	f.Internal = l.set(dataplane.Internal)
	f.External = f.Internal
	if l.split {
		f.External = l.set(dataplane.External)
	}
	name, err := dataplane.ParseServiceName(n.service)
	if err != nil {
		return nil, err
	}
	in.Frontend, in.Service = f, name
	in.Unread = []dataplane.Unread{{Part: dataplane.UnreadDraining,
		Why: "not readable from nftables: draining Backends, which only keep the flows they have"}}
	return in, nil
}

// readTuple asks for what there is one of.
func (l *look) readTuple() error {
	q := &question{kernel: l.kernel, family: l.family, see: func(id setID, e *element) {
		switch id {
		case setServices:
			l.there, l.first = true, e.comment
		case setFrontends:
			l.rest, l.actions[0], l.idle[0] = e.comment, wideU32(e.data), int(nativeU32(e.data[:min(len(e.data), wideBytes)]))
		case setFrontendsExternal:
			l.split = true
			l.actions[1], l.idle[1] = wideU32(e.data), int(nativeU32(e.data[:min(len(e.data), wideBytes)]))
		case setRestricted:
			l.restricted = true
		case setKeepSource:
			l.keepsSource = true
		case setClusterIPs:
			l.clusterIP = true
		}
	}}
	key := appendTuple(nil, l.at)
	for _, id := range []setID{setServices, setFrontends, setFrontendsExternal, setRestricted, setKeepSource} {
		if err := q.ask(id, key); err != nil {
			return err
		}
	}
	if err := q.ask(setClusterIPs, appendAddress(nil, l.at.Address)); err != nil {
		return err
	}
	return q.flush()
}

// readSlots asks for the Backends that the actions tell of, and which of them
// have a network of their own on this node.
func (l *look) readSlots() error {
	scope := dataplane.Internal
	l.local = map[netip.Addr]bool{}
	q := &question{kernel: l.kernel, family: l.family, see: func(id setID, e *element) {
		switch id {
		case setLocalBackends:
			a, _ := netip.AddrFromSlice(e.key[:min(len(e.key), l.family.addressBytes)])
			l.local[a] = true
		default:
			if b, ok := l.slot(id, e); ok {
				l.sets[scope] = append(l.sets[scope], b)
			}
		}
	}}
	for _, scope = range bothScopes {
		set, n, err := l.slotsOf(scope)
		if err != nil {
			return err
		}
		for i := range n + l.idle[scope] {
			key := binary.NativeEndian.AppendUint32(appendTuple(nil, l.at), slotIndex(i, n))
			if err := q.ask(set, key); err != nil {
				return err
			}
		}
		if err := q.flush(); err != nil {
			return err
		}
	}
	for _, set := range l.sets {
		for _, b := range set {
			if err := q.ask(setLocalBackends, appendAddress(appendAddress(nil, b.Address), b.Address)); err != nil {
				return err
			}
		}
	}
	return q.flush()
}

// slotsOf says where the slots of a scope are, and how many are eligible.
func (l *look) slotsOf(scope dataplane.Scope) (set setID, n int, err error) {
	switch number := l.actions[scope]; {
	case scope == dataplane.External && !l.split, number == actionReject, number == actionDrop:
		return slotSets[scope], 0, nil
	case number < actionSticky:
		return slotSets[scope], int(number), nil
	}
	id := []setID{setActions, setActionsExternal}[scope]
	q := &question{kernel: l.kernel, family: l.family, see: func(_ setID, e *element) {
		if p, ok := parsePick(e.chain); ok {
			n = p.backends
		}
	}}
	if err = q.ask(id, native32(l.actions[scope])); err == nil {
		err = q.flush()
	}
	return stickySets[scope], n, err
}

func (l *look) slot(id setID, e *element) (b dataplane.Backend, ok bool) {
	at, ok := l.family.decodeBackend(slotData(id, e))
	if !ok {
		return b, false
	}
	b.Address, b.Port = at.Addr(), at.Port()
	b.Local = e.comment == slotComments[1] || e.comment == slotComments[3]
	if e.comment == slotComments[2] || e.comment == slotComments[3] {
		b.State = dataplane.Terminating
	}
	return b, true
}

func (l *look) set(scope dataplane.Scope) dataplane.BackendSet {
	out := dataplane.BackendSet{Backends: l.sets[scope]}
	if l.actions[scope] == actionDrop {
		out.OnEmpty = dataplane.Drop
	}
	for i := range out.Backends {
		b := &out.Backends[i]
		b.HostNetwork = b.Local && !l.local[b.Address]
	}
	slices.SortFunc(out.Backends, dataplane.CompareBackends)
	return out
}

// readRanges lists the source ranges of the Frontend among all.
func (l *look) readRanges() (out []netip.Prefix, err error) {
	n := l.family.tupleBytes()
	err = l.kernel.listElements(l.family, setAllowed, func(e *element) {
		if k, ok := l.family.decodeTuple(e.key); !ok || k != l.at || len(e.key) < n || len(e.keyEnd) < n {
			return
		}
		first, _ := netip.AddrFromSlice(e.key[n:])
		last, _ := netip.AddrFromSlice(e.keyEnd[n:])
		if p, ok := prefixOf(first, last); ok {
			out = append(out, p)
		}
	})
	slices.SortFunc(out, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return out, err
}

// prefixOf is the prefix that begins and ends with two addresses.
func prefixOf(first, last netip.Addr) (netip.Prefix, bool) {
	for bits := range first.BitLen() + 1 {
		if p := netip.PrefixFrom(first, bits); p.Masked() == p && lastOf(p) == last {
			return p, true
		}
	}
	return netip.Prefix{}, false
}
