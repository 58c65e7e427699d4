// SPDX-License-Identifier: Apache-2.0

package podrunner

import (
	"testing"
	"time"

	"fairlead.dev/podrunner/podstatus"
)

func TestAContainerThatEndsAgainAndAgainWaitsLonger(t *testing.T) {
	b := newBackoff(10*time.Second, 300*time.Second)
	now := time.Unix(1e9, 0)
	for i, want := range []time.Duration{0, 10, 20, 40, 80, 160, 300, 300} {
		want *= time.Second
		finished := now.Add(time.Second)
		until, wait := b.until("c", finished)
		if got := until.Sub(finished); (want > 0 && got != want) || wait != want || want == 0 && !until.IsZero() {
			t.Errorf("end %d: waits %v until %v, want %v", i, wait, got, want)
		}
		now = finished.Add(want)
		b.restarted("c", finished, now)
	}
	finished := now.Add(601 * time.Second)
	if until, _ := b.until("c", finished); !until.IsZero() {
		t.Errorf("after it ran for 10 minutes it waits until %v, want not at all", until)
	}
	b.restarted("c", finished, finished)
	if _, wait := b.until("c", finished.Add(time.Second)); wait != 10*time.Second {
		t.Errorf("then it begins anew with %v, want 10s", wait)
	}
	if until, _ := b.until("other", finished); !until.IsZero() {
		t.Error("another container waits too")
	}
}

func TestARestartOfTheAgentTakesUpTheBackoff(t *testing.T) {
	now := time.Unix(1e9, 0)
	for waited, want := range map[time.Duration]time.Duration{
		0: 10, 2 * time.Second: 10, 10*time.Second + 200*time.Millisecond: 20, 20 * time.Second: 40, 161 * time.Second: 300, 305 * time.Second: 300,
	} {
		b := newBackoff(10*time.Second, 300*time.Second)
		o := podstatus.Observed{Containers: []podstatus.Container{
			{Name: "c", State: podstatus.Exited, Created: now.Add(waited), Finished: now.Add(waited + time.Second)},
			{Name: "x", State: podstatus.Running, Created: now},
			{Name: "c", State: podstatus.Exited, Created: now.Add(-time.Hour), Finished: now},
		}}
		b.recall("c", &o)
		b.recall("x", &o)
		if _, wait := b.until("c", o.Containers[0].Finished); wait != want*time.Second {
			t.Errorf("it had waited %v: waits %v now, want %v", waited, wait, want*time.Second)
		}
		if _, wait := b.until("x", now); wait != 0 {
			t.Errorf("one that never ended waits %v", wait)
		}
	}
}
