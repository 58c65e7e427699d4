// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"

	"fairlead.dev/controller/config"
	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/handover"
	"fairlead.dev/dataplane/ipvs"
)

var ipvsTechnology = technology{
	name:      "ipvs",
	conntrack: true,
	start: func(ctx context.Context, c *config.Configuration, log *slog.Logger, _ bool) (started, error) {
		d, err := ipvs.New(ctx, ipvsOptions(c, log))
		if err != nil {
			return started{}, err
		}
		return started{Dataplane: d, collector: d.Collector()}, nil
	},
	read: func(c *config.Configuration) (dataplane.Reader, error) {
		r, err := ipvs.Read(ipvsOptions(c, nil))
		if err != nil {
			return nil, err
		}
		return r, nil
	},
	check: func(c *config.Configuration) []dataplane.CheckResult { return ipvs.Check(ipvsOptions(c, nil)) },
	present: func(c *config.Configuration) (present, draining bool, err error) {
		present, err = ipvs.Present(ipvsOptions(c, nil))
		return present, false, err
	},
	// Connections through IPVS are in its own table too, so they need it as long
	// as they last, whoever comes.
	leave: func(c *config.Configuration, log *slog.Logger, _ bool) handover.Predecessor {
		o := ipvsOptions(c, log)
		return &handover.Netfilter{
			Technology: "ipvs",
			Withdraw:   func() error { return ipvs.Withdraw(o) },
			Remove:     func() error { _, err := ipvs.Cleanup(o); return err },
		}
	},
	cleanup: func(c *config.Configuration) ([]string, error) { return ipvs.Cleanup(ipvsOptions(c, nil)) },
}

func ipvsOptions(c *config.Configuration, log *slog.Logger) ipvs.Options {
	return ipvs.Options{
		Devices: c.Devices, Scheduler: c.IPVSScheduler, StrictARP: c.IPVSStrictARP, AffinityMax: c.AffinityMax,
		TCPTimeout: c.IPVSTCPTimeout.Duration, TCPFinTimeout: c.IPVSTCPFinTimeout.Duration, UDPTimeout: c.IPVSUDPTimeout.Duration,
		Logger: log,
	}
}
