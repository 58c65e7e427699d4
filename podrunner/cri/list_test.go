// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"fairlead.dev/podrunner/objects"
	"fairlead.dev/podrunner/podspec"
	"fairlead.dev/podrunner/podstatus"
)

// lister is a runtime with n Pods of one container each, and a sandbox of
// somebody else.
type lister struct {
	newer
	n int
}

func (l lister) ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	r := &runtimeapi.ListPodSandboxResponse{Items: []*runtimeapi.PodSandbox{{Id: "foreign"}}}
	for i := range l.n {
		p := l.pod(i)
		c, err := podspec.Sandbox(p, 0, &podspec.Facts{})
		if err != nil {
			return nil, err
		}
		r.Items = append(r.Items, &runtimeapi.PodSandbox{Id: fmt.Sprintf("%064d", i), Metadata: c.Metadata, Labels: c.Labels, Annotations: c.Annotations, CreatedAt: 1})
	}
	return r, nil
}

func (l lister) ListContainers(ctx context.Context, _ *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	r := &runtimeapi.ListContainersResponse{}
	for i := range l.n {
		p := l.pod(i)
		c, err := podspec.Container(ctx, p, &p.Spec.Containers[0], podspec.ContainerInput{}, &podspec.Facts{}, noServices{})
		if err != nil {
			return nil, err
		}
		r.Containers = append(r.Containers, &runtimeapi.Container{
			Id: fmt.Sprintf("c%063d", i), PodSandboxId: fmt.Sprintf("%064d", i), Metadata: c.Metadata, Image: c.Image, ImageRef: "sha256:0",
			State: runtimeapi.ContainerState_CONTAINER_RUNNING, Labels: c.Labels, Annotations: c.Annotations, CreatedAt: 2,
		})
	}
	return r, nil
}

// noServices is a Store without any; nothing else is asked for.
type noServices struct{ objects.Store }

func (noServices) Services(context.Context, string) ([]*corev1.Service, error) { return nil, nil }

func (l lister) pod(i int) *corev1.Pod {
	p := &corev1.Pod{}
	p.Namespace, p.Name, p.UID = "default", fmt.Sprint("pod-", i), types.UID(fmt.Sprintf("00000000-0000-0000-0000-%012d", i))
	links := false
	p.Spec = corev1.PodSpec{EnableServiceLinks: &links, Containers: []corev1.Container{{
		Name: "container", Image: "registry.test/app:1", Ports: []corev1.ContainerPort{{ContainerPort: 80}}, TerminationMessagePath: "/dev/termination-log",
	}}}
	return p
}

func TestAListHasEachPodsItemsAndNobodyElses(t *testing.T) {
	c := openServer(t, lister{n: 3})
	pods, err := c.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(pods) != 3 {
		t.Errorf("%d Pods, want 3", len(pods))
	}
	l := pods["00000000-0000-0000-0000-000000000001"]
	if l == nil || l.Name != "pod-1" || l.Namespace != "default" || len(l.Items) != 2 || l.Items[0].SandboxID != "" || l.Items[0].State != podstatus.Running ||
		l.Items[1].SandboxID != l.Items[0].ID {
		t.Errorf("%+v", l)
	}
	again, err := c.List(t.Context())
	if err != nil || !again["00000000-0000-0000-0000-000000000001"].Equal(l) || l.Equal(nil) {
		t.Errorf("the same list is not equal: %v", err)
	}
}

// BenchmarkListOfHundredPods is what the agent does each second when nothing
// happens, with the runtime's side of the wire on top.
func BenchmarkListOfHundredPods(b *testing.B) {
	c := openServer(b, newCached(b, 100))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.List(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// cached answers without making the lists anew.
type cached struct {
	newer
	sandboxes  *runtimeapi.ListPodSandboxResponse
	containers *runtimeapi.ListContainersResponse
}

func newCached(b *testing.B, n int) cached {
	var c cached
	var err error
	if c.sandboxes, err = (lister{n: n}).ListPodSandbox(b.Context(), nil); err != nil {
		b.Fatal(err)
	}
	if c.containers, err = (lister{n: n}).ListContainers(b.Context(), nil); err != nil {
		b.Fatal(err)
	}
	return c
}

func (c cached) ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return c.sandboxes, nil
}

func (c cached) ListContainers(context.Context, *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return c.containers, nil
}
