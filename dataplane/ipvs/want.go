// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"fairlead.dev/dataplane"
)

// state is what the kernel holds, or is to hold, of one Service.
type state struct {
	service *dataplane.Service // nil where it was read from the kernel
	ports   map[string]*port
	// own elements belong to this Service alone; shared ones (addresses and
	// Backends of this node) may be other Services' too.
	own, shared elements
	vips        map[netip.Addr]bool
}

// port is a Service port.
type port struct {
	id      uint32
	servers []*want
}

// want is a virtual server as it should be.
type want struct {
	mark     uint32
	family   *family
	protocol dataplane.Protocol
	// uses are the Frontends, in a scope each, that have it. Empty: it is the
	// own server of one Backend, for affinity.
	uses []use
	// weights of its destinations, 1 or 0.
	weights map[netip.AddrPort]int
	// keep are Backends that may keep the flows they have.
	keep map[netip.AddrPort]bool
}

type use struct {
	dataplane.FrontendKey
	scope dataplane.Scope
}

func (w *want) home() bool { return len(w.uses) == 0 }

// planner makes the state of a Service from the one before: numbers and marks
// of what goes on stay as they are.
type planner struct {
	marks  marks
	ports  *numbers
	number *numbers
	// nodeAddresses are others' as well as the Service's.
	nodeAddresses map[netip.Addr]bool
}

// plan gives the state that a Service is to have. before may be nil. On an
// error nothing is taken.
func (p *planner) plan(s *dataplane.Service, before *state) (*state, error) {
	st := &state{service: s, ports: map[string]*port{}, own: elements{}, shared: elements{}, vips: map[netip.Addr]bool{}}
	groups := map[string][]*dataplane.Frontend{}
	var names []string
	for i := range s.Frontends {
		f := &s.Frontends[i]
		if groups[f.PortName] == nil {
			names = append(names, f.PortName)
		}
		groups[f.PortName] = append(groups[f.PortName], f)
	}
	for _, name := range names {
		var old *port
		if before != nil {
			old = before.ports[name]
		}
		po, err := p.planPort(groups[name], old)
		if po != nil {
			st.ports[name] = po
		}
		if err != nil {
			p.release(st, before)
			return nil, err
		}
		st.describe(p, name, po, groups[name])
	}
	return st, nil
}

// release gives back the numbers that a state has and another has not.
func (p *planner) release(st, kept *state) {
	ports, servers := map[uint32]bool{}, map[uint32]bool{}
	if kept != nil {
		for _, po := range kept.ports {
			ports[po.id] = true
			for _, w := range po.servers {
				servers[w.mark] = true
			}
		}
	}
	for _, po := range st.ports {
		if !ports[po.id] {
			p.ports.free(po.id)
		}
		for _, w := range po.servers {
			if !servers[w.mark] {
				p.number.free(numberOf(w.mark))
			}
		}
	}
}

// planPort gives Frontends with equal BackendSets one virtual server.
func (p *planner) planPort(frontends []*dataplane.Frontend, old *port) (*port, error) {
	po := &port{}
	claimed := map[uint32]bool{}
	if old != nil {
		po.id = old.id
	} else {
		id, err := p.ports.take()
		if err != nil {
			return nil, err
		}
		po.id = id
	}
	byContent := map[string]*want{}
	for _, f := range frontends {
		for _, scope := range []dataplane.Scope{dataplane.Internal, dataplane.External} {
			set := f.Set(scope)
			if len(set.Backends) == 0 {
				continue
			}
			content := contentOf(f, set)
			w := byContent[content]
			if w == nil {
				w = newWant(familyOf(f.Address), f.Protocol)
				w.fill(set)
				byContent[content] = w
				po.servers = append(po.servers, w)
			}
			w.uses = append(w.uses, use{f.FrontendKey, scope})
			w.keepAll(f)
		}
	}
	if frontends[0].AffinitySeconds > 0 {
		po.addHomes(frontends)
	}
	for _, w := range po.servers {
		w.mark = markBefore(w, old, claimed)
	}
	for _, w := range po.servers {
		if w.mark != 0 {
			continue
		}
		n, err := p.number.take()
		if err != nil {
			return po, err
		}
		w.mark = p.marks.of(n, w.protocol)
	}
	return po, nil
}

func newWant(f *family, proto dataplane.Protocol) *want {
	return &want{family: f, protocol: proto, weights: map[netip.AddrPort]int{}, keep: map[netip.AddrPort]bool{}}
}

func (w *want) fill(set dataplane.BackendSet) {
	for _, b := range set.Backends {
		w.weights[b.AddrPort()] = 0
	}
	for _, b := range set.Eligible() {
		w.weights[b.AddrPort()] = 1
	}
}

func (w *want) keepAll(f *dataplane.Frontend) {
	for _, list := range [][]dataplane.Backend{f.Internal.Backends, f.External.Backends, f.Draining} {
		for _, b := range list {
			w.keep[b.AddrPort()] = true
		}
	}
}

// addHomes gives each Backend that a client can be kept on a server of its own.
func (po *port) addHomes(frontends []*dataplane.Frontend) {
	type id struct {
		protocol dataplane.Protocol
		address  netip.AddrPort
	}
	seen := map[id]bool{}
	for _, f := range frontends {
		for _, set := range []dataplane.BackendSet{f.Internal, f.External} {
			for _, b := range set.Eligible() {
				k := id{f.Protocol, b.AddrPort()}
				if seen[k] {
					continue
				}
				seen[k] = true
				w := newWant(familyOf(b.Address), f.Protocol)
				w.weights[b.AddrPort()] = 1
				w.keep[b.AddrPort()] = true
				po.servers = append(po.servers, w)
			}
		}
	}
}

// contentOf is what makes two BackendSets one virtual server.
func contentOf(f *dataplane.Frontend, set dataplane.BackendSet) string {
	var b strings.Builder
	fmt.Fprint(&b, f.Protocol, f.Address.Is4(), f.AffinitySeconds)
	for _, be := range set.Backends {
		fmt.Fprint(&b, "|", be.AddrPort(), be.State, be.Local, be.HostNetwork)
	}
	return b.String()
}

// markBefore is the mark of the server that had one of the uses, or the same
// Backend, before; 0 if there is none.
func markBefore(w *want, old *port, claimed map[uint32]bool) uint32 {
	if old == nil {
		return 0
	}
	for _, o := range old.servers {
		if claimed[o.mark] || o.family != w.family || o.protocol != w.protocol || o.home() != w.home() {
			continue
		}
		same := false
		if w.home() {
			for a := range w.weights {
				_, same = o.weights[a]
			}
		} else {
			same = slices.ContainsFunc(w.uses, func(u use) bool { return slices.Contains(o.uses, u) })
		}
		if same {
			claimed[o.mark] = true
			return o.mark
		}
	}
	return 0
}

// nameBytes is how much of a name one comment holds.
const nameBytes = 200

// describe makes the elements of a Service port.
func (st *state) describe(p *planner, name string, po *port, frontends []*dataplane.Frontend) {
	full := st.service.Name.String() + " " + name
	for i := 0; i*nameBytes < len(full); i++ {
		st.own.put("names", append(number(po.id), number(uint32(i))...), element{comment: full[i*nameBytes : min(len(full), (i+1)*nameBytes)]})
	}
	marks := map[use]uint32{}
	for _, w := range po.servers {
		for _, u := range w.uses {
			marks[u] = w.mark
		}
	}
	for _, f := range frontends {
		st.describeFrontend(p, po, f, marks)
	}
	sticky := frontends[0].AffinitySeconds
	if sticky > 0 {
		st.own.put("timeouts", number(po.id), element{value: sticky})
	}
	st.describeServers(po, frontends)
}

func (st *state) describeFrontend(p *planner, po *port, f *dataplane.Frontend, marks map[use]uint32) {
	fam, key := familyOf(f.Address), frontendKey(f.FrontendKey)
	v := fam.suffix
	words := []string{fmt.Sprintf("%d %d %d", po.id, f.Kind, f.AffinitySeconds)}
	for _, scope := range []dataplane.Scope{dataplane.Internal, dataplane.External} {
		mark, name := marks[use{f.FrontendKey, scope}], scopeNames[scope]
		words = append(words, fmt.Sprintf("%x", mark))
		switch {
		case mark != 0:
			st.own.put(name+v, key, element{value: mark})
		case f.Set(scope).OnEmpty == dataplane.Drop:
			st.own.put("dropped-"+name+v, key, element{})
		default:
			st.own.put("refused-"+name+v, key, element{})
		}
	}
	st.own.put("frontends"+v, key, element{comment: strings.Join(words, " ")})
	if len(f.SourceRanges) > 0 {
		st.own.put("restricted"+v, key, element{})
		for _, r := range withoutNested(f.SourceRanges) {
			if familyOf(r.Addr()) == fam {
				st.own.put("allowed"+v, pair(key, r.Addr().AsSlice()), element{keyEnd: string(pair(key, lastOf(r).AsSlice()))})
			}
		}
	}
	if f.MasqueradeExternal {
		st.own.put("masquerade"+v, key, element{})
	}
	if f.AffinitySeconds > 0 {
		st.own.put("sticky"+v, key, element{value: po.id})
	}
	if f.Kind != dataplane.NodePort && f.Kind != dataplane.HostPort && !f.Address.IsLoopback() && !p.nodeAddresses[f.Address] {
		st.vips[f.Address] = true
		st.shared.put("vips"+v, f.Address.AsSlice(), element{})
	}
}

func (st *state) describeServers(po *port, frontends []*dataplane.Frontend) {
	homes := map[string]uint32{} // by protocol and Backend
	for _, w := range po.servers {
		if w.home() {
			for a := range w.weights {
				homes[fmt.Sprint(w.protocol, a)] = w.mark
				st.own.put("homes"+w.family.suffix, backendKey(po.id, a), element{value: w.mark})
			}
		}
	}
	for _, f := range frontends {
		for _, scope := range []dataplane.Scope{dataplane.Internal, dataplane.External} {
			w := po.serverOf(use{f.FrontendKey, scope})
			if w == nil {
				continue
			}
			for _, b := range f.Set(scope).Backends {
				st.own.put("members"+w.family.suffix, backendKey(w.mark, b.AddrPort()), element{value: memberFlags(b)})
				if home := homes[fmt.Sprint(f.Protocol, b.AddrPort())]; home != 0 && w.weights[b.AddrPort()] > 0 {
					st.own.put("eligible", pair(number(w.mark), number(home)), element{})
				}
			}
		}
		for _, list := range [][]dataplane.Backend{f.Internal.Backends, f.External.Backends, f.Draining} {
			for _, b := range list {
				if b.Local {
					a := b.Address.AsSlice()
					st.shared.put("local"+familyOf(b.Address).suffix, pair(a, a), element{})
				}
			}
		}
	}
}

func (po *port) serverOf(u use) *want {
	for _, w := range po.servers {
		if slices.Contains(w.uses, u) {
			return w
		}
	}
	return nil
}

func memberFlags(b dataplane.Backend) (flags uint32) {
	if b.State == dataplane.Terminating {
		flags |= memberTerminating
	}
	if b.Local {
		flags |= memberLocal
	}
	if b.HostNetwork {
		flags |= memberHostNetwork
	}
	return flags
}
