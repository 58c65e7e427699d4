// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"

	"fairlead.dev/controller/config"
	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/handover"
	"fairlead.dev/dataplane/nftables"
)

var nftablesTechnology = technology{
	name:      "nftables",
	conntrack: true,
	start: func(ctx context.Context, c *config.Configuration, log *slog.Logger, _ bool) (started, error) {
		d, err := nftables.New(ctx, nftablesOptions(c, log))
		if err != nil {
			return started{}, err
		}
		return started{Dataplane: d, collector: d.Collector()}, nil
	},
	read: func(c *config.Configuration) (dataplane.Reader, error) {
		r, err := nftables.Read(nftablesOptions(c, nil))
		if err != nil {
			return nil, err
		}
		return r, nil
	},
	check: func(c *config.Configuration) []dataplane.CheckResult { return nftables.Check(nftablesOptions(c, nil)) },
	present: func(c *config.Configuration) (present, draining bool, err error) {
		if present, err = nftables.Present(nftablesOptions(c, nil)); err != nil || present {
			return present, false, err
		}
		// What an agent left that did not live to see the last flow end.
		draining, err = nftables.Draining(nftablesOptions(c, nil))
		return draining, draining, err
	},
	leave: func(c *config.Configuration, log *slog.Logger, conntrack bool) handover.Predecessor {
		o := nftablesOptions(c, log)
		return &handover.Netfilter{
			Technology: "nftables", Shared: conntrack, Lasting: true,
			Withdraw: func() error { _, err := nftables.Empty(o); return err },
			Remove:   func() error { _, err := nftables.Cleanup(o); return err },
		}
	},
	cleanup: func(c *config.Configuration) ([]string, error) { return nftables.Cleanup(nftablesOptions(c, nil)) },
}

func nftablesOptions(c *config.Configuration, log *slog.Logger) nftables.Options {
	return nftables.Options{Devices: c.Devices, AffinityMax: c.AffinityMax, Logger: log}
}
