// SPDX-License-Identifier: Apache-2.0

package podrunner

import (
	"context"
	"slices"
	"time"

	"fairlead.dev/podrunner/cri"
	"fairlead.dev/podrunner/podstatus"
)

// observe brings what the worker knows of the runtime up to date: what is listed
// is asked for where it is new or in another state. On an error it stays as it
// was: nothing is concluded from a runtime that does not answer.
func (w *worker) observe(ctx context.Context, in *inbox) error {
	listed, fresh := in.listed, in.fresh
	if fresh && in.listedAt.Before(w.changed) {
		fresh = false // it may lack what was done since
		w.mu.Lock()
		w.inbox.last = nil
		w.mu.Unlock()
	}
	if in.look || (fresh && w.misses(listed)) {
		var err error
		if listed, err = w.r.client.ListPod(ctx, w.uid); err != nil {
			return err
		}
		fresh = true
	}
	if !fresh {
		return nil
	}
	var now podstatus.Observed
	if listed != nil {
		for _, item := range listed.Items {
			if err := w.look(ctx, item, &now); err != nil && !cri.IsNotFound(err) {
				return err
			}
		}
	}
	sortNewestFirst(&now)
	w.observed = now
	return nil
}

// misses: the list lacks something that was there. It is asked for again before
// that is believed.
func (w *worker) misses(l *cri.Listed) bool {
	have := map[string]bool{}
	if l != nil {
		for _, i := range l.Items {
			have[i.ID] = true
		}
	}
	return slices.ContainsFunc(w.observed.Sandboxes, func(s podstatus.Sandbox) bool { return !have[s.ID] }) ||
		slices.ContainsFunc(w.observed.Containers, func(c podstatus.Container) bool { return !have[c.ID] })
}

// look adds one item to what is observed; what has not changed is not asked for.
func (w *worker) look(ctx context.Context, item cri.Item, now *podstatus.Observed) error {
	if item.SandboxID == "" {
		for _, s := range w.observed.Sandboxes {
			if s.ID == item.ID && s.Ready == (item.State == podstatus.Running) && (len(s.IPs) > 0 || s.HostNetwork || !s.Ready) {
				now.Sandboxes = append(now.Sandboxes, s)
				return nil
			}
		}
		s, _, err := w.r.client.Sandbox(ctx, item.ID)
		if err == nil {
			now.Sandboxes = append(now.Sandboxes, s)
		}
		return err
	}
	for _, c := range w.observed.Containers {
		if c.ID == item.ID && c.State == item.State {
			now.Containers = append(now.Containers, c)
			return nil
		}
	}
	c, info, err := w.r.client.Container(ctx, item.ID, item.SandboxID)
	if err != nil {
		return err
	}
	if w.pod == nil {
		w.remember(&info)
	}
	w.r.transition()
	w.watchExit(&c)
	now.Containers = append(now.Containers, c)
	return nil
}

func sortNewestFirst(o *podstatus.Observed) {
	slices.SortStableFunc(o.Sandboxes, func(a, b podstatus.Sandbox) int { return b.Created.Compare(a.Created) })
	slices.SortStableFunc(o.Containers, func(a, b podstatus.Container) int { return b.Created.Compare(a.Created) })
}

// sawSandbox and sawContainer put in what the worker has just made or asked for.
func (w *worker) sawSandbox(s podstatus.Sandbox) {
	w.observed.Sandboxes = slices.DeleteFunc(slices.Clone(w.observed.Sandboxes), func(o podstatus.Sandbox) bool { return o.ID == s.ID })
	w.observed.Sandboxes = append(w.observed.Sandboxes, s)
	sortNewestFirst(&w.observed)
	w.changed = time.Now()
}

func (w *worker) sawContainer(c podstatus.Container) {
	w.forgetContainer(c.ID)
	if !w.watchExit(&c) {
		w.r.transition() // it may end at once
	}
	w.observed.Containers = append(w.observed.Containers, c)
	sortNewestFirst(&w.observed)
	w.changed = time.Now()
}

func (w *worker) forgetContainer(id string) {
	w.observed.Containers = slices.DeleteFunc(slices.Clone(w.observed.Containers), func(o podstatus.Container) bool { return o.ID == id })
	w.changed = time.Now()
}

// recall takes up, once, what the runtime knows of the time before this agent.
func (w *worker) recall() {
	if w.recalled || w.pod == nil {
		return
	}
	w.recalled = true
	for i := range w.observed.Containers {
		w.backoff.recall(w.observed.Containers[i].Name, &w.observed)
	}
}
