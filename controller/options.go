// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fairlead.dev/controller/compile"
	"fairlead.dev/controller/source"
	"fairlead.dev/dataplane"
)

// Defaults of Options, where the zero value stands for them.
const (
	// DefaultCheckInterval is how often the kernel is compared with the Table.
	DefaultCheckInterval = 60 * time.Second
	// DefaultHealthTimeout is kube-proxy's: twice its sync period of 30 s.
	DefaultHealthTimeout = 60 * time.Second
	// DefaultFirstSyncTimeout is how long a first Sync that fails is repeated.
	DefaultFirstSyncTimeout = 15 * time.Second
)

// Options are what a Controller is made from. Source, Dataplane and NodeName
// are required; every other zero value means the default its comment names.
type Options struct {
	// Source delivers the objects. Run starts it and waits for its end.
	Source source.Source
	// Dataplane programs the kernel. The caller closes it after Run returned.
	Dataplane dataplane.Dataplane
	// NodeName is the name of this node's Node object, and what
	// EndpointSlices call this node.
	NodeName string

	// NodeIPs overrides which addresses are the node's primary ones, at most
	// one a family (--bind-address). It is used where the Node object names no
	// InternalIP that is on this host.
	NodeIPs []netip.Addr
	// NodePortAddresses is --nodeport-addresses: CIDRs and the words primary,
	// localhost and all. Empty means every node address that is not link-local,
	// and loopback.
	NodePortAddresses []string
	// ClusterCIDRs are the pods' ranges (--cluster-cidr). Empty: those of the
	// Node object.
	ClusterCIDRs []netip.Prefix
	// ServiceCIDRs are the ranges of ClusterIPs (--service-cidr), where known.
	ServiceCIDRs []netip.Prefix

	// Compile bounds what one Service can become. Zero values are compile's
	// defaults.
	Compile compile.Options

	// CheckInterval is the mean time between two full checks of the kernel,
	// jittered by a tenth. 0: DefaultCheckInterval. Negative: no checks.
	CheckInterval time.Duration
	// HealthTimeout is how long a change may wait for the kernel before
	// /healthz and /livez say 503. 0: DefaultHealthTimeout.
	HealthTimeout time.Duration
	// FirstSyncTimeout is how long a first Sync that fails is repeated before
	// Run gives up with its error. 0: DefaultFirstSyncTimeout.
	FirstSyncTimeout time.Duration

	// FirstSynced is called once, when the kernel has the whole Table for the
	// first time. Changes wait until it returns. nil: nothing.
	FirstSynced func()

	// HealthzBindAddress is HOST:PORT of /healthz and /livez. Empty: not served.
	HealthzBindAddress string
	// MetricsBindAddress is HOST:PORT of /metrics. Empty: not served.
	MetricsBindAddress string
	// MetricsTLS is how MetricsBindAddress is served; nil: without TLS.
	MetricsTLS *tls.Config
	// MetricsGuard is put before all that is served there; nil: anyone may ask.
	MetricsGuard func(http.Handler) http.Handler
	// StatusPage serves /status on MetricsBindAddress, for browsers.
	StatusPage bool
	// Profiling serves /debug/pprof/ on MetricsBindAddress.
	Profiling bool
	// Collectors are served on /metrics beside the controller's own: those of
	// the Dataplane, of the Source. They must be safe for concurrent use.
	Collectors []prometheus.Collector
	// Version is the label of fairlead_build_info. Empty: "unknown".
	Version string

	// Log takes what an operator should read. nil: slog.Default().
	Log *slog.Logger
}

// complete checks the options and fills in the defaults.
func (o *Options) complete() (nodePortAddresses, error) {
	switch {
	case o.Source == nil:
		return nodePortAddresses{}, errors.New("controller: no Source")
	case o.Dataplane == nil:
		return nodePortAddresses{}, errors.New("controller: no Dataplane")
	case o.NodeName == "":
		return nodePortAddresses{}, errors.New("controller: no node name: set --node-name")
	}
	for _, a := range o.NodeIPs {
		if !a.IsValid() || a.IsUnspecified() {
			return nodePortAddresses{}, fmt.Errorf("controller: node IP %q is not an address of a node", a)
		}
	}
	if o.CheckInterval == 0 {
		o.CheckInterval = DefaultCheckInterval
	}
	if o.HealthTimeout <= 0 {
		o.HealthTimeout = DefaultHealthTimeout
	}
	if o.FirstSyncTimeout <= 0 {
		o.FirstSyncTimeout = DefaultFirstSyncTimeout
	}
	if o.Version == "" {
		o.Version = "unknown"
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return parseNodePortAddresses(o.NodePortAddresses)
}
