// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net/netip"

	"golang.org/x/sys/unix"
)

// connectServices is how large the cluster is that connects are measured in.
const connectServices = 1000

// perBlock is how many sockets each variant has in one block.
const perBlock = 200

// The variants of a connect, in the order of their columns.
const (
	bareVariant     = iota // a node without fairlead
	unhookedVariant        // fairlead's node, a cgroup without hooks
	directVariant          // hooks, to the pod's address
	serviceVariant         // hooks, to the ClusterIP
)

// connect measures all variants in one run, in turns.
func (b *bench) connect(context.Context) error {
	say("connect: %d blocks of %d connects of each kind", b.blocks, perBlock)
	a, err := b.startInner(loadOrder{Services: connectServices})
	if err != nil {
		return err
	}
	defer a.stop()
	client, err := b.lab.start("client", b.lab.hooked.client, a.place.pods)
	if err != nil {
		return err
	}
	defer client.stop()
	for _, c := range []struct {
		name     string
		protocol int
		ipv6     bool
	}{
		{"TCP IPv4", unix.IPPROTO_TCP, false}, {"TCP IPv6", unix.IPPROTO_TCP, true},
		{"UDP IPv4", unix.IPPROTO_UDP, false},
	} {
		o := connectOrder{Protocol: c.protocol, Blocks: b.blocks, PerBlock: perBlock, Variants: b.variants(b.lab.hooked, a.place, c.ipv6)}
		var r connectResult
		if err := client.ask("connects", o, &r); err != nil {
			return err
		}
		b.report.Connect = append(b.report.Connect, newConnectRow(c.name, r))
	}
	return a.leave()
}

func (b *bench) variants(s *site, p *place, ipv6 bool) []variant {
	of, vip := podIPv4, probeIPv4
	if ipv6 {
		of, vip = podIPv6, probeIPv6
	}
	var pods []netip.AddrPort
	for k := range backends {
		pods = append(pods, netip.AddrPortFrom(of(firstBefore+k), serverPort))
	}
	plain, hooked := b.lab.cgroupDir("server"), b.lab.cgroupDir(p.pods)
	here, there := s.client.Path(), b.lab.bare.client.Path()
	return []variant{
		bareVariant:     {"a node without fairlead", there, plain, pods},
		unhookedVariant: {"a cgroup without hooks", here, plain, pods},
		directVariant:   {"the pod's address", here, hooked, pods},
		serviceVariant:  {"the ClusterIP", here, hooked, []netip.AddrPort{netip.AddrPortFrom(vip, servicePort)}},
	}
}

func newConnectRow(name string, r connectResult) connectRow {
	row := connectRow{
		Name: name, Blocks: len(r.Medians[0]), PerBlock: perBlock,
		ServiceOverDirect: medianRatio(r.Medians[serviceVariant], r.Medians[directVariant]),
		DirectOverBare:    medianRatio(r.Medians[directVariant], r.Medians[bareVariant]),
		DirectOverNoHooks: medianRatio(r.Medians[directVariant], r.Medians[unhookedVariant]),
	}
	// After the ratios: median sorts.
	for v, to := range map[int]*float64{
		bareVariant: &row.BareNs, unhookedVariant: &row.NoHooksNs, directVariant: &row.DirectNs, serviceVariant: &row.ServiceNs,
	} {
		*to = median(r.Medians[v])
	}
	return row
}

// medianRatio is the median of the ratios of a and b, block by block.
func medianRatio(a, b []float64) float64 {
	ratios := make([]float64, len(a))
	for i := range a {
		ratios[i] = a[i] / b[i]
	}
	return median(ratios)
}
