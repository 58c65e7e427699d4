// SPDX-License-Identifier: Apache-2.0

// Package objects answers with the objects that Pods of this node refer to:
// ConfigMaps, Secrets, the Services of their environment and service account
// tokens. It is responsible for fetching no more than running Pods need, for
// keeping that current and for forgetting it; it refuses to know what a Pod
// does with an object.
package objects

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Kind is the kind of a referenced object.
type Kind string

// The kinds that Pods refer to by name.
const (
	KindConfigMap Kind = "ConfigMap"
	KindSecret    Kind = "Secret"
)

// Key names one referenced object.
type Key struct {
	Kind Kind
	types.NamespacedName
}

// Store answers with the objects that Pods refer to. What it returns is shared
// and must not be changed. An object that does not exist is an error for which
// apierrors.IsNotFound holds. All methods may be called at once from several
// goroutines.
type Store interface {
	// ConfigMap returns a ConfigMap. It waits for an answer, or for ctx.
	ConfigMap(ctx context.Context, key types.NamespacedName) (*corev1.ConfigMap, error)
	// Secret returns a Secret. It waits for an answer, or for ctx.
	Secret(ctx context.Context, key types.NamespacedName) (*corev1.Secret, error)
	// Services returns the Services of one namespace, in any order.
	Services(ctx context.Context, namespace string) ([]*corev1.Service, error)
	// Token returns a service account token for a Pod, the same one until it
	// is due for renewal. When a renewal fails and the old token is still
	// valid, the old one is returned.
	Token(ctx context.Context, r TokenRequest) (*Token, error)

	// Use keeps what the Pod refers to current until Release. A second call
	// with the same UID replaces the first one's references.
	Use(pod *corev1.Pod)
	// Release forgets a Pod: objects and tokens that no other Pod uses are
	// dropped.
	Release(uid types.UID)

	// OnChange calls f, soon after an object that a used Pod's volume shows
	// changed, came or went. f must not block, and must not call the Store.
	// The returned function ends the calls.
	OnChange(f func(Key)) (stop func())
}

// TokenRequest says which service account token is wanted. Equal requests are
// answered with the same token.
type TokenRequest struct {
	Namespace, ServiceAccount string
	// PodName and PodUID bind the token to that Pod: it ends with it.
	PodName string
	PodUID  types.UID
	// Audience is who the token is meant for; empty means the API server.
	Audience string
	// ExpirationSeconds is the lifetime asked for, at least 600; 0 means 3600.
	ExpirationSeconds int64
}

// Token is a bound service account token.
type Token struct {
	Value string
	// Expires is when the API server stops taking it, Renew when another one
	// should be asked for: at 80 % of its lifetime, or after 24 hours.
	Expires, Renew time.Time
}
