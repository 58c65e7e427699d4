// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"
)

// sizes are the numbers of Services that flips are measured with.
var sizes = []int{100, 1000, 10000}

// checkEvery is how often the kernel is checked where the cost of that to flips
// is measured; an agent does it once a minute.
const checkEvery = time.Second

// flip measures how long a changed EndpointSlice takes to move connections.
func (b *bench) flip(ctx context.Context) error {
	for _, n := range sizes {
		a, err := b.startInner(loadOrder{Services: n})
		if err == nil {
			err = b.flips(a, "objects in memory", n)
		}
		if err != nil {
			return err
		}
	}
	for _, n := range sizes {
		a, err := b.startOuter(ctx, n)
		if err == nil {
			err = b.flips(a, "a directory", n)
		}
		if err != nil {
			return err
		}
	}
	n := sizes[len(sizes)-1]
	a, err := b.startInner(loadOrder{Services: n, CheckInterval: checkEvery})
	if err != nil {
		return err
	}
	return b.flips(a, "in memory, with a check a second", n)
}

func (b *bench) flips(a *agent, from string, services int) error {
	defer a.stop()
	say("flip: %d changes, %d Services, from %s", b.settings.flips, services, from)
	client, err := b.lab.start("client", b.lab.hooked.client, a.place.pods)
	if err != nil {
		return err
	}
	defer client.stop()
	took := make([]float64, 0, b.settings.flips)
	order := awaitOrder{To: netip.AddrPortFrom(probeIPv4, servicePort), First: firstBefore, Within: 10 * time.Second}
	if err := client.ask("await", order, nil); err != nil {
		return err
	}
	for range b.settings.flips {
		order.First = firstBefore + firstAfter - order.First
		if err := client.begin("await", order); err != nil {
			return err
		}
		// Not in step with anything.
		time.Sleep(2*time.Millisecond + rand.N(10*time.Millisecond))
		begin, err := a.flip(order.First)
		if err != nil {
			return err
		}
		var moved awaited
		if err := client.end("await", &moved); err != nil {
			return err
		}
		if moved.At < begin {
			return fmt.Errorf("flip, %d Services from %s: a Backend answered that had been removed before", services, from)
		}
		took = append(took, float64(moved.At-begin)/1e6)
	}
	row := flipRow{From: from, Services: services, Flips: len(took)}
	if a.inner != nil {
		var checks []int64
		if err := a.inner.ask("syncs", struct{}{}, &checks); err != nil {
			return err
		}
		ms := make([]float64, len(checks))
		for i, ns := range checks {
			ms[i] = float64(ns) / 1e6
		}
		row.Checks, row.CheckMs = len(ms), median(ms)
	}
	if row.Memory, err = a.memory(); err != nil {
		return err
	}
	row.P50Ms, row.P99Ms, row.MaxMs = percentile(took, 50), percentile(took, 99), percentile(took, 100)
	b.report.Flip = append(b.report.Flip, row)
	return a.leave()
}
