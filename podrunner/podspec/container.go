// SPDX-License-Identifier: Apache-2.0

package podspec

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"fairlead.dev/podrunner/objects"
)

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
	// EnvFile reads a file of one of the Pod's volumes. nil knows none.
	EnvFile EnvFile
}

// Container returns the configuration of one of a Pod's containers (ephemeral
// ones by their common part). Errors are *Refused.
func Container(ctx context.Context, pod *corev1.Pod, c *corev1.Container, in ContainerInput, f *Facts, store objects.Store) (*runtimeapi.ContainerConfig, error) {
	config, err := container(ctx, pod, c, in, f, store)
	return config, refuse(ReasonContainerConfig, err)
}

func container(ctx context.Context, pod *corev1.Pod, c *corev1.Container, in ContainerInput, f *Facts, store objects.Store) (*runtimeapi.ContainerConfig, error) {
	if len(c.VolumeDevices) > 0 {
		return nil, fmt.Errorf("cannot find volume %q to pass into container %q", c.VolumeDevices[0].Name, c.Name)
	}
	env, err := Env(ctx, pod, c, f, store, in.EnvFile)
	if err != nil {
		return nil, err
	}
	security, err := containerSecurity(pod, c, in, f)
	if err != nil {
		return nil, err
	}
	config := &runtimeapi.ContainerConfig{
		Metadata:    &runtimeapi.ContainerMetadata{Name: c.Name, Attempt: uint32(in.RestartCount)},
		Image:       &runtimeapi.ImageSpec{Image: in.ImageRef, UserSpecifiedImage: c.Image},
		WorkingDir:  c.WorkingDir,
		Labels:      containerLabels(pod, c),
		Annotations: containerAnnotations(pod, c, in.RestartCount),
		Mounts:      in.Mounts,
		LogPath:     LogPath(c.Name, in.RestartCount),
		Stdin:       c.Stdin,
		StdinOnce:   c.StdinOnce,
		Tty:         c.TTY,
		Linux:       &runtimeapi.LinuxContainerConfig{Resources: Resources(pod, c, f), SecurityContext: security},
	}
	lookup := lookupIn(asMap(env))
	for _, s := range c.Command {
		config.Command = append(config.Command, Expand(s, lookup))
	}
	for _, s := range c.Args {
		config.Args = append(config.Args, Expand(s, lookup))
	}
	for _, v := range env {
		config.Envs = append(config.Envs, &runtimeapi.KeyValue{Key: v.Name, Value: []byte(v.Value)})
	}
	if c.Lifecycle != nil && c.Lifecycle.StopSignal != nil {
		config.StopSignal = stopSignal(*c.Lifecycle.StopSignal)
	}
	return config, nil
}

// stopSignal of a name like SIGTERM or SIGRTMIN+3; the runtime's default for
// one that the CRI has not.
func stopSignal(s corev1.Signal) runtimeapi.Signal {
	name := strings.NewReplacer("+", "PLUS", "-", "MINUS").Replace(string(s))
	return runtimeapi.Signal(runtimeapi.Signal_value["SIGNAL_"+name])
}
