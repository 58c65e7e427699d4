// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"reflect"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/controller/source"
)

var _ source.Handler = (*Controller)(nil)

// OnService implements source.Handler.
func (c *Controller) OnService(key types.NamespacedName, s *corev1.Service) {
	c.metrics.serviceChanges.Inc()
	c.change(1, 0, func() { c.compiler.SetService(key, s) })
}

// OnEndpointSlice implements source.Handler.
func (c *Controller) OnEndpointSlice(key types.NamespacedName, s *discoveryv1.EndpointSlice) {
	c.metrics.endpointChanges.Inc()
	c.change(0, 1, func() { c.compiler.SetEndpointSlice(key, s) })
}

// OnPod implements source.Handler.
func (c *Controller) OnPod(key types.NamespacedName, p *corev1.Pod) {
	c.change(0, 0, func() { c.compiler.SetPod(key, p) })
}

// change hands an object to compile and wakes the loop.
func (c *Controller) change(services, endpoints int, set func()) {
	c.mu.Lock()
	set()
	c.progress.queued(services, endpoints)
	c.mu.Unlock()
	ring(c.wake)
}

// OnNode implements source.Handler.
func (c *Controller) OnNode(name string, n *corev1.Node) {
	if name != c.opts.NodeName {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.node = parseNode(n, c.node)
	c.leaving.Store(c.node.leaving)
	c.deriveFacts()
}

// onHost takes the node's addresses.
func (c *Controller) onHost(h hostAddresses) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.host = h
	c.deriveFacts()
}

// deriveFacts tells compile where the facts of the node changed: a Node object
// is written every few seconds without that. The caller holds mu.
func (c *Controller) deriveFacts() {
	f := c.rules.facts(c.host, c.node)
	if reflect.DeepEqual(f, c.facts) {
		return
	}
	c.facts = f
	c.compiler.SetNode(f)
	c.progress.queued(0, 0)
	if !c.rules.nodePort.isDefault() {
		c.checks.listenOn(f.NodePortAddresses)
	}
	ring(c.wake)
}

// OnSynced implements source.Handler.
func (c *Controller) OnSynced() {
	select {
	case <-c.synced:
	default:
		close(c.synced)
	}
}
