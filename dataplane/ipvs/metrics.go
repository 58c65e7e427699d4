// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"fairlead.dev/dataplane"
)

// collector reads the kernel's counters when Prometheus asks, and at no other
// time. Service ports without traffic have no series.
type collector struct {
	d                                    *Dataplane
	packets, bytes, connections, dropped *prometheus.Desc
	entries, draining                    *prometheus.Desc
}

// Collector gives the kernel's counters to a Prometheus registry. It must not
// be used after Close.
func (d *Dataplane) Collector() prometheus.Collector {
	flow := []string{"namespace", "service", "port", "direction"}
	return &collector{
		d:           d,
		packets:     prometheus.NewDesc("fairlead_service_packets_total", "Packets of a Service port that the packet path translated.", flow, nil),
		bytes:       prometheus.NewDesc("fairlead_service_bytes_total", "Bytes of a Service port that the packet path translated.", flow, nil),
		connections: prometheus.NewDesc("fairlead_service_connections_total", "New flows of a Service port, at sockets and in packets.", flow, nil),
		dropped:     prometheus.NewDesc("fairlead_drops_total", "Packets and connects that were rejected or dropped.", []string{"reason"}, nil),
		entries:     prometheus.NewDesc("fairlead_ipvs_virtual_servers", "Virtual servers, one a BackendSet or, with affinity, a Backend.", nil, nil),
		draining:    prometheus.NewDesc("fairlead_ipvs_draining_destinations", "Destinations that only wait for their connections to end.", nil, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.packets, c.bytes, c.connections, c.dropped, c.entries, c.draining} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	rows, drops, servers, draining, err := c.d.metrics()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(c.packets, err)
		return
	}
	counter := func(d *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	for _, r := range rows {
		if r.Connections == 0 {
			continue
		}
		namespace, name, _ := strings.Cut(r.Service, "/")
		counter(c.packets, r.ForwardPackets, namespace, name, r.PortName, "in")
		counter(c.packets, r.ReversePackets, namespace, name, r.PortName, "out")
		counter(c.bytes, r.ForwardBytes, namespace, name, r.PortName, "in")
		counter(c.bytes, r.ReverseBytes, namespace, name, r.PortName, "out")
		counter(c.connections, r.Connections, namespace, name, r.PortName, "in")
	}
	for _, r := range drops {
		counter(c.dropped, r.Count, r.Reason)
	}
	ch <- prometheus.MustNewConstMetric(c.entries, prometheus.GaugeValue, float64(servers))
	ch <- prometheus.MustNewConstMetric(c.draining, prometheus.GaugeValue, float64(draining))
}

// metrics reads the counters; whose they are is remembered, not read.
func (d *Dataplane) metrics() (rows []dataplane.CounterRow, drops []dataplane.DropRow, servers, draining int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.states == nil {
		return nil, nil, 0, 0, nil
	}
	stats, err := d.kernel.stats()
	if err != nil {
		return nil, nil, 0, 0, err
	}
	if drops, err = d.table.drops(); err != nil {
		return nil, nil, 0, 0, err
	}
	for name, st := range d.states {
		for portName, po := range st.ports {
			row := dataplane.CounterRow{Service: name.String(), PortName: portName}
			for _, w := range po.servers {
				addStats(&row, stats[w.mark])
			}
			rows = append(rows, row)
		}
	}
	return rows, drops, len(d.servers), len(d.drains), nil
}
