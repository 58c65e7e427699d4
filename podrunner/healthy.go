// SPDX-License-Identifier: Apache-2.0

package podrunner

import (
	"fmt"
	"time"
)

// healthyWithin is how old the last list of the runtime may be: the kubelet's
// /healthz allows its own loop as much.
const healthyWithin = 2 * time.Minute

// Healthy says why the Runner does not do its work: the runtime does not answer,
// or its loop does not go on. Before the runtime was reached nothing is wrong.
func (r *Runner) Healthy() error { return r.healthy(healthyWithin) }

func (r *Runner) healthy(within time.Duration) error {
	last := r.lastList.Load()
	if last == nil {
		return nil
	}
	if ago := time.Since(*last); ago > within {
		return fmt.Errorf("the container runtime was last listed %v ago", ago.Round(time.Second))
	}
	return nil
}

// listedNow notes that the runtime was listed, and all workers told.
func (r *Runner) listedNow() { r.lastList.Store(new(time.Now())) }
