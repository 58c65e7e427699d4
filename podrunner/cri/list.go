// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"fairlead.dev/podrunner/podspec"
	"fairlead.dev/podrunner/podstatus"
)

// Item is a sandbox or a container in a list: what is cheap to get of all.
type Item struct {
	// ID is its own; SandboxID that of its sandbox, "" for a sandbox.
	ID, SandboxID string
	// State of a container; a sandbox is Running where it is ready, else Exited.
	State podstatus.ContainerState
	// Created in nanoseconds since 1970.
	Created int64
}

// Listed is what the runtime has of one Pod, in a list.
type Listed struct {
	Namespace, Name string
	// Items are sorted by ID.
	Items []Item
}

// Equal says whether both hold the same in the same state.
func (l *Listed) Equal(o *Listed) bool { return l != nil && o != nil && slices.Equal(l.Items, o.Items) }

// List lists all sandboxes and containers that are of a Pod, by its UID.
// Sandboxes that no Pod made are left out. It costs two calls.
func (c *Client) List(ctx context.Context) (map[types.UID]*Listed, error) {
	ctx = Quiet(ctx)
	sandboxes, err := c.Runtime.ListPodSandbox(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	// Containers come second: one that the list has without its sandbox would
	// be of a sandbox that was made in between.
	containers, err := c.Runtime.ListContainers(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	pods := make(map[types.UID]*Listed, len(sandboxes))
	add := func(labels map[string]string, i Item) {
		uid := types.UID(labels[podspec.LabelPodUID])
		if uid == "" || labels[podspec.LabelPodName] == "" {
			return
		}
		l := pods[uid]
		if l == nil {
			l = &Listed{Namespace: labels[podspec.LabelPodNamespace], Name: labels[podspec.LabelPodName]}
			pods[uid] = l
		}
		l.Items = append(l.Items, i)
	}
	for _, s := range sandboxes {
		state := podstatus.Exited
		if s.State == runtimeapi.PodSandboxState_SANDBOX_READY {
			state = podstatus.Running
		}
		add(s.Labels, Item{ID: s.Id, State: state, Created: s.CreatedAt})
	}
	for _, k := range containers {
		add(k.Labels, Item{ID: k.Id, SandboxID: k.PodSandboxId, State: stateOf(k.State), Created: k.CreatedAt})
	}
	for _, l := range pods {
		slices.SortFunc(l.Items, func(a, b Item) int { return cmp.Compare(a.ID, b.ID) })
	}
	return pods, nil
}

func stateOf(s runtimeapi.ContainerState) podstatus.ContainerState {
	switch s {
	case runtimeapi.ContainerState_CONTAINER_CREATED:
		return podstatus.Created
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
		return podstatus.Running
	case runtimeapi.ContainerState_CONTAINER_EXITED:
		return podstatus.Exited
	}
	return podstatus.Unknown
}

// ListPod lists what the runtime has of one Pod now.
func (c *Client) ListPod(ctx context.Context, uid types.UID) (*Listed, error) {
	ctx = Quiet(ctx)
	selector := map[string]string{podspec.LabelPodUID: string(uid)}
	l := &Listed{}
	sandboxes, err := c.Runtime.ListPodSandbox(ctx, &runtimeapi.PodSandboxFilter{LabelSelector: selector})
	if err != nil {
		return nil, fmt.Errorf("list sandboxes of Pod %s: %w", uid, err)
	}
	containers, err := c.Runtime.ListContainers(ctx, &runtimeapi.ContainerFilter{LabelSelector: selector})
	if err != nil {
		return nil, fmt.Errorf("list containers of Pod %s: %w", uid, err)
	}
	for _, s := range sandboxes {
		state := podstatus.Exited
		if s.State == runtimeapi.PodSandboxState_SANDBOX_READY {
			state = podstatus.Running
		}
		l.Namespace, l.Name = s.Labels[podspec.LabelPodNamespace], s.Labels[podspec.LabelPodName]
		l.Items = append(l.Items, Item{ID: s.Id, State: state, Created: s.CreatedAt})
	}
	for _, k := range containers {
		l.Items = append(l.Items, Item{ID: k.Id, SandboxID: k.PodSandboxId, State: stateOf(k.State), Created: k.CreatedAt})
	}
	slices.SortFunc(l.Items, func(a, b Item) int { return cmp.Compare(a.ID, b.ID) })
	return l, nil
}

// Sandbox asks for one sandbox. One that is gone is an error for which
// IsNotFound holds.
func (c *Client) Sandbox(ctx context.Context, id string) (podstatus.Sandbox, podspec.SandboxInfo, error) {
	r, err := c.Runtime.PodSandboxStatus(Quiet(ctx), id, false)
	if err != nil {
		return podstatus.Sandbox{}, podspec.SandboxInfo{}, fmt.Errorf("status of sandbox %s: %w", short(id), err)
	}
	s := r.Status
	info, err := podspec.ParseSandbox(s.Labels, s.Annotations)
	if err != nil {
		return podstatus.Sandbox{}, info, fmt.Errorf("sandbox %s: %w", short(id), err)
	}
	out := podstatus.Sandbox{
		ID: s.Id, Attempt: s.GetMetadata().GetAttempt(), Ready: s.State == runtimeapi.PodSandboxState_SANDBOX_READY,
		Created: time.Unix(0, s.CreatedAt), PodHash: info.PodHash,
		HostNetwork: s.GetLinux().GetNamespaces().GetOptions().GetNetwork() == runtimeapi.NamespaceMode_NODE,
	}
	if s.Network != nil && !out.HostNetwork {
		out.IPs = appendIP(out.IPs, s.Network.Ip)
		for _, ip := range s.Network.AdditionalIps {
			out.IPs = appendIP(out.IPs, ip.Ip)
		}
	}
	return out, info, nil
}

func appendIP(ips []netip.Addr, s string) []netip.Addr {
	if a, err := netip.ParseAddr(s); err == nil {
		ips = append(ips, a.Unmap())
	}
	return ips
}

// Container asks for one container. One that is gone is an error for which
// IsNotFound holds. The termination message of one that ended is read here.
func (c *Client) Container(ctx context.Context, id, sandboxID string) (podstatus.Container, podspec.ContainerInfo, error) {
	ctx = Quiet(ctx)
	r, err := c.Runtime.ContainerStatus(ctx, id, false)
	if err != nil {
		return podstatus.Container{}, podspec.ContainerInfo{}, fmt.Errorf("status of container %s: %w", short(id), err)
	}
	s := r.Status
	info, err := podspec.ParseContainer(s.Labels, s.Annotations)
	if info.Name == "" {
		return podstatus.Container{}, info, fmt.Errorf("container %s: %w", short(id), err)
	}
	out := podstatus.Container{
		ID: s.Id, SandboxID: sandboxID, Name: info.Name, State: stateOf(s.State), RestartCount: info.RestartCount,
		Created: moment(s.CreatedAt), Started: moment(s.StartedAt), Finished: moment(s.FinishedAt),
		ExitCode: s.ExitCode, Reason: s.Reason, Message: s.Message,
		Image: s.GetImage().GetImage(), ImageRef: s.ImageRef, Hash: info.Hash, LogPath: s.LogPath,
		Given: info.Resources, Actual: resourcesOf(s.Resources), User: userOf(s.User),
	}
	if name := s.GetImage().GetUserSpecifiedImage(); name != "" {
		out.Image = name
	}
	if out.State == podstatus.Exited {
		out.Message = c.terminationMessage(ctx, s, &info)
		if out.Reason == "" {
			out.Reason = "Completed"
			if out.ExitCode != 0 {
				out.Reason = "Error"
			}
		}
	}
	return out, info, nil
}

// moment of nanoseconds since 1970, of which runtimes use 0 and less for never.
func moment(ns int64) time.Time {
	if ns <= 0 {
		return time.Time{}
	}
	return time.Unix(0, ns)
}

func resourcesOf(r *runtimeapi.ContainerResources) *podstatus.Resources {
	l := r.GetLinux()
	if l == nil {
		return nil
	}
	return &podstatus.Resources{CPUShares: l.CpuShares, CPUQuota: l.CpuQuota, CPUPeriod: l.CpuPeriod, MemoryBytes: l.MemoryLimitInBytes}
}

func userOf(u *runtimeapi.ContainerUser) *corev1.ContainerUser {
	l := u.GetLinux()
	if l == nil {
		return nil
	}
	return &corev1.ContainerUser{Linux: &corev1.LinuxContainerUser{UID: l.Uid, GID: l.Gid, SupplementalGroups: l.SupplementalGroups}}
}
