// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"fairlead.dev/dataplane"
)

// portName is the name of a Service port.
type portName struct {
	service dataplane.ServiceName
	port    string
}

// found is a Frontend as the table describes it.
type found struct {
	dataplane.FrontendKey
	port            uint32
	kind            dataplane.Kind
	affinitySeconds uint32
	marks           [2]uint32 // by scope; 0: it has no Backends there
}

// decoded is what the table says, without what contradicts itself.
type decoded struct {
	names     map[uint32]portName
	frontends []found
	members   map[uint32]map[netip.AddrPort]uint32 // flags by mark
	homes     map[uint32]map[netip.AddrPort]uint32 // marks by port
	vips      map[netip.Addr]bool
}

func decode(all elements) decoded {
	d := decoded{
		names: namesIn(all), members: map[uint32]map[netip.AddrPort]uint32{},
		homes: map[uint32]map[netip.AddrPort]uint32{}, vips: map[netip.Addr]bool{},
	}
	for k, v := range all {
		switch strings.TrimRight(k.set, "46") {
		case "frontends":
			if f, ok := parseFrontend([]byte(k.key), v.comment); ok {
				d.frontends = append(d.frontends, f)
			}
		case "members":
			putBackend(d.members, k.key, v.value)
		case "homes":
			putBackend(d.homes, k.key, v.value)
		case "vips":
			if a, ok := netip.AddrFromSlice([]byte(k.key)); ok {
				d.vips[a] = true
			}
		}
	}
	slices.SortFunc(d.frontends, func(a, b found) int { return a.Compare(b.FrontendKey) })
	return d
}

func parseFrontend(key []byte, comment string) (f found, ok bool) {
	if f.FrontendKey, ok = parseFrontendKey(key); !ok {
		return f, false
	}
	n, err := fmt.Sscanf(comment, "%d %d %d %x %x", &f.port, &f.kind, &f.affinitySeconds, &f.marks[0], &f.marks[1])
	return f, err == nil && n == 5
}

func putBackend(to map[uint32]map[netip.AddrPort]uint32, key string, value uint32) {
	n, a, ok := parseBackendKey([]byte(key))
	if !ok {
		return
	}
	if to[n] == nil {
		to[n] = map[netip.AddrPort]uint32{}
	}
	to[n][a] = value
}

// namesIn joins the parts of names.
func namesIn(all elements) map[uint32]portName {
	type part struct {
		index uint32
		text  string
	}
	parts := map[uint32][]part{}
	for k, v := range all {
		if k.set == "names" && len(k.key) == 8 {
			id := binary.NativeEndian.Uint32([]byte(k.key))
			parts[id] = append(parts[id], part{binary.NativeEndian.Uint32([]byte(k.key)[4:]), v.comment})
		}
	}
	out := map[uint32]portName{}
	for id, list := range parts {
		slices.SortFunc(list, func(a, b part) int { return cmp.Compare(a.index, b.index) })
		var full strings.Builder
		for _, p := range list {
			full.WriteString(p.text)
		}
		service, port, _ := strings.Cut(full.String(), " ")
		if name, err := dataplane.ParseServiceName(service); err == nil {
			out[id] = portName{name, port}
		}
	}
	return out
}

// states are the Services as a planner has to know them from before.
func (d decoded) states() map[dataplane.ServiceName]*state {
	out := map[dataplane.ServiceName]*state{}
	servers := map[uint32]*want{}
	portOf := func(id uint32) *port {
		name, ok := d.names[id]
		if !ok {
			return nil
		}
		st := out[name.service]
		if st == nil {
			st = &state{ports: map[string]*port{}}
			out[name.service] = st
		}
		if st.ports[name.port] == nil {
			st.ports[name.port] = &port{id: id}
		}
		return st.ports[name.port]
	}
	for _, f := range d.frontends {
		po := portOf(f.port)
		if po == nil {
			continue
		}
		for scope, mark := range f.marks {
			if mark == 0 {
				continue
			}
			w := servers[mark]
			if w == nil {
				w = newWant(familyOf(f.Address), f.Protocol)
				w.mark = mark
				servers[mark] = w
				po.servers = append(po.servers, w)
			}
			w.uses = append(w.uses, use{f.FrontendKey, dataplane.Scope(scope)})
		}
		for a, mark := range d.homes[f.port] {
			if servers[mark] == nil && familyOf(a.Addr()) == familyOf(f.Address) {
				w := newWant(familyOf(a.Addr()), f.Protocol)
				w.mark, w.weights[a] = mark, 1
				servers[mark] = w
				po.servers = append(po.servers, w)
			}
		}
	}
	return out
}

// claim takes every number that is in use.
func (p *planner) claim(d decoded, servers map[uint32]*server) {
	for id := range d.names {
		p.ports.claim(id)
	}
	for mark := range servers {
		if n := numberOf(mark); n != sentinelNumber {
			p.number.claim(n)
		}
	}
	for _, f := range d.frontends {
		p.ports.claim(f.port)
		for _, mark := range f.marks {
			if mark != 0 {
				p.number.claim(numberOf(mark))
			}
		}
	}
	for _, homes := range d.homes {
		for _, mark := range homes {
			p.number.claim(numberOf(mark))
		}
	}
}
