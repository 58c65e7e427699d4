// SPDX-License-Identifier: Apache-2.0

package housekeeping

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"fairlead.dev/podrunner/cri"
	"fairlead.dev/podrunner/podspec"
)

// finished says whether a Pod has come to its end.
func finished(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded
}

// removeDead removes the containers of Pods that have finished, with their logs.
// The Runner keeps them for whoever asks; a node whose disk is short cannot. Of
// Pods that run it keeps no more than is needed, and those being deleted it
// removes itself.
func (k *Keeper) removeDead(ctx context.Context, c *cri.Client, pods []*corev1.Pod) error {
	done := map[types.UID]bool{}
	for _, p := range pods {
		if finished(p) && p.DeletionTimestamp == nil {
			done[p.UID] = true
		}
	}
	if len(done) == 0 {
		return nil
	}
	containers, err := c.Runtime.ListContainers(ctx, nil)
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	slices.SortStableFunc(containers, func(a, b *runtimeapi.Container) int { return cmp.Compare(b.CreatedAt, a.CreatedAt) })
	type name struct {
		uid  types.UID
		name string
	}
	newest := map[name]bool{}
	used := map[string]bool{} // sandboxes
	for _, d := range containers {
		uid := types.UID(d.Labels[podspec.LabelPodUID])
		n := name{uid, d.Labels[podspec.LabelContainerName]}
		stays := !done[uid] || d.State != runtimeapi.ContainerState_CONTAINER_EXITED || (!k.o.StatusKept && !newest[n])
		newest[n] = true
		if !stays {
			if err = c.RemoveContainer(ctx, d.Id); err == nil {
				if path := k.logPath(d); path != "" {
					removeLog(path)
				}
				continue
			}
			k.log.Debug("housekeeping", "error", err)
		}
		used[d.PodSandboxId] = true
	}
	if k.o.StatusKept {
		return k.removeSandboxes(ctx, c, done, used)
	}
	return nil
}

// removeSandboxes removes those of Pods that have finished and have no container
// left.
func (k *Keeper) removeSandboxes(ctx context.Context, c *cri.Client, done map[types.UID]bool, used map[string]bool) error {
	sandboxes, err := c.Runtime.ListPodSandbox(ctx, &runtimeapi.PodSandboxFilter{
		State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY},
	})
	if err != nil {
		return fmt.Errorf("list sandboxes: %w", err)
	}
	for _, s := range sandboxes {
		if done[types.UID(s.Labels[podspec.LabelPodUID])] && !used[s.Id] {
			if err := c.RemoveSandbox(ctx, s.Id); err != nil {
				k.log.Debug("housekeeping", "error", err)
			}
		}
	}
	return nil
}
