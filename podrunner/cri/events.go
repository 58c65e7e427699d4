// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"fairlead.dev/podrunner/podspec"
)

// ErrNoEvents is what Events ends with where the runtime has none.
var ErrNoEvents = errors.New("the container runtime has no events")

// Events calls changed for each Pod whose containers changed, until ctx ends or
// the stream does; then what happened meanwhile must be listed. established is
// called when the stream stands.
func (c *Client) Events(ctx context.Context, established func(), changed func(types.UID)) error {
	ctx, cancel := context.WithCancel(Quiet(ctx))
	defer cancel()
	events := make(chan *runtimeapi.ContainerEventResponse, 64)
	done := make(chan error, 1)
	go func() {
		done <- c.Runtime.GetContainerEvents(ctx, events, func(runtimeapi.RuntimeService_GetContainerEventsClient) { established() })
		close(events)
	}()
	for e := range events {
		uid := e.GetPodSandboxStatus().GetMetadata().GetUid()
		for _, s := range e.ContainersStatuses {
			if uid == "" {
				uid = s.Labels[podspec.LabelPodUID]
			}
		}
		changed(types.UID(uid)) // "": unknown which one
	}
	err := <-done
	if status.Code(err) == codes.Unimplemented {
		return ErrNoEvents
	}
	return fmt.Errorf("container events: %w", err)
}
