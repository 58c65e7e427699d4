// SPDX-License-Identifier: Apache-2.0

// Package e2e tests fairlead against a real Kubernetes control plane.
package e2e

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"fairlead.dev/test/e2e/controlplane"
)

// shared is the control plane of the tests of this package, started when the
// first of them wants it. Each test has a namespace of its own and leaves the
// API server running.
var shared *controlplane.ControlPlane

func TestMain(m *testing.M) {
	code := m.Run()
	if shared != nil {
		shared.Close()
	}
	os.RemoveAll(binariesDir)
	os.Exit(code)
}

// cluster is one test's place in the shared control plane.
type cluster struct {
	*controlplane.ControlPlane
	client    kubernetes.Interface
	namespace string
	node      string
}

var clusters atomic.Int64

// newCluster starts the control plane where need be, and creates a namespace
// and a Node. Nothing in this control plane cleans up but the test itself.
func newCluster(t *testing.T) *cluster {
	t.Helper()
	if shared == nil {
		started := time.Now()
		cp, err := controlplane.New(context.Background(), controlplane.Options{})
		if err != nil {
			t.Fatal(err)
		}
		shared = cp
		t.Logf("control plane ready after %v", time.Since(started).Round(time.Millisecond))
	}
	c := newClusterIn(t, shared)
	t.Cleanup(func() { c.clean(t) })
	return c
}

// newClusterIn is newCluster for a control plane that ends with the test.
func newClusterIn(t *testing.T, cp *controlplane.ControlPlane) *cluster {
	t.Helper()
	client, err := cp.Client()
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("fairlead-%d", clusters.Add(1))
	c := &cluster{ControlPlane: cp, client: client, namespace: name, node: name}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := client.CoreV1().Namespaces().Create(t.Context(), ns, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := client.CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return c
}

// clean deletes what the test left.
func (c *cluster) clean(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	// The typed client has no DeleteCollection for Services; the server does.
	if err := c.client.CoreV1().RESTClient().Delete().Namespace(c.namespace).Resource("services").Do(ctx).Error(); err != nil {
		t.Errorf("clean up: %v", err)
	}
	if err := c.client.DiscoveryV1().EndpointSlices(c.namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		t.Errorf("clean up: %v", err)
	}
	for _, name := range []string{c.node, c.node + "-other"} {
		err := c.client.CoreV1().Nodes().Delete(ctx, name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			t.Errorf("clean up: %v", err)
		}
	}
}

// eventually waits until the condition holds, and fails the test with what the
// condition says is missing.
func eventually(t *testing.T, within time.Duration, condition func() (missing string)) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		missing := condition()
		if missing == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v: %s", within, missing)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
