// SPDX-License-Identifier: Apache-2.0

package resilience

import (
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
)

const (
	servicePort     = 80
	steadyNodePort  = 30080
	churnedNodePort = 30081
)

func steadyService() *corev1.Service {
	return newService("steady", 1, port{"main", servicePort, steadyNodePort})
}

func churnedService() *corev1.Service {
	return newService("churned", 2, port{"main", servicePort, churnedNodePort})
}

// client is where load comes from: a path that a connection's decision takes.
type client struct {
	member   string
	nodePort bool // asks node1's NodePort, not the ClusterIP
}

// clients are decided at the socket (client, host1) or per packet (bypass,
// outside).
var clients = []client{{"client", false}, {"bypass", false}, {"outside", true}, {"host1", false}, {"host1", true}}

// at is where a client asks a Service of the given number and NodePort.
func (b *bed) at(c client, number, nodePort int, ipv6 bool) netip.AddrPort {
	addr, port := netip.AddrFrom4([4]byte{10, 96, 1, byte(number)}), uint16(servicePort)
	if ipv6 {
		addr = netip.MustParsePrefix("fd00:10:96::1:0/112").Addr()
		last := addr.As16()
		last[15] = byte(number)
		addr = netip.AddrFrom16(last)
	}
	if c.nodePort {
		addr, port = b.node.PrimaryIPv4, uint16(nodePort)
		if ipv6 {
			addr = b.node.PrimaryIPv6
		}
	}
	return netip.AddrPortFrom(addr, port)
}

// everyPath starts a load process for each client. streams makes what asks one
// of the Services (1 is steady, 2 is churned) at one address.
func (b *bed) everyPath(streams func(client, netip.AddrPort) []stream, plan loadPlan, services ...int) (loads []*load) {
	b.t.Helper()
	for _, c := range clients {
		plan := plan
		for _, ipv6 := range []bool{false, true} {
			for _, number := range services {
				nodePort := steadyNodePort + number - 1
				plan.Streams = append(plan.Streams, streams(c, b.at(c, number, nodePort, ipv6))...)
			}
		}
		loads = append(loads, b.load(c.member, plan))
	}
	return loads
}

// streamsFor is the load of the kill test on one address: new connections, and
// two held ones of each kind.
func streamsFor(_ client, at netip.AddrPort) []stream {
	to := []netip.AddrPort{at}
	s := []stream{
		{Mode: tcpFresh, To: to, Every: 80 * time.Millisecond},
		{Mode: udpFresh, To: to, Every: 80 * time.Millisecond},
		{Mode: udpSendto, To: to, Every: 200 * time.Millisecond},
		{Mode: udpShared, To: to, Every: 200 * time.Millisecond},
	}
	for range 2 {
		s = append(s, stream{Mode: tcpHeld, To: to, Every: 200 * time.Millisecond}, stream{Mode: udpHeld, To: to, Every: 200 * time.Millisecond})
	}
	return s
}
