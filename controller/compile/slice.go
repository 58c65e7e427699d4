// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
	"unique"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/dataplane"
)

// slice is what compile keeps of an EndpointSlice.
type slice struct {
	service   dataplane.ServiceName
	family    family
	ports     []slicePort
	endpoints []endpoint
}

type slicePort struct {
	name     unique.Handle[string]
	protocol dataplane.Protocol
	port     uint16
}

// endpoint is one that is eligible; others are not kept. It is small because
// there are hundreds of thousands: 40 bytes.
type endpoint struct {
	addr netip.Addr
	// where is shared by all endpoints in the same place with the same hints.
	where unique.Handle[place]
	// terminating endpoints serve but are not ready.
	terminating bool
}

// place is where an endpoint is and who should use it. The name of this node
// may become known later, so names are kept.
type place struct {
	node, zone string
	// forNodes and forZones are the hints, each name followed by hintEnd, so
	// that place is comparable.
	forNodes, forZones string
}

const hintEnd = "\x00"

func hasHint(hints, name string) bool {
	for hint := range strings.SplitSeq(strings.TrimSuffix(hints, hintEnd), hintEnd) {
		if hint == name {
			return name != ""
		}
	}
	return false
}

// parseSlice returns nil for a slice that is no Service's or another proxy's.
func parseSlice(key types.NamespacedName, s *discoveryv1.EndpointSlice) (*slice, []string) {
	name := serviceOf(s)
	if name == "" || isOthers(s.Labels) {
		return nil, nil
	}
	out := &slice{service: dataplane.ServiceName{Namespace: key.Namespace, Name: name}}
	switch s.AddressType {
	case discoveryv1.AddressTypeIPv4:
		out.family = v4
	case discoveryv1.AddressTypeIPv6:
		out.family = v6
	default:
		return nil, []string{fmt.Sprintf("addressType %q is not IPv4 or IPv6; the slice is ignored", clip(string(s.AddressType)))}
	}
	if strings.ContainsAny(name, ":/") {
		return nil, []string{fmt.Sprintf("label %s: %q is not the name of a Service; the slice is ignored", discoveryv1.LabelServiceName, clip(name))}
	}
	var reasons []string
	out.ports, reasons = parseSlicePorts(s.Ports)
	endpoints, more := parseEndpoints(s.Endpoints, out.family)
	out.endpoints = endpoints
	return out, append(reasons, more...)
}

func parseSlicePorts(in []discoveryv1.EndpointPort) (out []slicePort, reasons []string) {
	out = make([]slicePort, 0, len(in))
	for i := range in {
		var name, protocol string
		if in[i].Name != nil {
			name = *in[i].Name
		}
		if in[i].Protocol != nil {
			protocol = string(*in[i].Protocol)
		}
		proto, err := parseProtocol(protocol)
		if err != nil {
			reasons = append(reasons, fmt.Sprintf("port %q: %v; it is ignored", clip(name), err))
			continue
		}
		if in[i].Port == nil {
			// "Not defined", which slices of other uses than Services have.
			continue
		}
		port, ok := parsePort(*in[i].Port)
		if !ok {
			reasons = append(reasons, fmt.Sprintf("port %q: number %d is not in 1 to 65535; it is ignored", clip(name), *in[i].Port))
			continue
		}
		out = append(out, slicePort{name: unique.Make(name), protocol: proto, port: port})
	}
	return out, reasons
}

func parseEndpoints(in []discoveryv1.Endpoint, f family) (out []endpoint, reasons []string) {
	n := 0
	for i := range in {
		if eligible, _ := eligibility(&in[i].Conditions); eligible {
			n++
		}
	}
	out = make([]endpoint, 0, n)
	for i := range in {
		e := &in[i]
		eligible, terminating := eligibility(&e.Conditions)
		if !eligible {
			continue
		}
		addr, err := endpointAddr(e, f)
		if err != nil {
			reasons = append(reasons, fmt.Sprintf("endpoint %v; it is ignored", err))
			continue
		}
		out = append(out, endpoint{addr: addr, where: placeOf(e), terminating: terminating})
	}
	return out, reasons
}

// eligibility applies the documented meaning of the conditions (KEP-1672,
// discovery/v1 EndpointConditions): nil ready and nil serving are true. Ready
// decides alone: the controller sets it on a terminating endpoint where the
// Service has publishNotReadyAddresses.
func eligibility(c *discoveryv1.EndpointConditions) (eligible, terminating bool) {
	if c.Ready == nil || *c.Ready {
		return true, false
	}
	serving := c.Serving == nil || *c.Serving
	if serving && c.Terminating != nil && *c.Terminating {
		return true, true
	}
	return false, false
}

// endpointAddr is the first address: the API defines no meaning for others.
func endpointAddr(e *discoveryv1.Endpoint, f family) (netip.Addr, error) {
	if len(e.Addresses) == 0 {
		return netip.Addr{}, fmt.Errorf("without an address")
	}
	a, err := parseAddr(e.Addresses[0])
	if err != nil {
		return netip.Addr{}, err
	}
	if familyOf(a) != f {
		return netip.Addr{}, fmt.Errorf("%s is not of the slice's addressType", a)
	}
	why := unusable(a)
	if why == "" && a.IsLinkLocalUnicast() {
		why = "a link-local address"
	}
	if why != "" {
		return netip.Addr{}, fmt.Errorf("%s is %s", a, why)
	}
	return a, nil
}

func placeOf(e *discoveryv1.Endpoint) unique.Handle[place] {
	var p place
	if e.NodeName != nil {
		p.node = *e.NodeName
	}
	if e.Zone != nil {
		p.zone = *e.Zone
	}
	if h := e.Hints; h != nil {
		var nodes, zones strings.Builder
		for i := range h.ForNodes {
			nodes.WriteString(h.ForNodes[i].Name + hintEnd)
		}
		for i := range h.ForZones {
			zones.WriteString(h.ForZones[i].Name + hintEnd)
		}
		p.forNodes, p.forZones = nodes.String(), zones.String()
	}
	return unique.Make(p)
}

// triggerTime is when the change happened that a slice was written for.
func triggerTime(s *discoveryv1.EndpointSlice) (time.Time, bool) {
	v, ok := s.Annotations[corev1.EndpointsLastChangeTriggerTime]
	if !ok {
		return time.Time{}, false
	}
	t, err := time.Parse(time.RFC3339Nano, v)
	return t, err == nil
}
