// SPDX-License-Identifier: Apache-2.0

// Package nftables makes the kernel equal a Table with nf_tables: one flat
// table `fairlead` for each family, in which Frontends and Backends are
// elements of data maps and no chain or rule belongs to a Service. Transactions
// go over netlink and have the size of the Change. It knows no Kubernetes
// objects, and leaves established flows to conntrack.
package nftables

import (
	"log/slog"
)

// DefaultAffinityMax is the default of Options.AffinityMax.
const DefaultAffinityMax = 65536

// Options configures the nftables dataplane. The zero value is usable.
type Options struct {
	// Devices are the names of the devices that lead out of the node; a
	// trailing '*' matches any suffix. Default: devices with a default route
	// or the node's primary address, physical ones and tunnels.
	Devices []string

	// AffinityMax is how many clients are kept on a Backend at most, for each
	// family. Who comes when it is full has no affinity. Default 65,536. A
	// table that is there keeps the size it was made with.
	AffinityMax int

	// Logger defaults to slog.Default().
	Logger *slog.Logger
}

func (o Options) withDefaults() Options {
	if o.AffinityMax == 0 {
		o.AffinityMax = DefaultAffinityMax
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return o
}
