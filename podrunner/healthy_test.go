// SPDX-License-Identifier: Apache-2.0

package podrunner

import (
	"testing"
	"time"
)

func TestARuntimeThatHangsMakesTheRunnerUnhealthyUntilItAnswers(t *testing.T) {
	g := newRig(t)
	// At rest it is listed each 3 s.
	const within = 6 * time.Second
	g.until("it is healthy", patience, func() bool { return g.r.Runtime() != nil && g.r.healthy(within) == nil })
	if err := g.rt.Hang(); err != nil {
		t.Fatal(err)
	}
	g.until("it is unhealthy while the runtime hangs", patience, func() bool { return g.r.healthy(within) != nil })
	if err := g.r.Healthy(); err != nil {
		t.Errorf("after %v already: %v", within, err)
	}
	if err := g.rt.Resume(); err != nil {
		t.Fatal(err)
	}
	g.until("it is healthy again", patience, func() bool { return g.r.healthy(within) == nil })
}
