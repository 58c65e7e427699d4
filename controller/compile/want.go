// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"net/netip"
	"slices"

	"fairlead.dev/dataplane"
)

// want is a Frontend that an owner asks for. Which are wanted follows from the
// object and the node alone, never from endpoints or other owners, so claims
// are only disturbed where one of those two changed.
type want struct {
	dataplane.FrontendKey
	kind dataplane.Kind
	// port is the index of the Service port or hostPort it comes from.
	port int
}

// wants lists what o asks for, sorted by key, each key once.
func (c *Compiler) wants(o *owner) (ws []want, reasons []string) {
	w := wanter{node: &c.node, opts: &c.opts}
	if o.service != nil {
		w.service(o.service)
	}
	if o.pod != nil {
		w.pod(o.pod)
	}
	w.settle()
	return w.out, w.reasons
}

type wanter struct {
	node    *nodeView
	opts    *Options
	out     []want
	reasons []string
	dropped int
}

func (w *wanter) add(a netip.Addr, port uint16, proto dataplane.Protocol, k dataplane.Kind, index int) {
	if len(w.out) >= w.opts.MaxFrontendsPerService {
		w.dropped++
		return
	}
	w.out = append(w.out, want{dataplane.FrontendKey{Address: a, Port: port, Protocol: proto}, k, index})
}

func (w *wanter) service(s *service) {
	for _, f := range families {
		if a := s.clusterIPs[f]; a.IsValid() {
			w.everyPort(s, []netip.Addr{a}, dataplane.ClusterIP)
		}
	}
	for _, f := range families {
		if !s.clusterIPs[f].IsValid() {
			continue
		}
		for i := range s.ports {
			p := &s.ports[i]
			if p.nodePort == 0 {
				continue
			}
			for _, a := range w.node.nodePort[f] {
				w.add(a, p.nodePort, p.protocol, dataplane.NodePort, i)
			}
		}
	}
	w.everyPort(s, s.ingress, dataplane.LoadBalancer)
	w.everyPort(s, s.externalIPs, dataplane.ExternalIP)
}

// everyPort wants all ports of s at each address that a Service may claim.
func (w *wanter) everyPort(s *service, addrs []netip.Addr, k dataplane.Kind) {
	for _, a := range addrs {
		if why := w.node.refuses(a, k); why != "" {
			w.reasons = append(w.reasons, fmt.Sprintf("%v %s is %s, which no Service can claim; it is ignored", k, a, why))
			continue
		}
		if !w.policy(k).allows(a) {
			w.reasons = append(w.reasons, fmt.Sprintf("%v %s is not among those that this node's agent lets Services claim; it is ignored", k, a))
			continue
		}
		for i := range s.ports {
			w.add(a, s.ports[i].port, s.ports[i].protocol, k, i)
		}
	}
}

// policy is the one for a kind. ClusterIPs are given by the API server, or the
// directory's Source, and need none.
func (w *wanter) policy(k dataplane.Kind) AddressPolicy {
	switch k {
	case dataplane.ExternalIP:
		return w.opts.ExternalIPs
	case dataplane.LoadBalancer:
		return w.opts.LoadBalancerIPs
	}
	return AddressPolicy{}
}

func (w *wanter) pod(p *pod) {
	for i := range p.ports {
		h := &p.ports[i]
		for _, f := range families {
			addrs, problem := h.addresses(w.node, f)
			if problem != "" {
				w.reasons = append(w.reasons, problem)
			}
			if !p.ips[f].IsValid() {
				continue
			}
			for _, a := range addrs {
				w.add(a, h.hostPort, h.protocol, dataplane.HostPort, i)
			}
		}
	}
}

// settle makes keys unique; of wants with one key the first that was added
// stays. One owner may want a key twice: as the address of its load balancer
// and as externalIP, where the former wins because its source ranges hold; or,
// against the API's rules, from two ports, where the first port wins.
func (w *wanter) settle() {
	slices.SortStableFunc(w.out, func(a, b want) int {
		return a.FrontendKey.Compare(b.FrontendKey)
	})
	kept := w.out[:0]
	for _, x := range w.out {
		if n := len(kept); n > 0 && kept[n-1].FrontendKey == x.FrontendKey {
			if kept[n-1].port != x.port {
				w.reasons = append(w.reasons, fmt.Sprintf("%v %s: two ports of this object want it; the first has it", x.kind, x.FrontendKey))
			}
			continue
		}
		kept = append(kept, x)
	}
	w.out = kept
	if w.dropped > 0 {
		w.reasons = append(w.reasons, fmt.Sprintf("more than %d Frontends; %d are left out", w.opts.MaxFrontendsPerService, w.dropped))
	}
}
