// SPDX-License-Identifier: Apache-2.0

package source

import (
	"testing"
	"time"
)

func TestBackoffGrowsFromMinToMaxWithJitter(t *testing.T) {
	b := backoff{min: 200 * time.Millisecond, max: 2 * time.Second}
	for i, want := range []time.Duration{200, 400, 800, 1600, 2000, 2000, 2000} {
		want *= time.Millisecond
		if got := b.next(0, true); got < want/2 || got > want {
			t.Errorf("pause %d is %v, want between %v and %v", i, got, want/2, want)
		}
	}
}

func TestBackoffDiffersBetweenAgents(t *testing.T) {
	seen := map[time.Duration]bool{}
	for range 20 {
		b := backoff{min: time.Second, max: time.Minute}
		seen[b.next(0, true)] = true
	}
	if len(seen) < 10 {
		t.Errorf("20 agents pause for only %d different times", len(seen))
	}
}

func TestBackoffStartsAnewAfterALastingConnection(t *testing.T) {
	b := backoff{min: 200 * time.Millisecond, max: 2 * time.Second}
	for range 10 {
		b.next(time.Second, true)
	}
	if got := b.next(time.Hour, true); got > b.min {
		t.Errorf("the pause after an hour's connection is %v, want at most %v", got, b.min)
	}
}

func TestBackoffDoesNotPauseAfterAnOrderlyEnd(t *testing.T) {
	b := backoff{min: 200 * time.Millisecond, max: 2 * time.Second}
	if got := b.next(time.Hour, false); got != 0 {
		t.Errorf("the pause is %v, want none", got)
	}
	if got := b.next(time.Millisecond, false); got == 0 {
		t.Error("no pause after a connection that ended at once: a server that does so would be asked without end")
	}
}
