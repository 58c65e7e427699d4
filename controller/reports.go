// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"log/slog"
	"time"

	"fairlead.dev/controller/compile"
)

// maxReports is how many lines a second the loop may log: a failure or a
// Problem can flap as fast as objects change.
const maxReports = 10

// reports decides what the loop logs: what is new and what is over, not each
// attempt. Metrics and Problems have the rest.
type reports struct {
	failure string
	known   map[compile.Problem]bool
	second  time.Time
	lines   int
}

// allow counts a line.
func (r *reports) allow() bool {
	if now := time.Now(); now.Sub(r.second) > time.Second {
		r.second, r.lines = now, 0
	}
	r.lines++
	return r.lines <= maxReports
}

// outcome reports an attempt to bring the kernel in line; clean means that
// nothing is left to be tried again.
func (r *reports) outcome(log *slog.Logger, err error, clean bool) {
	switch {
	case err != nil && err.Error() != r.failure && r.allow():
		r.failure = err.Error()
		log.Error("cannot bring the kernel in line, trying again; the last good state is in force", "error", err)
	case err == nil && clean && r.failure != "":
		r.failure = ""
		log.Info("the kernel takes changes again")
	}
}

// problems reports those that are new in the full list.
func (r *reports) problems(log *slog.Logger, now []compile.Problem) {
	known := r.known
	r.known = make(map[compile.Problem]bool, len(now))
	unsaid := 0
	for _, p := range now {
		r.known[p] = true
		switch {
		case known[p]:
		case r.allow():
			log.Warn("not in force as written", "object", p.Object, "reason", p.Reason)
		default:
			unsaid++
		}
	}
	if unsaid > 0 && r.lines == maxReports+unsaid {
		log.Warn("more objects are not in force as written, see fairlead_problems", "count", unsaid)
	}
}
