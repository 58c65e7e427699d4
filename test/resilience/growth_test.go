// SPDX-License-Identifier: Apache-2.0

package resilience

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
)

const (
	growthChanges = 1000
	// growthPace is from one change to the next: each is an Apply of its own.
	growthPace = 5 * time.Millisecond
	// growthKiB is what an agent's own memory may grow by: its heap is two
	// thirds of what it can be between two collections (GOGC 50).
	growthKiB = 6 << 10
	// growthDevices come and go, as those of pods do.
	growthDevices = 20
)

// size is what an agent holds.
type size struct{ openFiles, threads, residentKiB int }

func TestAgentHoldsNoMoreAfter1000Changes(t *testing.T) {
	random, _ := seed(t)
	k := newKillTown(t, random)
	a := k.startAgent(0)
	k.everyPath(streamsFor, loadPlan{Patience: patience}, 2) // so that there are sockets to end
	before, err := k.sizeAfter(a, growthChanges/4)
	if err != nil {
		t.Fatal(err)
	}
	pins, err := k.pins()
	if err != nil {
		t.Fatal(err)
	}
	if err := k.changeDevices(); err != nil {
		t.Fatal(err)
	}
	after, err := k.sizeAfter(a, growthChanges)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("growth: %d changes and %d devices that came and went: %d open files, then %d; %d threads, then %d; %d KiB of own memory, then %d\n", growthChanges, growthDevices,
		before.openFiles, after.openFiles, before.threads, after.threads, before.residentKiB, after.residentKiB)
	if after.openFiles > before.openFiles {
		t.Errorf("open files: %d after %d changes, %d after %d more", before.openFiles, growthChanges/4, after.openFiles, growthChanges)
	}
	// The runtime starts threads as it needs them, and keeps them.
	if after.threads > before.threads+8 {
		t.Errorf("threads: %d, then %d", before.threads, after.threads)
	}
	if after.residentKiB > before.residentKiB+growthKiB {
		t.Errorf("own memory: %d KiB, then %d KiB, %d more at most", before.residentKiB, after.residentKiB, growthKiB)
	}
	if now, err := k.pins(); err != nil || !slices.Equal(pins, now) {
		t.Errorf("pins before and after the devices came and went (-before +after), %v:\n%s", err, cmp.Diff(pins, now))
	}
	if code, err := a.terminate(20 * time.Second); err != nil || code != 0 {
		t.Errorf("SIGTERM: exit %d, %v", code, err)
	}
}

// sizeAfter makes changes, and measures the agent when it is at rest.
func (k *killTown) sizeAfter(a *agent, changes int) (size, error) {
	for range changes {
		if err := k.change(); err != nil {
			return size{}, err
		}
		time.Sleep(growthPace)
	}
	if _, err := k.settle(k.world, a.within(30*time.Second)); err != nil {
		return size{}, errors.Join(err, a.alive())
	}
	// A sweep has files open: take the least of a while.
	var least size
	for i := range 30 {
		files, err := a.openFiles()
		if err != nil {
			return size{}, errors.Join(err, a.alive())
		}
		threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", a.cmd.Process.Pid))
		if err != nil {
			return size{}, err
		}
		kib, err := a.residentKiB()
		if err != nil {
			return size{}, err
		}
		now := size{files, len(threads), kib}
		if i == 0 {
			least = now
		}
		least = size{min(least.openFiles, now.openFiles), min(least.threads, now.threads), min(least.residentKiB, now.residentKiB)}
		time.Sleep(50 * time.Millisecond)
	}
	return least, nil
}

// changeDevices makes devices like those of pods, waits until each has the
// packet path, and removes them.
func (k *killTown) changeDevices() error {
	names := make([]string, growthDevices)
	for i := range names {
		names[i] = fmt.Sprintf("fairlead%d", i)
		veth := netlink.NewVeth(netlink.LinkAttrs{Name: names[i]})
		veth.PeerName = names[i] + "p"
		if err := k.thread.Do(func() error { return netlink.LinkAdd(veth) }); err != nil {
			return fmt.Errorf("make device: %w", err)
		}
	}
	err := k.eventually(func() error {
		count, _, err := k.attached()
		if wrong := onePerHook(count, 1); len(wrong) > 0 {
			err = errors.Join(err, fmt.Errorf("new devices: %q", wrong))
		}
		return err
	})
	for _, name := range names {
		err = errors.Join(err, k.thread.Do(func() error {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			return netlink.LinkDel(l)
		}))
	}
	return err
}

// eventually tries until f succeeds, for half a minute.
func (k *killTown) eventually(f func() error) error {
	for patient := within(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if err := f(); err == nil || !patient() {
			return err
		}
	}
}
