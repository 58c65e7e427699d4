// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"fairlead.dev/controller"
	"fairlead.dev/controller/config"
)

// gcPercent is how much the heap may grow between two collections once all is
// loaded, unless GOGC says: a change needs little beside what is held. Loading
// is Go's own 100, since collecting more often then costs much.
const gcPercent = 25

// loaded gives back what only the load needed: at 10,000 Services a sixth of
// the memory that the agent has then.
func loaded() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	debug.FreeOSMemory()
}

func newRunCommand() *cobra.Command {
	c := config.Default()
	var file string
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the agent: make the kernel follow the Services",
		Long: "Run the agent: make the kernel follow the Services.\n\n" +
			"Objects come from an API server (--kubeconfig, or the pod's service account) or from a\n" +
			"directory of YAML (--manifests). SIGTERM and SIGINT end the agent; what it programmed stays in force.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var warnings []config.Warning
			if file != "" {
				loaded, ws, err := config.Load(file)
				if err != nil {
					return err
				}
				if err := underFlags(cmd.Flags(), &c, loaded); err != nil {
					return err
				}
				warnings = ws
			}
			if err := checkRun(&c); err != nil {
				return err
			}
			log := newLogger(&c, cmd.ErrOrStderr())
			warnKeys(log, file, warnings)
			return run(cmd.Context(), &c, log, migration{})
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "`FILE` with a FairleadConfiguration or a KubeProxyConfiguration; explicit flags win over it")
	addRunFlags(cmd.Flags(), &c)
	return cmd
}

// warnKeys names the keys of a configuration file that do not apply, in one line.
func warnKeys(log *slog.Logger, file string, warnings []config.Warning) {
	if len(warnings) == 0 {
		return
	}
	keys := make([]string, len(warnings))
	for i, w := range warnings {
		keys[i] = w.String()
	}
	log.Warn("keys of the configuration file that do not apply to fairlead are ignored, see docs/migration.md",
		"file", file, "keys", strings.Join(keys, "; "))
}

// checkRun refuses what cannot be run before anything is touched.
func checkRun(c *config.Configuration) error {
	if err := c.Validate(); err != nil {
		return usageError{err}
	}
	if c.Kubeconfig != "" && c.Manifests != "" {
		return usagef("--kubeconfig and --manifests are both set: objects come from one of them, leave the other out")
	}
	if c.Kubeconfig == "" && c.Manifests == "" && os.Getenv("KUBERNETES_SERVICE_HOST") == "" {
		return usagef("no source of objects: set --kubeconfig FILE for an API server or --manifests DIR for a directory (this is not a pod, so there is no service account)")
	}
	if err := checkMetrics(c); err != nil {
		return err
	}
	if c.Pods != "off" {
		if err := checkPods(c); err != nil {
			return err
		}
	}
	return c.Complete()
}

// run wires the agent together and serves until ctx ends, or until a migration
// is done.
func run(ctx context.Context, c *config.Configuration, log *slog.Logger, m migration) (err error) {
	log.Info("starting", "version", readBuildInfo().Version, "node", c.NodeName)
	if !c.Profiling {
		runtime.MemProfileRate = 0 // nobody can ask for it: 1.5 MiB of buckets
	}
	src, release, err := openSource(ctx, c, log)
	if err != nil {
		return stopped(ctx, err)
	}
	defer release()
	lock, err := lockKernel(ctx, c.BPFFS, c.Dataplane == "ebpf")
	if err != nil {
		return stopped(ctx, err)
	}
	defer lock.Close()
	dp, collector, err := m.newDataplane(ctx, c, log)
	if err != nil {
		return stopped(ctx, err)
	}
	defer closeInto(&err, dp, "close the dataplane")

	o, err := controllerOptions(c)
	if err != nil {
		return usageError{err}
	}
	var p *pods
	if c.Pods != "off" {
		if p, err = newPods(c, src, log); err != nil {
			return err
		}
		src = teeSource{src, p}
	}
	if o.MetricsTLS, o.MetricsGuard, err = secureMetrics(c, log); err != nil {
		return err
	}
	o.Source, o.Dataplane, o.Log = src, dp, log
	o.FirstSynced = func() { go loaded() }
	if m.synced != nil {
		o.FirstSynced, o.FirstSyncTimeout = m.synced, m.patience
		o.HealthzBindAddress, o.MetricsBindAddress = "", ""
		o.Log = m.controllerLog(log)
	}
	if collector != nil {
		o.Collectors = append(o.Collectors, collector)
	}
	ctl, err := controller.New(o)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return ctl.Run(ctx) })
	if p != nil {
		g.Go(func() error { return p.run(ctx, ctl.Metrics()) })
	}
	g.Go(func() error { return lock.answer(ctx, ctl.Status, log) })
	if err := g.Wait(); err != nil {
		return stopped(ctx, err)
	}
	log.Info("stopped; what was programmed stays in force")
	return nil
}

// controllerOptions are those that come from the configuration alone.
func controllerOptions(c *config.Configuration) (o controller.Options, err error) {
	o = controller.Options{
		NodeName:           c.NodeName,
		NodePortAddresses:  c.NodePortAddresses,
		HealthzBindAddress: c.HealthzBindAddress,
		MetricsBindAddress: c.MetricsBindAddress,
		StatusPage:         c.StatusPage,
		Profiling:          c.Profiling,
		Version:            readBuildInfo().Version,
	}
	if o.Compile.ExternalIPs.Deny, o.Compile.ExternalIPs.Only, err = c.ExternalIPPolicy(); err != nil {
		return o, err
	}
	if o.Compile.LoadBalancerIPs.Deny, o.Compile.LoadBalancerIPs.Only, err = c.LoadBalancerIPPolicy(); err != nil {
		return o, err
	}
	if o.NodeIPs, err = c.NodeIPs(); err != nil {
		return o, err
	}
	if o.ClusterCIDRs, err = c.ClusterPrefixes(); err != nil {
		return o, err
	}
	if c.Manifests != "" {
		o.ServiceCIDRs, err = directoryServiceCIDRs(c)
		return o, err
	}
	o.ServiceCIDRs, err = c.ServicePrefixes()
	return o, err
}

// stopped turns the error of something that a signal interrupted into none.
func stopped(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	return err
}

func closeInto(err *error, c io.Closer, action string) {
	if cerr := c.Close(); cerr != nil && *err == nil {
		*err = fmt.Errorf("%s: %w", action, cerr)
	}
}
