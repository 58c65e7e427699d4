// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"context"
	"fmt"
	"io"
	"sync"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/handover"
)

// The actions of Steps.
const (
	Found      = "found"
	Programmed = "programmed"
	Checked    = "checked"
	Removed    = "removed"
	Warning    = "warning"
	Waiting    = "waiting"
	Left       = "left" // goes on by itself
	Done       = "done"
)

// Step is one thing that was done or seen.
type Step struct {
	Action string `json:"action"`
	What   string `json:"what"`
}

// Report is what a migration did, in order.
type Report struct {
	// tell is called with each Step as it comes; nil where nobody listens.
	tell func(Step)

	mu    sync.Mutex
	steps []Step
}

// NewReport makes one that also tells each Step at once.
func NewReport(tell func(Step)) *Report { return &Report{tell: tell} }

// Add takes down a Step.
func (r *Report) Add(action, format string, args ...any) {
	s := Step{action, fmt.Sprintf(format, args...)}
	r.mu.Lock()
	r.steps = append(r.steps, s)
	r.mu.Unlock()
	if r.tell != nil {
		r.tell(s)
	}
}

// Steps are those so far; never nil.
func (r *Report) Steps() []Step {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Step{}, r.steps...)
}

// Write writes a Step as a line.
func (s Step) Write(w io.Writer) { fmt.Fprintf(w, "%-10s  %s\n", s.Action, s.What) }

// Reporting is a predecessor whose end is told.
func Reporting(p handover.Predecessor, r *Report) handover.Predecessor {
	return &reporting{p, r, false}
}

type reporting struct {
	handover.Predecessor
	report *Report
	told   bool
}

// Begin implements handover.Predecessor.
func (r *reporting) Begin(ctx context.Context, t *dataplane.Table) error {
	err := r.Predecessor.Begin(ctx, t)
	if err == nil {
		r.report.Add(Done, "dataplane %s takes no new connection", r.Name())
	}
	return err
}

// Carries implements handover.Predecessor.
func (r *reporting) Carries() (bool, error) {
	carries, err := r.Predecessor.Carries()
	if carries && !r.told {
		r.report.Add(Waiting, "connections that dataplane %s carries", r.Name())
		r.told = true
	}
	return carries, err
}

// End implements handover.Predecessor.
func (r *reporting) End(ctx context.Context) error {
	err := r.Predecessor.End(ctx)
	if err == nil {
		r.report.Add(Removed, "dataplane %s", r.Name())
	}
	return err
}
