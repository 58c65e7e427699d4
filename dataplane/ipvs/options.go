// SPDX-License-Identifier: Apache-2.0

// Package ipvs makes the kernel equal a Table with IPVS. Each BackendSet is a
// virtual server known by a packet mark; one nftables table, `fairlead-ipvs`,
// says which Frontend has which mark, and holds all that IPVS has no place for.
// Load balancing and established flows are the kernel's. It knows no Kubernetes
// objects, and never touches virtual servers, tables or devices of others.
package ipvs

import (
	"cmp"
	"log/slog"
	"time"
)

// Defaults of Options.
const (
	DefaultScheduler    = "rr"
	DefaultDrainTimeout = 15 * time.Minute
	DefaultAffinityMax  = 65536
	DefaultMarkPrefix   = 0xf1
)

// Options configures the IPVS dataplane. The zero value is usable.
type Options struct {
	// Devices are the names of the devices that lead out of the node; a
	// trailing '*' matches any suffix. Default: devices with a default route
	// or the node's primary address, physical ones and tunnels.
	Devices []string

	// Scheduler is how IPVS chooses a Backend: rr, wrr, lc, wlc, sh, mh, sed,
	// nq, lblc or another that the kernel has as ip_vs_NAME. Default rr. All
	// Backends that get new connections have weight 1.
	Scheduler string

	// StrictARP keeps the node from answering ARP for addresses of Services
	// (arp_ignore=1, arp_announce=2 on all devices).
	StrictARP bool

	// MarkPrefix is the highest byte of the packet marks that name virtual
	// servers, 1 to 255. Default 0xf1. A packet has such a mark only from just
	// before IPVS looks at it to just after.
	MarkPrefix uint8

	// DrainTimeout is how long the connections of a removed Backend may last;
	// default 15 min.
	DrainTimeout time.Duration

	// Timeouts of idle connections in IPVS, a second at least; 0 leaves the
	// kernel's (900, 120 and 300 s).
	TCPTimeout, TCPFinTimeout, UDPTimeout time.Duration

	// AffinityMax is how many clients are kept on a Backend at most, for each
	// family. Default 65,536.
	AffinityMax int

	// Logger defaults to slog.Default().
	Logger *slog.Logger
}

func (o Options) withDefaults() Options {
	o.Scheduler = cmp.Or(o.Scheduler, DefaultScheduler)
	o.MarkPrefix = cmp.Or(o.MarkPrefix, DefaultMarkPrefix)
	o.DrainTimeout = cmp.Or(o.DrainTimeout, DefaultDrainTimeout)
	o.AffinityMax = cmp.Or(o.AffinityMax, DefaultAffinityMax)
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return o
}
