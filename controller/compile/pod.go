// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"fmt"
	"net/netip"
	"unique"

	corev1 "k8s.io/api/core/v1"

	"fairlead.dev/dataplane"
)

// pod is what compile keeps of a Pod that has hostPorts.
type pod struct {
	rank int64
	// ips has the Pod's first address of each family.
	ips   [2]netip.Addr
	ports []hostPort
}

type hostPort struct {
	name     unique.Handle[string]
	protocol dataplane.Protocol
	// hostIP is the invalid Addr for every address of every family, and
	// unspecified for every one of its own.
	hostIP              netip.Addr
	hostPort, container uint16
}

// parsePod returns nil for a Pod without hostPorts in force: one of the host
// network, one that ended, or one that has no address yet.
func parsePod(p *corev1.Pod) (*pod, []string) {
	if p.Spec.HostNetwork || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return nil, nil
	}
	out := &pod{rank: p.CreationTimestamp.Unix()}
	var reasons []string
	for i := range p.Spec.InitContainers {
		// Only sidecars (KEP-753) run beside the Pod's containers.
		if r := p.Spec.InitContainers[i].RestartPolicy; r != nil && *r == corev1.ContainerRestartPolicyAlways {
			reasons = append(reasons, out.addPorts(p.Spec.InitContainers[i].Ports)...)
		}
	}
	for i := range p.Spec.Containers {
		reasons = append(reasons, out.addPorts(p.Spec.Containers[i].Ports)...)
	}
	if len(out.ports) == 0 {
		return nil, reasons
	}
	reasons = append(reasons, out.addIPs(p)...)
	if out.ips == [2]netip.Addr{} {
		return nil, reasons
	}
	return out, reasons
}

func (p *pod) addIPs(in *corev1.Pod) (reasons []string) {
	ips := in.Status.PodIPs
	if len(ips) == 0 && in.Status.PodIP != "" {
		ips = []corev1.PodIP{{IP: in.Status.PodIP}}
	}
	for _, ip := range ips {
		a, err := parseAddr(ip.IP)
		if err == nil {
			if why := unusable(a); why != "" {
				err = fmt.Errorf("%s is %s", a, why)
			}
		}
		if err != nil {
			reasons = append(reasons, fmt.Sprintf("podIP %v; it is ignored", err))
			continue
		}
		if f := familyOf(a); !p.ips[f].IsValid() {
			p.ips[f] = a
		}
	}
	return reasons
}

func (p *pod) addPorts(ports []corev1.ContainerPort) (reasons []string) {
	for i := range ports {
		in := &ports[i]
		if in.HostPort == 0 {
			continue
		}
		host, hostOK := parsePort(in.HostPort)
		container, containerOK := parsePort(in.ContainerPort)
		if !hostOK || !containerOK {
			reasons = append(reasons, fmt.Sprintf("hostPort %d to containerPort %d: not in 1 to 65535; it is ignored", in.HostPort, in.ContainerPort))
			continue
		}
		proto, err := parseProtocol(string(in.Protocol))
		if err != nil {
			reasons = append(reasons, fmt.Sprintf("hostPort %d: %v; it is ignored", in.HostPort, err))
			continue
		}
		out := hostPort{name: unique.Make(in.Name), protocol: proto, hostPort: host, container: container}
		if in.HostIP != "" {
			if out.hostIP, err = parseAddr(in.HostIP); err != nil {
				reasons = append(reasons, fmt.Sprintf("hostPort %d: hostIP %v; it is ignored", in.HostPort, err))
				continue
			}
		}
		p.ports = append(p.ports, out)
	}
	return reasons
}

// addresses are those of the node at which a hostPort arrives, of one family.
func (h *hostPort) addresses(n *nodeView, f family) (addrs []netip.Addr, problem string) {
	switch {
	case !h.hostIP.IsValid():
		return n.hostPort[f], ""
	case familyOf(h.hostIP) != f:
		return nil, ""
	case h.hostIP.IsUnspecified():
		return n.hostPort[f], ""
	case h.hostIP.IsLoopback() || n.isOwn(h.hostIP):
		return []netip.Addr{h.hostIP}, ""
	}
	return nil, fmt.Sprintf("hostPort %d: hostIP %s is not an address of this node; it is ignored", h.hostPort, h.hostIP)
}
