// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"fairlead.dev/dataplane"
)

// nothing is a Dataplane that does nothing at all.
type nothing struct{}

func (nothing) Name() string                                        { return "nothing" }
func (nothing) Sync(context.Context, *dataplane.Table) (int, error) { return 0, nil }
func (nothing) Apply(context.Context, dataplane.Change) error       { return nil }
func (nothing) Close() error                                        { return nil }

// witness is a reporter that keeps what it is told.
type witness struct {
	name     string
	failures []string
}

func (w *witness) Helper()             {}
func (w *witness) Name() string        { return w.name }
func (w *witness) Logf(string, ...any) {}
func (w *witness) Errorf(format string, args ...any) {
	w.failures = append(w.failures, fmt.Sprintf(format, args...))
}
func (w *witness) Fatal(args ...any) {
	w.failures = append(w.failures, fmt.Sprint(args...))
	runtime.Goexit()
}
func (w *witness) Fatalf(format string, args ...any) {
	w.Errorf(format, args...)
	runtime.Goexit()
}

// holdsWithoutServices are the cases that say what a Dataplane leaves alone.
var holdsWithoutServices = []string{"nodeport-not-on-pods-loopback", "nodeport-does-not-shadow", "path-not-a-service"}

func TestEveryCaseFailsWhereTheDataplaneDoesNothing(t *testing.T) {
	idle := Target{Name: "nothing", New: func(*Node) (dataplane.Dataplane, error) { return nothing{}, nil }}
	cases := Cases()
	amongBenches(t, idle, len(cases), func(b *bench, i int) {
		c := cases[i]
		b.patience = 150 * time.Millisecond
		w := &witness{name: c.ID}
		done := make(chan struct{})
		go func() {
			defer close(done)
			b.play(w, c, c.variants()[0])
		}()
		<-done
		if holds := slices.Contains(holdsWithoutServices, c.ID); holds != (len(w.failures) == 0) {
			t.Errorf("%s: want holds=%v, seen %q", c.ID, holds, w.failures)
		}
		for _, f := range w.failures {
			t.Logf("%s: %s", c.ID, f)
		}
	})
}
