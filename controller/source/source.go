// SPDX-License-Identifier: Apache-2.0

// Package source brings Kubernetes objects to the controller, from an API
// server or from a directory of YAML. It keeps no meaning: it does not know
// what a Service does.
package source

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Handler receives the objects of a Source. A nil object means that it was
// deleted. A Source calls from one goroutine at a time; a Handler does not
// block for long and does not modify or keep the objects (it keeps what it
// parsed from them), so a Source need not copy or hold them either.
type Handler interface {
	OnService(key types.NamespacedName, s *corev1.Service)
	OnEndpointSlice(key types.NamespacedName, s *discoveryv1.EndpointSlice)
	// OnNode is called for this node's own Node object only.
	OnNode(name string, n *corev1.Node)
	// OnPod is called for Pods of this node only, by Sources that have them.
	OnPod(key types.NamespacedName, p *corev1.Pod)
	// OnSynced is called once, when everything that existed at the start has
	// been delivered. Before it, nothing is to be removed from a kernel.
	OnSynced()
}

// ConfigHandler is a Handler that takes ConfigMaps and Secrets too, from Sources
// that have them. What a Secret has as stringData is in data.
type ConfigHandler interface {
	OnConfigMap(key types.NamespacedName, c *corev1.ConfigMap)
	OnSecret(key types.NamespacedName, s *corev1.Secret)
}

// HoldingHandler is a Handler that knows more of the Pods than their manifests,
// and needs a moment for that. A Source without a status of Pods calls OnHeld
// once, when it has delivered what existed at the start, and OnSynced when that
// channel is closed.
type HoldingHandler interface {
	OnHeld() (release <-chan struct{})
}

// Source delivers objects until its context ends.
type Source interface {
	// Name says what the Source reads, for logs and metrics: "apiserver
	// https://10.0.0.1:6443", "directory /etc/fairlead".
	Name() string
	// Run delivers the present state and then every change. It returns nil
	// when ctx ends, and an error only where nothing could ever be delivered.
	// A lost connection is not an error: it retries, and State tells.
	Run(ctx context.Context, h Handler) error
	// State may be called at any time, from any goroutine.
	State() State
}

// State is the condition of a Source.
type State struct {
	// Connected: changes arrive as they happen. Where it is false, the last
	// state stays in force.
	Connected bool
	// Since is when Connected last changed.
	Since time.Time
	// Problems has one line for each thing that is not in force as written (a
	// file that does not parse, a refused object), sorted.
	Problems []string
}
