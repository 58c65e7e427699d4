// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"fairlead.dev/controller/config"
	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/handover"
	"fairlead.dev/dataplane/nftables"
	"fairlead.dev/migrate"
)

const (
	// takeOverPatience is how long an agent waits for a kube-proxy to end, which
	// is told to at the time the agent is started.
	takeOverPatience = 45 * time.Second
	runningPoll      = time.Second
)

// migration is how `fairlead migrate` makes an agent differ. The zero value is
// that of `fairlead run`.
type migration struct {
	report *migrate.Report
	// synced is called when the successor is in force; patience is how long it
	// may take to get there.
	synced   func()
	patience time.Duration
	// ignoreRunning: nobody is asked whether kube-proxy runs.
	ignoreRunning bool
	// back: kube-proxy is the successor. ended is called when nothing of
	// fairlead is left, drain is how long flows of its own may last.
	back  bool
	ended func()
	drain time.Duration
}

func newMigrateCommand() *cobra.Command {
	c := config.Default()
	c.LogLevel = "warn"
	m := migration{patience: 2 * time.Minute, drain: 15 * time.Minute}
	var file string
	output := "text"
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Take this node over from kube-proxy, or give it back",
		Long: "Take this node over from a kube-proxy that has ended: program fairlead's tables beside its rules, check them,\n" +
			"ask the Services, remove its rules. Established connections go on. Then start `fairlead run --take-over`,\n" +
			"which adopts what is there; it alone does all of this itself. Flags are those of run.\n\n" +
			"--back gives the node back to a kube-proxy that runs: when its rules serve every Service, fairlead's go, and\n" +
			"the command ends when the last connection has that fairlead carries. The agent must not run.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output, "text", "json"); err != nil {
				return err
			}
			var warnings []config.Warning
			if file != "" {
				loaded, ws, err := config.Load(file)
				if err != nil {
					return err
				}
				loaded.LogLevel, loaded.V = c.LogLevel, 0
				if err := underFlags(cmd.Flags(), &c, loaded); err != nil {
					return err
				}
				warnings = ws
			}
			c.Pods = "off"
			if err := checkRun(&c); err != nil {
				return err
			}
			log := newLogger(&c, cmd.ErrOrStderr())
			warnKeys(log, file, warnings)
			tell := func(s migrate.Step) { s.Write(cmd.OutOrStdout()) }
			if output == "json" {
				tell = nil
			}
			m.report = migrate.NewReport(tell)
			err := m.run(cmd.Context(), &c, log)
			if output == "json" {
				err = errors.Join(err, writeMigration(cmd.OutOrStdout(), &m, err))
			}
			return err
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "`FILE` as given to run, or to kube-proxy; explicit flags win over it")
	addRunFlags(cmd.Flags(), &c)
	f := cmd.Flags()
	f.BoolVar(&m.back, "back", false, "give the node back to kube-proxy, which must run")
	f.BoolVar(&m.ignoreRunning, "ignore-running", false, "do not look whether kube-proxy runs: for a process of this name that is none")
	f.DurationVar(&m.patience, "timeout", m.patience, "how long it may take until the successor is in force")
	f.DurationVar(&m.drain, "drain-timeout", m.drain, "with --back: how long connections may go on that fairlead carries")
	addOutputFlag(cmd, &output, "text", "json")
	return cmd
}

// writeMigration is the report as JSON.
func writeMigration(w io.Writer, m *migration, failed error) error {
	var text string
	if failed != nil {
		text = failed.Error()
	}
	to := "fairlead"
	if m.back {
		to = "kube-proxy"
	}
	return json.NewEncoder(w).Encode(struct {
		To    string         `json:"to"`
		Error string         `json:"error"`
		Steps []migrate.Step `json:"steps"`
	}{to, text, m.report.Steps()})
}

// run runs an agent until its part is done.
func (m *migration) run(ctx context.Context, c *config.Configuration, log *slog.Logger) error {
	found, err := migrate.Find(ctx)
	if err != nil {
		return err
	}
	if !m.back && found.Empty() {
		m.report.Add(migrate.Done, "nothing of kube-proxy is in this kernel: start `fairlead run`")
		return nil
	}
	if !m.back && !m.ignoreRunning {
		if err := ended(ctx, c.MetricsBindAddress, c.HealthzBindAddress, 0, log); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	late := time.AfterFunc(m.patience+controllerGrace, cancel)
	var inForce atomic.Bool
	m.synced = func() {
		late.Stop()
		inForce.Store(true)
		if !m.back {
			cancel()
		}
	}
	m.ended = func() { // it can be before synced: then nothing was carried
		inForce.Store(true)
		cancel()
	}
	c.TakeOver = true
	err = run(ctx, c, log, *m)
	switch {
	case err != nil:
		return err
	case !inForce.Load():
		return fmt.Errorf("not done within %v, and nothing was removed: no complete list of objects came, see the log", m.patience)
	case m.back:
		return m.gone(c)
	}
	m.report.Add(migrate.Done, "this node's Services are fairlead's; start `fairlead run --take-over` now, nobody follows their changes until then")
	return nil
}

// controllerGrace is how much later than the controller this gives up.
const controllerGrace = 5 * time.Second

// gone removes what no Dataplane needs any more.
func (m *migration) gone(c *config.Configuration) error {
	removed, err := cleanupKernel(c)
	for _, r := range removed {
		m.report.Add(migrate.Removed, "%s", r)
	}
	if err != nil {
		return err
	}
	m.report.Add(migrate.Done, "this node's Services are kube-proxy's, nothing of fairlead is left")
	return nil
}

// newDataplane makes the Dataplane of an agent, with what it takes over.
func (m *migration) newDataplane(ctx context.Context, c *config.Configuration, log *slog.Logger) (dataplane.Dataplane, prometheus.Collector, error) {
	if m.back {
		dp, err := m.kubeProxy(c, log)
		return dp, nil, err
	}
	t, why, err := choose(c)
	if err != nil {
		return nil, nil, err
	}
	log.Info("dataplane chosen", "dataplane", t.name, "why", why)
	old, err := m.kubeProxys(ctx, t, c, log)
	if err != nil {
		return nil, nil, err
	}
	return newDataplane(ctx, t, c, log, old...)
}

// kubeProxys are the predecessor that a kube-proxy is, where its rules are there
// and are to be taken over.
func (m *migration) kubeProxys(ctx context.Context, t technology, c *config.Configuration, log *slog.Logger) ([]handover.Predecessor, error) {
	if !c.TakeOver {
		found, err := otherProxies()
		if err != nil { // it may not look
			log.Debug("look for rules of another proxy", "error", err)
		}
		if len(found) > 0 {
			log.Warn("another proxy's rules are in force beside this agent's: start it with --take-over, see docs/migration.md", "found", strings.Join(found, ", "))
		}
		return nil, nil
	}
	found, err := migrate.Find(ctx)
	if err != nil {
		return nil, fmt.Errorf("--take-over: %w", err)
	}
	if found.Empty() {
		return nil, nil
	}
	o := migrate.Options{
		Report: m.report, Shared: t.conntrack,
		Running: migrate.Process, // an agent answers where kube-proxy would, by now
		Read:    func() (dataplane.Reader, error) { return t.read(c) },
		Hook:    func() error { return nftables.Hook(nftablesOptions(c, log)) },
		Unhook:  func() error { _, err := nftables.Cleanup(nftablesOptions(c, log)); return err },
	}
	if m.ignoreRunning {
		o.Running = nil
	}
	if o.Report == nil {
		o.Report = migrate.NewReport(func(s migrate.Step) {
			log.Info("take over from kube-proxy", "action", s.Action, "what", s.What)
		})
		if err := ended(ctx, c.MetricsBindAddress, c.HealthzBindAddress, takeOverPatience, log); err != nil {
			return nil, err
		}
	}
	for _, line := range found.Lines() {
		o.Report.Add(migrate.Found, "%s", line)
	}
	return []handover.Predecessor{migrate.NewTakeOver(found, o)}, nil
}

// ended waits until no kube-proxy runs.
func ended(ctx context.Context, metrics, healthz string, patience time.Duration, log *slog.Logger) error {
	deadline := time.Now().Add(patience)
	told := false
	for {
		how, err := migrate.Running(ctx, metrics, healthz)
		if err != nil || how == "" {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("kube-proxy runs on this node (%s) and would write its rules again: %s", how, migrate.Remedy)
		}
		if !told {
			log.Info("wait for kube-proxy to end", "found", how, "atMost", patience)
			told = true
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(runningPoll):
		}
	}
}

// kubeProxy is a running kube-proxy as the successor of all that is here of
// fairlead.
func (m *migration) kubeProxy(c *config.Configuration, log *slog.Logger) (dataplane.Dataplane, error) {
	old, err := predecessors("", true, c, log)
	if err != nil {
		return nil, err
	}
	if len(old) == 0 {
		return nil, errors.New("nothing of fairlead is in this kernel and network namespace: there is nothing to give back")
	}
	running := func(ctx context.Context) (string, error) {
		return migrate.Running(ctx, c.MetricsBindAddress, c.HealthzBindAddress)
	}
	if m.ignoreRunning {
		running = nil
	}
	for i, p := range old {
		m.report.Add(migrate.Found, "dataplane %s", p.Name())
		old[i] = migrate.Reporting(p, m.report)
	}
	return handover.New(migrate.NewKubeProxy(m.report, running), old, handover.Options{Log: log, DrainTimeout: m.drain, Ended: m.ended}), nil
}

// controllerLog is without what the report says: that kube-proxy is waited for.
func (m *migration) controllerLog(log *slog.Logger) *slog.Logger {
	if m.back {
		return slog.New(slog.DiscardHandler)
	}
	return log
}

// cleanupKubeProxy removes what a kube-proxy left, for who does not take over
// from it.
func cleanupKubeProxy(ctx context.Context, w io.Writer) error {
	switch how, err := migrate.Process(); {
	case err != nil:
		return err
	case how != "":
		return fmt.Errorf("kube-proxy runs on this node (%s) and would write its rules again: %s", how, migrate.Remedy)
	}
	found, err := migrate.Find(ctx)
	if err != nil {
		return err
	}
	if found.Empty() {
		fmt.Fprintln(w, "nothing to remove")
		return nil
	}
	removed, err := found.Withdraw(ctx)
	rest, rerr := found.Remove()
	for _, r := range append(removed, rest...) {
		fmt.Fprintf(w, "removed %s\n", r)
	}
	return errors.Join(err, rerr)
}
