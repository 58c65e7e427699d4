// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"

	"fairlead.dev/controller/config"
	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/ebpf"
	"fairlead.dev/dataplane/handover"
)

// bpfLayout is FAIRLEAD_LAYOUT of bpf/layout.h.
const bpfLayout = 1

var ebpfTechnology = technology{
	name:  "ebpf",
	start: startEBPF,
	read: func(c *config.Configuration) (dataplane.Reader, error) {
		r, err := ebpf.Read(c.BPFFS)
		if err != nil {
			return nil, err
		}
		return r, nil
	},
	check: func(c *config.Configuration) []dataplane.CheckResult { return ebpf.Check(ebpfOptions(c, nil)) },
	present: func(c *config.Configuration) (present, draining bool, err error) {
		if present, err = ebpf.Present(ebpfOptions(c, nil)); err != nil || !present {
			return false, false, err
		}
		draining, err = ebpf.IsDraining(ebpfOptions(c, nil))
		return true, draining, err
	},
	leave: func(c *config.Configuration, log *slog.Logger, _ bool) handover.Predecessor {
		return ebpf.NewDraining(ebpfOptions(c, log))
	},
	cleanup: func(c *config.Configuration) ([]string, error) { return ebpf.Cleanup(ebpfOptions(c, nil)) },
}

func startEBPF(ctx context.Context, c *config.Configuration, log *slog.Logger, takesOver bool) (started, error) {
	o := ebpfOptions(c, log)
	o.LeaveUnknownFlows = takesOver
	d, err := ebpf.New(ctx, o)
	if err != nil {
		return started{}, err
	}
	return started{Dataplane: d, collector: d.Collector(), alone: func() error { return d.LeaveUnknownFlows(false) }, reserve: d.Reserve}, nil
}

func ebpfOptions(c *config.Configuration, log *slog.Logger) ebpf.Options {
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
		Logger:            log,
	}
}
