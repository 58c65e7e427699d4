// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"fairlead.dev/controller/config"
	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/handover"
)

// technology is one value of --dataplane: a package below dataplane, wired to
// the configuration.
type technology struct {
	name string
	// conntrack: its flows are in the kernel's conntrack.
	conntrack bool
	// start makes the Dataplane. takesOver: another one is in force. alone is
	// called when that is gone; nil where it makes no difference.
	start func(ctx context.Context, c *config.Configuration, log *slog.Logger, takesOver bool) (started, error)
	// read opens what an agent left in the kernel.
	read  func(c *config.Configuration) (dataplane.Reader, error)
	check func(c *config.Configuration) []dataplane.CheckResult
	// present: there is kernel state. draining: but another one replaces it.
	present func(c *config.Configuration) (present, draining bool, err error)
	// leave makes it the predecessor of another technology, whose flows are or
	// are not in the kernel's conntrack.
	leave   func(c *config.Configuration, log *slog.Logger, conntrack bool) handover.Predecessor
	cleanup func(c *config.Configuration) (removed []string, err error)
}

// started is a Dataplane with what belongs to it.
type started struct {
	dataplane.Dataplane
	collector prometheus.Collector
	alone     func() error
	// reserve is handover.Options.Reserve.
	reserve func([]dataplane.ConntrackRow) error
}

// technologies are in the order in which auto tries them. IPVS comes last: its
// day is over in Kubernetes (KEP-5495), so it is chosen by name only.
var technologies = []technology{ebpfTechnology, nftablesTechnology, iptablesTechnology, ipvsTechnology}

// autoTechnologies are those that auto may choose.
var autoTechnologies = []string{"ebpf", "nftables", "iptables"}

func technologyNamed(name string) (technology, error) {
	for _, t := range technologies {
		if t.name == name {
			return t, nil
		}
	}
	return technology{}, fmt.Errorf("--dataplane %q: want auto, ebpf, nftables, iptables or ipvs", name)
}

// choose is the technology of --dataplane and, for auto, why it is this one.
func choose(c *config.Configuration) (t technology, why string, err error) {
	if c.Dataplane != "auto" {
		t, err = technologyNamed(c.Dataplane)
		return t, "--dataplane " + c.Dataplane, err
	}
	var lacking []string
	for _, t := range technologies {
		if !slices.Contains(autoTechnologies, t.name) {
			continue
		}
		ok, reason := dataplane.Usable(t.check(c))
		if ok {
			why := "auto: it is the first that this machine can do"
			if len(lacking) > 0 {
				why = "auto: " + strings.Join(lacking, "; ")
			}
			return t, why, nil
		}
		lacking = append(lacking, "not "+t.name+" ("+reason+")")
	}
	return technology{}, "", fmt.Errorf("--dataplane auto: this machine can do none: %s (see fairlead check)", strings.Join(lacking, "; "))
}

// newDataplane makes the Dataplane of a technology. What another one holds is
// taken over, and so is old.
func newDataplane(ctx context.Context, t technology, c *config.Configuration, log *slog.Logger, old ...handover.Predecessor) (dataplane.Dataplane, prometheus.Collector, error) {
	others, err := predecessors(t.name, t.conntrack, c, log)
	if err != nil {
		return nil, nil, err
	}
	old = append(old, others...)
	s, err := t.start(ctx, c, log, len(old) > 0)
	if err != nil {
		return nil, nil, err
	}
	if len(old) == 0 {
		return s.Dataplane, s.collector, nil
	}
	return handover.New(s.Dataplane, old, handover.Options{Log: log, Reserve: s.reserve, Ended: func() {
		if s.alone == nil {
			return
		}
		if err := s.alone(); err != nil {
			log.Warn("end the handover", "dataplane", t.name, "error", err)
		}
	}}), s.collector, nil
}

// predecessors are the Dataplanes that another one finds in the kernel, whose
// flows are or are not in the kernel's conntrack.
func predecessors(successor string, conntrack bool, c *config.Configuration, log *slog.Logger) (old []handover.Predecessor, err error) {
	for _, other := range technologies {
		if other.name == successor {
			continue
		}
		present, _, err := other.present(c)
		if errors.Is(err, fs.ErrPermission) {
			// Least capabilities, such as the DaemonSet's, do for one dataplane.
			log.Debug("this process may not look for what another dataplane left", "dataplane", other.name, "error", err)
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look for what dataplane %s left: %w", other.name, err)
		}
		if present {
			old = append(old, other.leave(c, log, conntrack))
		}
	}
	return old, nil
}

// namedReader is a Reader with the name of its technology.
type namedReader struct {
	dataplane.Reader
	name string
}

// openReader reads what is in force: of --dataplane or, with auto, of whatever
// is there.
func openReader(c *config.Configuration) (*namedReader, error) {
	if c.Dataplane != "auto" {
		t, err := technologyNamed(c.Dataplane)
		if err != nil {
			return nil, err
		}
		return readTechnology(t, c)
	}
	var leaving []technology
	for _, t := range technologies {
		present, draining, err := t.present(c)
		switch {
		case errors.Is(err, fs.ErrPermission):
		case err != nil:
			return nil, fmt.Errorf("look for dataplane %s: %w", t.name, err)
		case present && !draining:
			return readTechnology(t, c)
		case present:
			leaving = append(leaving, t)
		}
	}
	if len(leaving) > 0 {
		return readTechnology(leaving[0], c)
	}
	return nil, fmt.Errorf("nothing of fairlead is in this kernel and network namespace, nor pinned in %s: start `fairlead run` or give the agent's --bpffs", c.BPFFS)
}

func readTechnology(t technology, c *config.Configuration) (*namedReader, error) {
	r, err := t.read(c)
	if err != nil {
		return nil, err
	}
	return &namedReader{r, t.name}, nil
}

// checkKernel has the rows of the technology that run would use, after a row
// that says which this is. With auto the others' rows say what they lack.
func checkKernel(c *config.Configuration) []checkRow {
	t, why, err := choose(c)
	if err != nil {
		rows := []checkRow{{Name: "dataplane", Detail: err.Error(), Cost: "Services are not served", Required: true}}
		for _, t := range technologies {
			rows = append(rows, checkRows(t, c, false)...)
		}
		return rows
	}
	rows := []checkRow{{Name: "dataplane", OK: true, Detail: t.name + " (" + why + ")"}}
	rows = append(rows, checkRows(t, c, true)...)
	if c.Dataplane != "auto" {
		return rows
	}
	for _, other := range technologies {
		if other.name != t.name {
			rows = append(rows, usableRow(other, c))
		}
	}
	return rows
}

func checkRows(t technology, c *config.Configuration, chosen bool) (rows []checkRow) {
	for _, r := range t.check(c) {
		rows = append(rows, checkRow{Name: r.Name, OK: r.OK, Detail: r.Detail, Cost: r.Cost, Required: chosen && r.Required})
	}
	return rows
}

// usableRow says in one row whether a technology could be used.
func usableRow(t technology, c *config.Configuration) checkRow {
	ok, reason := dataplane.Usable(t.check(c))
	row := checkRow{Name: "dataplane " + t.name, OK: ok, Detail: "could be used", Cost: ""}
	if !ok {
		row.Detail, row.Cost = reason, "--dataplane "+t.name+" cannot be used here"
	}
	return row
}

// cleanupKernel removes what any technology left.
func cleanupKernel(c *config.Configuration) (removed []string, err error) {
	var errs []error
	for _, t := range technologies {
		r, err := t.cleanup(c)
		removed = append(removed, r...)
		if err != nil {
			errs = append(errs, fmt.Errorf("clean up dataplane %s: %w", t.name, err))
		}
	}
	return removed, errors.Join(errs...)
}
