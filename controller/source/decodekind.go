// SPDX-License-Identifier: Apache-2.0

package source

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// manifestKind is a kind of object that a directory can hold.
type manifestKind uint8

const (
	kindService manifestKind = iota + 1
	kindEndpointSlice
	kindPod
	kindNode
	kindConfigMap
	kindSecret
)

func (k manifestKind) String() string {
	for i := range manifests {
		if manifests[i].kind == k {
			return manifests[i].name
		}
	}
	return "object"
}

// manifest is what the decoder knows of a kind.
type manifest struct {
	kind       manifestKind
	apiVersion string
	name       string
	namespaced bool
	make       func() metav1.Object
	// check fills in defaults, and then validates.
	check func(metav1.Object) field.ErrorList
}

var manifests = []manifest{
	{kindService, "v1", "Service", true, func() metav1.Object { return &corev1.Service{} }, check(checkService, true, validation.NameIsDNSLabel)},
	{kindEndpointSlice, "discovery.k8s.io/v1", "EndpointSlice", true, func() metav1.Object { return &discoveryv1.EndpointSlice{} }, check(checkEndpointSlice, true, validation.NameIsDNSSubdomain)},
	{kindPod, "v1", "Pod", true, func() metav1.Object { return &corev1.Pod{} }, check(checkPod, true, validation.NameIsDNSSubdomain)},
	{kindNode, "v1", "Node", false, func() metav1.Object { return &corev1.Node{} }, check(checkNode, false, validation.NameIsDNSSubdomain)},
	{kindConfigMap, "v1", "ConfigMap", true, func() metav1.Object { return &corev1.ConfigMap{} }, check(checkConfigMap, true, validation.NameIsDNSSubdomain)},
	{kindSecret, "v1", "Secret", true, func() metav1.Object { return &corev1.Secret{} }, check(checkSecret, true, validation.NameIsDNSSubdomain)},
}

// check puts the checks of the metadata before those of a kind.
func check[T metav1.Object](kind func(T) field.ErrorList, namespaced bool, name validation.ValidateNameFunc) func(metav1.Object) field.ErrorList {
	return func(o metav1.Object) field.ErrorList {
		meta := field.NewPath("metadata")
		errs := validation.ValidateObjectMetaAccessor(o, namespaced, name, meta)
		if o.GetName() == "" && o.GetGenerateName() != "" {
			errs = append(errs, field.Required(meta.Child("name"), "nothing generates names in a directory"))
		}
		return append(errs, kind(o.(T))...)
	}
}

// manifestFor finds the kind, or a fault that names it.
func manifestFor(h header) (*manifest, error) {
	if h.kind == "" || h.apiVersion == "" {
		return nil, faultf(h.line, "no kind and apiVersion")
	}
	for i := range manifests {
		if m := &manifests[i]; m.name == h.kind && m.apiVersion == h.apiVersion {
			return m, nil
		}
	}
	return nil, faultf(h.line, "kind %s of %s is not taken from a directory: Service, Pod, ConfigMap, Secret, Node (v1) and EndpointSlice (discovery.k8s.io/v1) are", h.kind, h.apiVersion)
}

// listItem reports whether h is a List, and what its items are where they do
// not say.
func listItem(h header) (item header, isList bool) {
	name, isList := strings.CutSuffix(h.kind, "List")
	if !isList {
		return header{}, false
	}
	return header{apiVersion: h.apiVersion, kind: name}, true
}
