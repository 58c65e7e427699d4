// SPDX-License-Identifier: Apache-2.0

// Package controller moves what a Source says through compile into a
// Dataplane, and tells how that goes: health servers and metrics. It is
// responsible for when things happen (coalescing, retries, the background
// check) and for the facts of the node. It refuses to know what a Service
// means, which is compile's, and how a kernel is programmed, which is the
// Dataplane's.
package controller

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"fairlead.dev/controller/compile"
	"fairlead.dev/controller/status"
	"fairlead.dev/dataplane"
)

// Controller is the agent's loop. It is made by New and run once.
type Controller struct {
	opts     Options
	rules    factRules
	progress *progress
	metrics  *metrics
	checks   *healthCheckPorts

	// wake has one slot: whatever arrived since the loop last looked is one
	// Apply.
	wake   chan struct{}
	synced chan struct{}
	// failed are the Services whose last state the kernel did not take. The
	// map is replaced, never changed.
	failed  atomic.Pointer[map[dataplane.ServiceName]error]
	leaving atomic.Bool

	healthz, metricsServer *server

	mu       sync.Mutex
	compiler *compile.Compiler
	host     hostAddresses
	node     nodeObject
	facts    compile.NodeFacts
	problems []compile.Problem
	noLocal  map[dataplane.Scope]int
}

// New checks the options and makes a Controller. It opens nothing.
func New(o Options) (*Controller, error) {
	nodePort, err := o.complete()
	if err != nil {
		return nil, err
	}
	c := &Controller{
		opts: o,
		rules: factRules{
			name: o.NodeName, nodeIPs: o.NodeIPs, nodePort: nodePort,
			clusterCIDRs: o.ClusterCIDRs, serviceCIDRs: o.ServiceCIDRs,
		},
		progress: &progress{now: time.Now, timeout: o.HealthTimeout},
		metrics:  newMetrics(),
		wake:     make(chan struct{}, 1),
		synced:   make(chan struct{}),
		compiler: compile.New(o.Compile),
	}
	c.failed.Store(&map[dataplane.ServiceName]error{})
	c.checks = newHealthCheckPorts(o.Log, c.inForce)
	for _, collector := range append([]prometheus.Collector{reading{c}}, o.Collectors...) {
		if err := c.metrics.registry.Register(collector); err != nil {
			return nil, fmt.Errorf("controller: register metrics: %w", err)
		}
	}
	health := &healthServer{
		progress: c.progress, eligible: func() bool { return !c.leaving.Load() },
		connected: func() bool { return o.Source.State().Connected },
		healthz:   c.metrics.healthz, livez: c.metrics.livez,
	}
	c.healthz = &server{flag: "--healthz-bind-address", address: o.HealthzBindAddress, handler: health.handler(), log: o.Log}
	statusOf := ""
	if o.StatusPage {
		statusOf = o.NodeName
	}
	metrics := c.metrics.handler(statusOf, o.Profiling)
	if o.MetricsGuard != nil {
		metrics = o.MetricsGuard(metrics)
	}
	c.metricsServer = &server{flag: "--metrics-bind-address", address: o.MetricsBindAddress, handler: metrics, tls: o.MetricsTLS, log: o.Log, slow: o.Profiling}
	return c, nil
}

// Run serves until ctx ends, and then returns nil with the kernel as it is.
// An error means that the node cannot be served: a first Sync that keeps
// failing, a Source that can deliver nothing, an address that cannot be bound.
// The node's addresses are those of the calling thread's network namespace.
func (c *Controller) Run(ctx context.Context) error {
	watch, err := openNodeWatch(c.opts.Log)
	if err != nil {
		return err
	}
	defer watch.close()
	host, err := watch.list()
	if err != nil {
		return err
	}
	c.onHost(host)

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { watch.run(ctx, host, c.onHost); return nil })
	g.Go(func() error { c.checks.run(ctx); return nil })
	g.Go(func() error { return newLoop(c).run(ctx) })
	for _, s := range []*server{c.healthz, c.metricsServer} {
		if s.address != "" {
			g.Go(func() error { return s.run(ctx) })
		}
	}
	g.Go(func() error {
		if err := c.opts.Source.Run(ctx, c); err != nil {
			return fmt.Errorf("source %s: %w", c.opts.Source.Name(), err)
		}
		if ctx.Err() == nil {
			return fmt.Errorf("source %s ended by itself", c.opts.Source.Name())
		}
		return nil
	})
	return g.Wait()
}

// Status is this node at a glance.
func (c *Controller) Status() (*status.Status, error) { return c.metrics.status() }

// Metrics serves the agent's metrics, for another server than its own: who may
// ask is that one's to say.
func (c *Controller) Metrics() http.Handler { return c.metrics.exposition() }

// inForce reports whether the kernel has what a Service wants.
func (c *Controller) inForce(name dataplane.ServiceName) bool {
	cond := c.progress.condition()
	return cond.synced && !cond.stale && (*c.failed.Load())[name] == nil
}

// Problems are the objects, or parts of them, that are not in force as written,
// sorted. Those that the Source itself could not take are in its State.
func (c *Controller) Problems() []compile.Problem {
	c.mu.Lock()
	ps := slices.Clone(c.problems)
	c.mu.Unlock()
	ps = append(ps, c.checks.currentProblems()...)
	for name, err := range *c.failed.Load() {
		ps = append(ps, compile.Problem{Object: "Service " + name.String(), Reason: err.Error()})
	}
	slices.SortFunc(ps, func(a, b compile.Problem) int {
		return strings.Compare(a.Object+"\x00"+a.Reason, b.Object+"\x00"+b.Reason)
	})
	return ps
}

func (c *Controller) noLocalEndpoints() map[dataplane.Scope]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := map[dataplane.Scope]int{dataplane.Internal: 0, dataplane.External: 0}
	maps.Copy(n, c.noLocal)
	return n
}
