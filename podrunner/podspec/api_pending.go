// SPDX-License-Identifier: Apache-2.0

package podspec

import (
	"context"
	"errors"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"fairlead.dev/podrunner/objects"
)

var errPending = errors.New("podspec: being built")

// Sandbox returns the configuration of a Pod's sandbox. Errors are *Refused.
func Sandbox(pod *corev1.Pod, attempt uint32, f *Facts) (*runtimeapi.PodSandboxConfig, error) {
	return nil, errPending
}

// ImageUser is the user of an image as the runtime reports it
// (runtimeapi.Image: Uid and Username).
type ImageUser struct {
	UID  *int64
	Name string
}

// ContainerInput is what a container's configuration needs besides its Pod.
type ContainerInput struct {
	RestartCount int
	// ImageRef is what the runtime calls the pulled image.
	ImageRef  string
	ImageUser ImageUser
	// Mounts are of package volume.
	Mounts []*runtimeapi.Mount
	// TargetID is the container whose processes an ephemeral container sees.
	TargetID string
	// EnvFile reads a file of one of the Pod's volumes, for fileKeyRef.
	EnvFile func(volume, path string) ([]byte, error)
}

// Container returns the configuration of one of a Pod's containers (ephemeral
// ones by their common part). Errors are *Refused.
func Container(ctx context.Context, pod *corev1.Pod, c *corev1.Container, in ContainerInput, f *Facts, store objects.Store) (*runtimeapi.ContainerConfig, error) {
	return nil, errPending
}

// EnvVar is a variable of a container's environment.
type EnvVar struct{ Name, Value string }

// Env returns a container's environment, sorted as declared; the rest by name.
func Env(ctx context.Context, pod *corev1.Pod, c *corev1.Container, f *Facts, store objects.Store, envFile func(volume, path string) ([]byte, error)) ([]EnvVar, error) {
	return nil, errPending
}

// Check says whether a Pod can be run at all; called once, before it starts.
// nil means yes.
func Check(pod *corev1.Pod, f *Facts) *Refused { return nil }

// QOS returns a Pod's quality of service class.
func QOS(pod *corev1.Pod) corev1.PodQOSClass { return "" }

// Resources returns what the runtime is told about a container's resources,
// at its creation and at a resize.
func Resources(pod *corev1.Pod, c *corev1.Container, f *Facts) *runtimeapi.LinuxContainerResources {
	return nil
}

// PodResources returns the limits of a Pod's own cgroup: of all its
// containers together, with the overhead.
func PodResources(pod *corev1.Pod, f *Facts) *runtimeapi.LinuxContainerResources { return nil }

// CgroupParent returns the Pod's cgroup as the runtime wants it named.
func CgroupParent(pod *corev1.Pod, f *Facts) string { return "" }

// Handler returns the runtime handler of a Pod. Errors are *Refused.
func Handler(pod *corev1.Pod, f *Facts) (string, error) { return "", nil }

// Hosts returns the content of a container's /etc/hosts, nil where the
// runtime's own is to be left.
func Hosts(pod *corev1.Pod, f *Facts) ([]byte, error) { return nil, errPending }
