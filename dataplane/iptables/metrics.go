// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netns"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/nsthread"
)

// collector lists the rules when Prometheus asks, and at no other time. Service
// ports without traffic have no series.
type collector struct {
	tools                []*tool
	namespace            netns.NsHandle
	connections, dropped *prometheus.Desc
}

// Collector gives the kernel's counters to a Prometheus registry: connections
// of Service ports and refusals. It has no packets and bytes of Services, for
// the nat table sees neither. It must not be used after Close.
func (d *Dataplane) Collector() prometheus.Collector {
	c := &collector{
		namespace:   d.namespace,
		connections: prometheus.NewDesc("fairlead_service_connections_total", "New flows of a Service port, at sockets and in packets.", []string{"namespace", "service", "port", "direction"}, nil),
		dropped:     prometheus.NewDesc("fairlead_drops_total", "Packets and connects that were rejected or dropped.", []string{"reason"}, nil),
	}
	for _, f := range d.families {
		c.tools = append(c.tools, f.tool)
	}
	return c
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.connections
	ch <- c.dropped
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	var rows []dataplane.CounterRow
	var drops []dataplane.DropRow
	err := nsthread.In(c.namespace, func() (err error) {
		rows, drops, err = counters(context.Background(), c.tools)
		return err
	})
	if err != nil {
		ch <- prometheus.NewInvalidMetric(c.connections, fmt.Errorf("read iptables counters: %w", err))
		return
	}
	for _, r := range rows {
		if name, err := dataplane.ParseServiceName(r.Service); err == nil && r.Connections > 0 {
			ch <- prometheus.MustNewConstMetric(c.connections, prometheus.CounterValue, float64(r.Connections), name.Namespace, name.Name, r.PortName, "in")
		}
	}
	for _, d := range drops {
		ch <- prometheus.MustNewConstMetric(c.dropped, prometheus.CounterValue, float64(d.Count), d.Reason)
	}
}
