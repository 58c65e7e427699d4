// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"fairlead.dev/controller/config"
	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/ebpf"
)

// bpfLayout is FAIRLEAD_LAYOUT of bpf/layout.h.
const bpfLayout = 1

// newDataplane makes the Dataplane of --dataplane. checkRun let auto and ebpf
// through, which are the same as long as there is one.
func newDataplane(ctx context.Context, c *config.Configuration, log *slog.Logger) (dataplane.Dataplane, prometheus.Collector, error) {
	o := ebpfOptions(c)
	o.Logger = log
	d, err := ebpf.New(ctx, o)
	if err != nil {
		return nil, nil, err
	}
	return d, d.Collector(), nil
}

func ebpfOptions(c *config.Configuration) ebpf.Options {
	// Validate has seen the range.
	first, last, _ := c.MasqueradePortRange()
	return ebpf.Options{
		BPFFS:        c.BPFFS,
		CgroupRoot:   c.CgroupRoot,
		Devices:      c.Devices,
		FrontendsMax: c.FrontendsMax,
		SlotsMax:     c.SlotsMax,
		ServicesMax:  c.ServicesMax,
		ConntrackMax: c.ConntrackMax,
		AffinityMax:  c.AffinityMax,
		DatagramsMax: c.DatagramsMax,
		Timeouts: ebpf.Timeouts{
			TCPEstablished: c.ConntrackTCPTimeoutEstablished.Duration,
			TCPTransient:   c.ConntrackTCPTimeoutCloseWait.Duration,
			UDP:            c.ConntrackUDPTimeout.Duration,
			UDPStream:      c.ConntrackUDPTimeoutStream.Duration,
		},
		MasqueradePortMin: first,
		MasqueradePortMax: last,
	}
}

// openReader reads what is pinned, agent or no agent.
func openReader(bpffs string) (dataplane.Reader, error) {
	r, err := ebpf.Read(bpffs)
	if err != nil {
		return nil, err
	}
	return r, nil
}

func checkKernel(c *config.Configuration) []checkRow {
	var rows []checkRow
	for _, r := range ebpf.Check(ebpfOptions(c)) {
		rows = append(rows, checkRow{Name: r.Name, OK: r.OK, Detail: r.Detail, Cost: r.Cost, Required: r.Required})
	}
	return rows
}

func cleanupKernel(c *config.Configuration) (removed []string, err error) {
	return ebpf.Cleanup(ebpfOptions(c))
}
