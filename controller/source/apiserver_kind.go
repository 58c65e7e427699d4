// SPDX-License-Identifier: Apache-2.0

package source

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
)

// forThisProxy leaves out, on the server, what is not meant for the default
// service proxy. The EndpointSlice controllers copy both labels from the
// Service.
const forThisProxy = "!service.kubernetes.io/service-proxy-name,!" + corev1.IsHeadlessService

// kind is one collection of objects to follow.
type kind struct {
	client        groupClient
	group         string // API group, "" for core
	resource      string // plural, as in URLs and RBAC rules
	labelSelector string
	fieldSelector string
	newList       func() runtime.Object
	// handle passes one object on; a nil object is a deletion. It returns
	// false for an object of another type, which a server never sends.
	handle func(h Handler, key types.NamespacedName, o runtime.Object) bool
}

func serviceKind(c groupClient) kind {
	return kind{
		client:        c,
		resource:      "services",
		labelSelector: forThisProxy,
		newList:       func() runtime.Object { return new(corev1.ServiceList) },
		handle: handleAs(func(h Handler, key types.NamespacedName, s *corev1.Service) {
			h.OnService(key, s)
		}),
	}
}

func endpointSliceKind(c groupClient) kind {
	return kind{
		client:        c,
		group:         discoveryv1.GroupName,
		resource:      "endpointslices",
		labelSelector: forThisProxy,
		newList:       func() runtime.Object { return new(discoveryv1.EndpointSliceList) },
		handle: handleAs(func(h Handler, key types.NamespacedName, s *discoveryv1.EndpointSlice) {
			h.OnEndpointSlice(key, s)
		}),
	}
}

func nodeKind(c groupClient, name string) kind {
	return kind{
		client:        c,
		resource:      "nodes",
		fieldSelector: fields.OneTermEqualSelector("metadata.name", name).String(),
		newList:       func() runtime.Object { return new(corev1.NodeList) },
		handle: handleAs(func(h Handler, key types.NamespacedName, n *corev1.Node) {
			h.OnNode(key.Name, n)
		}),
	}
}

func podKind(c groupClient, nodeName string) kind {
	return kind{
		client:        c,
		resource:      "pods",
		fieldSelector: fields.OneTermEqualSelector("spec.nodeName", nodeName).String(),
		newList:       func() runtime.Object { return new(corev1.PodList) },
		handle: handleAs(func(h Handler, key types.NamespacedName, p *corev1.Pod) {
			h.OnPod(key, p)
		}),
	}
}

// handleAs adapts a Handler method, so that a nil runtime.Object arrives as a
// nil *T.
func handleAs[T any](f func(Handler, types.NamespacedName, *T)) func(Handler, types.NamespacedName, runtime.Object) bool {
	return func(h Handler, key types.NamespacedName, o runtime.Object) bool {
		if o == nil {
			f(h, key, nil)
			return true
		}
		t, ok := any(o).(*T)
		if ok {
			f(h, key, t)
		}
		return ok
	}
}
