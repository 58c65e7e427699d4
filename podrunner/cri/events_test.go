// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"fairlead.dev/podrunner/podspec"
)

// newer is a runtime that has events, as containerd 2 and CRI-O.
type newer struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer
	events chan *runtimeapi.ContainerEventResponse
}

func (newer) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: "newer", RuntimeVersion: "2", RuntimeApiVersion: "v1"}, nil
}

func (newer) ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	return &runtimeapi.ImageFsInfoResponse{}, nil
}

func (n newer) GetContainerEvents(_ *runtimeapi.GetEventsRequest, s runtimeapi.RuntimeService_GetContainerEventsServer) error {
	if n.events == nil {
		return n.UnimplementedRuntimeServiceServer.GetContainerEvents(nil, s)
	}
	for e := range n.events {
		if err := s.Send(e); err != nil {
			return err
		}
	}
	return errors.New("the stream breaks")
}

// openServer is a Client of a runtime in this process.
func openServer(t testing.TB, n interface {
	runtimeapi.RuntimeServiceServer
	runtimeapi.ImageServiceServer
}) *Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	runtimeapi.RegisterRuntimeServiceServer(server, n)
	runtimeapi.RegisterImageServiceServer(server, n)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	c, err := Open(t.Context(), socket, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestEventsNameThePodThatChanged(t *testing.T) {
	events := make(chan *runtimeapi.ContainerEventResponse, 3)
	events <- &runtimeapi.ContainerEventResponse{PodSandboxStatus: &runtimeapi.PodSandboxStatus{Metadata: &runtimeapi.PodSandboxMetadata{Uid: "a"}}}
	events <- &runtimeapi.ContainerEventResponse{ContainersStatuses: []*runtimeapi.ContainerStatus{{Labels: map[string]string{podspec.LabelPodUID: "b"}}}}
	events <- &runtimeapi.ContainerEventResponse{}
	close(events)
	var got []types.UID
	established := false
	err := openServer(t, newer{events: events}).Events(t.Context(), func() { established = true }, func(uid types.UID) { got = append(got, uid) })
	if err == nil || errors.Is(err, ErrNoEvents) || !established || len(got) != 3 || got[0] != "a" || got[1] != "b" || got[2] != "" {
		t.Errorf("%v, established %v, error %v", got, established, err)
	}
	err = openServer(t, newer{}).Events(t.Context(), func() {}, func(types.UID) {})
	if !errors.Is(err, ErrNoEvents) {
		t.Errorf("a runtime without events: %v", err)
	}
}
