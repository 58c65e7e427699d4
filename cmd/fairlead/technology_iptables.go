// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"log/slog"

	"fairlead.dev/controller/config"
	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/handover"
	"fairlead.dev/dataplane/iptables"
	"fairlead.dev/dataplane/nftables"
)

var iptablesTechnology = technology{
	name:      "iptables",
	conntrack: true,
	start: func(ctx context.Context, c *config.Configuration, log *slog.Logger, _ bool) (started, error) {
		d, err := iptables.New(ctx, iptablesOptions(c, log))
		if err != nil {
			return started{}, err
		}
		return started{Dataplane: d, collector: d.Collector()}, nil
	},
	read: func(c *config.Configuration) (dataplane.Reader, error) {
		r, err := iptables.Read(iptablesOptions(c, nil))
		if err != nil {
			return nil, err
		}
		return r, nil
	},
	check: func(c *config.Configuration) []dataplane.CheckResult { return iptables.Check(iptablesOptions(c, nil)) },
	present: func(c *config.Configuration) (present, draining bool, err error) {
		present, err = iptables.Present(iptablesOptions(c, nil))
		return present, false, err
	},
	leave:   leaveIPTables,
	cleanup: func(c *config.Configuration) ([]string, error) { return iptables.Cleanup(iptablesOptions(c, nil)) },
}

// leaveIPTables keeps conntrack at work where the successor does not: without a
// rule that asks for it the kernel takes it out of the packets' way, and with it
// the translation of established flows.
func leaveIPTables(c *config.Configuration, log *slog.Logger, conntrack bool) handover.Predecessor {
	clean := func() error { _, err := iptables.Cleanup(iptablesOptions(c, log)); return err }
	if conntrack {
		return &handover.Netfilter{Technology: "iptables", Shared: true, Withdraw: clean, Remove: clean}
	}
	return &handover.Netfilter{
		Technology: "iptables", Lasting: true,
		Withdraw: func() error {
			if err := nftables.Hook(nftablesOptions(c, log)); err != nil {
				log.Warn("established flows of iptables may end: nothing keeps conntrack at work", "error", err)
			}
			return clean()
		},
		Remove: func() error {
			_, err := nftables.Cleanup(nftablesOptions(c, log))
			return errors.Join(err, clean())
		},
	}
}

func iptablesOptions(c *config.Configuration, log *slog.Logger) iptables.Options {
	return iptables.Options{Devices: c.Devices, MasqueradeBit: &c.IPTablesMasqueradeBit, Logger: log}
}
