// SPDX-License-Identifier: Apache-2.0

package kubeletapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Labels by which sandboxes and containers are found: the kubelet's.
const (
	labelPodName       = "io.kubernetes.pod.name"
	labelPodNamespace  = "io.kubernetes.pod.namespace"
	labelPodUID        = "io.kubernetes.pod.uid"
	labelContainerName = "io.kubernetes.container.name"
)

// runTimeout bounds a command of /run: its output is held in memory.
const runTimeout = 2 * time.Minute

func (s *Server) pods(w http.ResponseWriter, _ *http.Request) {
	writePods(w, s.o.Pods())
}

func writePods(w http.ResponseWriter, pods []*corev1.Pod) {
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}, Items: []corev1.Pod{}}
	for _, p := range pods {
		list.Items = append(list.Items, *p)
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(&list) // an error here is the client's leaving
}

// runningPods lists what the runtime has, wanted or not.
func (s *Server) runningPods(w http.ResponseWriter, r *http.Request) {
	ready := &runtimeapi.PodSandboxFilter{State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}}
	sandboxes, err := s.o.Runtime.ListPodSandbox(r.Context(), ready)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	containers, err := s.o.Runtime.ListContainers(r.Context(), &runtimeapi.ContainerFilter{State: running()})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	pods := map[string]*corev1.Pod{}
	var out []*corev1.Pod
	for _, b := range sandboxes {
		m := b.GetMetadata()
		if pods[m.GetUid()] == nil && b.Labels[labelPodUID] != "" {
			pods[m.GetUid()] = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: m.GetName(), Namespace: m.GetNamespace(), UID: types.UID(m.GetUid())}}
			out = append(out, pods[m.GetUid()])
		}
	}
	for _, c := range containers {
		if p := pods[c.GetLabels()[labelPodUID]]; p != nil {
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: c.GetMetadata().GetName(), Image: c.GetImageRef()})
		}
	}
	slices.SortFunc(out, func(a, b *corev1.Pod) int {
		return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
	})
	writePods(w, out)
}

func running() *runtimeapi.ContainerStateValue {
	return &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}
}

// runningContainer is the ID of a Pod's container that runs.
func (s *Server) runningContainer(ctx context.Context, pod *corev1.Pod, name string) (string, error) {
	found, err := s.o.Runtime.ListContainers(ctx, &runtimeapi.ContainerFilter{
		State:         running(),
		LabelSelector: map[string]string{labelPodUID: string(pod.UID), labelContainerName: name},
	})
	if err != nil {
		return "", err
	}
	if len(found) == 0 {
		return "", fmt.Errorf("container not found (%q)", name)
	}
	return slices.MaxFunc(found, func(a, b *runtimeapi.Container) int { return int(a.CreatedAt - b.CreatedAt) }).Id, nil
}

// run runs a command and answers with what it said.
func (s *Server) run(w http.ResponseWriter, r *http.Request) {
	pod := s.pod(w, r)
	if pod == nil {
		return
	}
	id, err := s.runningContainer(r.Context(), pod, r.PathValue("container"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	// By tradition: one parameter, cut at spaces.
	stdout, stderr, err := s.o.Runtime.ExecSync(r.Context(), id, strings.Split(r.URL.Query().Get("cmd"), " "), runTimeout)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_, _ = w.Write(append(stdout, stderr...))
}
