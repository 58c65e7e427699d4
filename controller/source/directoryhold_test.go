// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// holding is a Handler that tells of a Pod's readiness before OnSynced.
type holding struct {
	*recorder
	held    chan struct{} // closed by OnHeld
	release chan struct{}
}

func (h *holding) OnHeld() <-chan struct{} {
	close(h.held)
	return h.release
}

func TestAHandlerThatHoldsIsSyncedWithTheStatusItTold(t *testing.T) {
	g := newRig(t)
	g.write("all.yaml", `{apiVersion: v1, kind: Pod, metadata: {name: p, labels: {app: web}}, spec: {containers: [{name: c, image: i}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {selector: {app: web}, ports: [{port: 80}]}}
`)
	d, err := NewDirectory(g.o)
	if err != nil {
		t.Fatal(err)
	}
	h := &holding{newRecorder(), make(chan struct{}), make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx, h) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}()
	wait := func(what string, c <-chan struct{}) {
		t.Helper()
		select {
		case <-c:
		case <-time.After(30 * time.Second):
			t.Fatal("not within 30 s: ", what)
		}
	}
	wait("OnHeld", h.held)
	select {
	case <-h.synced:
		t.Fatal("OnSynced came before the Handler released it")
	case <-time.After(50 * time.Millisecond):
	}
	d.SetPodStatus(types.NamespacedName{Namespace: "default", Name: "p"}, corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: "10.88.0.2", Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
	})
	close(h.release)
	wait("OnSynced", h.synced)
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.slices {
		if len(s.Endpoints) == 1 && *s.Endpoints[0].Conditions.Ready {
			return
		}
	}
	t.Errorf("at OnSynced the Service has no ready endpoint; calls %q", h.calls)
}
