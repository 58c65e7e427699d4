// SPDX-License-Identifier: Apache-2.0

// Package clientset makes an apiclient.Interface of client-go's clientset, for
// tests that have one, or a fake. The agent must not: see apiclient.
package clientset

import (
	"context"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"fairlead.dev/podrunner/apiclient"
)

// Clientset is one of client-go's.
type Clientset struct{ kubernetes.Interface }

var _ apiclient.Interface = Clientset{}

// Pods implements apiclient.Interface, as all that follow.
func (c Clientset) Pods(namespace string) apiclient.Kind[*corev1.Pod] {
	return c.CoreV1().Pods(namespace)
}

// Nodes are listed too.
func (c Clientset) Nodes() apiclient.Listed[*corev1.Node, *corev1.NodeList] {
	return c.CoreV1().Nodes()
}

// Leases are those of a namespace.
func (c Clientset) Leases(namespace string) apiclient.Kind[*coordinationv1.Lease] {
	return c.CoordinationV1().Leases(namespace)
}

// Events are those of a namespace.
func (c Clientset) Events(namespace string) apiclient.Kind[*corev1.Event] {
	return c.CoreV1().Events(namespace)
}

// Secrets are those of a namespace.
func (c Clientset) Secrets(namespace string) apiclient.Listed[*corev1.Secret, *corev1.SecretList] {
	return c.CoreV1().Secrets(namespace)
}

// ConfigMaps are those of a namespace.
func (c Clientset) ConfigMaps(namespace string) apiclient.Listed[*corev1.ConfigMap, *corev1.ConfigMapList] {
	return c.CoreV1().ConfigMaps(namespace)
}

// Services are those of a namespace.
func (c Clientset) Services(namespace string) apiclient.Listed[*corev1.Service, *corev1.ServiceList] {
	return c.CoreV1().Services(namespace)
}

// RuntimeClasses are the cluster's.
func (c Clientset) RuntimeClasses() apiclient.Kind[*nodev1.RuntimeClass] {
	return c.NodeV1().RuntimeClasses()
}

// CertificateSigningRequests are the cluster's.
func (c Clientset) CertificateSigningRequests() apiclient.Listed[*certificatesv1.CertificateSigningRequest, *certificatesv1.CertificateSigningRequestList] {
	return c.CertificatesV1().CertificateSigningRequests()
}

// TokenReviews are questions.
func (c Clientset) TokenReviews() apiclient.Reviews[*authenticationv1.TokenReview] {
	return c.AuthenticationV1().TokenReviews()
}

// SubjectAccessReviews are questions.
func (c Clientset) SubjectAccessReviews() apiclient.Reviews[*authorizationv1.SubjectAccessReview] {
	return c.AuthorizationV1().SubjectAccessReviews()
}

// CreateToken asks for a token of a service account.
func (c Clientset) CreateToken(ctx context.Context, namespace, serviceAccount string, request *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error) {
	return c.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, serviceAccount, request, metav1.CreateOptions{})
}
