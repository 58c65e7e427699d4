// SPDX-License-Identifier: Apache-2.0

package podstatus

import (
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// ContainerState is what a runtime says of a container.
type ContainerState uint8

// States of a container. Unknown: the runtime does not know whether it runs.
const (
	Created ContainerState = iota
	Running
	Exited
	Unknown
)

func (s ContainerState) String() string {
	return [...]string{"created", "running", "exited", "unknown"}[min(s, Unknown)]
}

// Sandbox is one sandbox of a Pod as the runtime reports it.
type Sandbox struct {
	ID      string
	Attempt uint32
	Ready   bool
	Created time.Time
	// HostNetwork: it has no network namespace of its own.
	HostNetwork bool
	// IPs are its addresses, the primary one first; none on the host's network.
	IPs []netip.Addr
	// PodHash is podspec.PodHash of what it was made for, 0 where unknown.
	PodHash uint64
}

// Container is one container of a Pod as the runtime reports it.
type Container struct {
	// ID is the runtime's, without its name.
	ID, SandboxID, Name string
	State               ContainerState
	// RestartCount is how many containers of that name there were before.
	RestartCount               int
	Created, Started, Finished time.Time
	ExitCode                   int32
	// Reason and Message are the runtime's, the termination message included.
	Reason, Message string
	// Image is the name it was made from, ImageRef what the runtime resolved
	// it to.
	Image, ImageRef string
	// Hash is podspec.ContainerHash of what it was made from, 0 where unknown.
	Hash uint64
	// LogPath is the absolute path of its log, "" where it has none.
	LogPath string
	// Given are the resources of the Pod's spec that it was made with.
	Given *corev1.ResourceRequirements
	// Actual is what its cgroup has, where the runtime tells.
	Actual *Resources
	User   *corev1.ContainerUser
}

// Resources is what a container's cgroup holds.
type Resources struct {
	CPUShares, CPUQuota, CPUPeriod int64
	// MemoryBytes is the limit; 0: none.
	MemoryBytes int64
}

// Observed is what the runtime has of one Pod.
type Observed struct {
	// Sandboxes and Containers are sorted, the newest one first.
	Sandboxes  []Sandbox
	Containers []Container
}

// Active is the newest sandbox, nil where there is none.
func (o *Observed) Active() *Sandbox {
	if len(o.Sandboxes) == 0 {
		return nil
	}
	return &o.Sandboxes[0]
}

// Newest is the newest container of that name in any sandbox.
func (o *Observed) Newest(name string) *Container {
	for i := range o.Containers {
		if o.Containers[i].Name == name {
			return &o.Containers[i]
		}
	}
	return nil
}

// NewestActive is the newest container of that name in the newest sandbox, if
// that sandbox is ready.
func (o *Observed) NewestActive(name string) *Container {
	s := o.Active()
	if s == nil || !s.Ready {
		return nil
	}
	if c := o.Newest(name); c != nil && c.SandboxID == s.ID {
		return c
	}
	return nil
}

// Running is how many containers run, or may run.
func (o *Observed) Running() (n int) {
	for i := range o.Containers {
		if s := o.Containers[i].State; s == Running || s == Unknown {
			n++
		}
	}
	return n
}
