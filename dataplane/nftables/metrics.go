// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// collector reads the kernel's counters when Prometheus asks, and at no other
// time. Service ports without connections have no series.
type collector struct {
	mu     sync.Mutex
	reader *Reader

	connections, dropped *prometheus.Desc
}

// Collector gives the kernel's counters to a Prometheus registry, until Close.
// Packets and bytes are not counted: only a connection's first packet passes
// the rules.
func (d *Dataplane) Collector() prometheus.Collector {
	return &collector{
		reader:      d.reader,
		connections: prometheus.NewDesc("fairlead_service_connections_total", "New flows of a Service port.", []string{"namespace", "service", "port"}, nil),
		dropped:     prometheus.NewDesc("fairlead_drops_total", "Packets and connects that were rejected or dropped.", []string{"reason"}, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.connections
	ch <- c.dropped
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	rows, drops, err := c.reader.Counters()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(c.connections, err)
		return
	}
	for _, r := range rows {
		if r.Connections > 0 {
			namespace, name, _ := strings.Cut(r.Service, "/")
			ch <- prometheus.MustNewConstMetric(c.connections, prometheus.CounterValue, float64(r.Connections), namespace, name, r.PortName)
		}
	}
	for _, d := range drops {
		ch <- prometheus.MustNewConstMetric(c.dropped, prometheus.CounterValue, float64(d.Count), d.Reason)
	}
}
