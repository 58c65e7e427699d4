// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"errors"

	"github.com/cilium/ebpf"
	"github.com/prometheus/client_golang/prometheus"

	"fairlead.dev/bpf"
)

// collector reads the kernel's counters when Prometheus asks, and at no other
// time. Service ports without traffic have no series.
type collector struct {
	services, counters, drops *ebpf.Map
	fill                      map[string]func() int
	max                       map[string]int

	packets, bytes, connections, dropped, entries, maxEntries *prometheus.Desc
}

// Collector gives the kernel's counters to a Prometheus registry. It must not
// be used after Close.
func (d *Dataplane) Collector() prometheus.Collector {
	flow := []string{"namespace", "service", "port", "direction"}
	return &collector{
		services: d.maps["services"], counters: d.maps["counters"], drops: d.maps["drops"],
		fill: map[string]func() int{
			"conntrack": countOf[bpf.FairleadTuple, bpf.FairleadConntrackEntry](d.maps["conntrack"]),
			"affinity":  countOf[bpf.FairleadAffinityKey, bpf.FairleadAffinityEntry](d.maps["affinity"]),
			"frontends": countOf[bpf.FairleadFrontendKey, bpf.FairleadFrontend](d.maps["frontends"]),
			"services":  countOf[uint32, bpf.FairleadServiceNames](d.maps["services"]),
			"slots":     func() int { return int(d.slotsUsed.Load()) },
		},
		max: map[string]int{
			"conntrack": d.options.ConntrackMax, "affinity": d.options.AffinityMax, "frontends": d.options.FrontendsMax,
			"services": d.options.ServicesMax, "slots": d.options.SlotsMax,
		},
		packets:     prometheus.NewDesc("fairlead_service_packets_total", "Packets of a Service port that the packet path translated.", flow, nil),
		bytes:       prometheus.NewDesc("fairlead_service_bytes_total", "Bytes of a Service port that the packet path translated.", flow, nil),
		connections: prometheus.NewDesc("fairlead_service_connections_total", "New flows of a Service port, at sockets and in packets.", flow, nil),
		dropped:     prometheus.NewDesc("fairlead_drops_total", "Packets and connects that were rejected or dropped.", []string{"reason"}, nil),
		entries:     prometheus.NewDesc("fairlead_map_entries", "Entries in use of a kernel map.", []string{"map"}, nil),
		maxEntries:  prometheus.NewDesc("fairlead_map_max_entries", "Entries that a kernel map can hold.", []string{"map"}, nil),
	}
}

func countOf[K, V any](m *ebpf.Map) func() int {
	return func() (n int) {
		_ = eachEntry(m, func(K, *V) { n++ })
		return n
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.packets, c.bytes, c.connections, c.dropped, c.entries, c.maxEntries} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	var failed error
	err := eachEntry(c.services, func(id uint32, n *bpf.FairleadServiceNames) {
		v, err := readCounters(c.counters, id)
		if err != nil {
			failed = err
			return
		}
		if v == (bpf.FairleadServiceCounters{}) {
			return
		}
		p := decodeNames(n)
		in := []string{p.service.Namespace, p.service.Name, p.portName, "in"}
		out := []string{p.service.Namespace, p.service.Name, p.portName, "out"}
		counter(c.packets, v.ForwardPackets, in...)
		counter(c.packets, v.ReversePackets, out...)
		counter(c.bytes, v.ForwardBytes, in...)
		counter(c.bytes, v.ReverseBytes, out...)
		counter(c.connections, v.Connections, in...)
	})
	if err := errors.Join(err, failed); err != nil {
		ch <- prometheus.NewInvalidMetric(c.packets, err)
	}
	for i, reason := range dropReasons {
		n, err := readDrops(c.drops, uint32(i))
		if err != nil {
			ch <- prometheus.NewInvalidMetric(c.dropped, err)
			continue
		}
		counter(c.dropped, n, reason)
	}
	for name, n := range c.max {
		ch <- prometheus.MustNewConstMetric(c.entries, prometheus.GaugeValue, float64(c.fill[name]()), name)
		ch <- prometheus.MustNewConstMetric(c.maxEntries, prometheus.GaugeValue, float64(n), name)
	}
}
