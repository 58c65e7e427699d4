// SPDX-License-Identifier: Apache-2.0

// Package apiclient asks an API server about the kinds that a node with Pods
// needs. It is responsible for that the agent knows no others: client-go's
// clientset brings the types of all API groups with it, a quarter of the binary
// and of what it keeps in memory. It refuses to know what the answers are for.
package apiclient

import (
	"context"
	"fmt"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/gentype"
	"k8s.io/client-go/rest"
)

// Interface is what a Client does; package clientset makes one of client-go's.
type Interface interface {
	Pods(namespace string) Kind[*corev1.Pod]
	Nodes() Listed[*corev1.Node, *corev1.NodeList]
	Leases(namespace string) Kind[*coordinationv1.Lease]
	Events(namespace string) Kind[*corev1.Event]
	Secrets(namespace string) Listed[*corev1.Secret, *corev1.SecretList]
	ConfigMaps(namespace string) Listed[*corev1.ConfigMap, *corev1.ConfigMapList]
	Services(namespace string) Listed[*corev1.Service, *corev1.ServiceList]
	RuntimeClasses() Kind[*nodev1.RuntimeClass]
	CertificateSigningRequests() Listed[*certificatesv1.CertificateSigningRequest, *certificatesv1.CertificateSigningRequestList]
	TokenReviews() Reviews[*authenticationv1.TokenReview]
	SubjectAccessReviews() Reviews[*authorizationv1.SubjectAccessReview]
	CreateToken(ctx context.Context, namespace, serviceAccount string, request *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error)
}

// Kind is what is done with the objects of one kind, as client-go has it.
type Kind[T any] interface {
	Create(ctx context.Context, o T, opts metav1.CreateOptions) (T, error)
	Update(ctx context.Context, o T, opts metav1.UpdateOptions) (T, error)
	Delete(ctx context.Context, name string, opts metav1.DeleteOptions) error
	Get(ctx context.Context, name string, opts metav1.GetOptions) (T, error)
	Patch(ctx context.Context, name string, pt types.PatchType, data []byte, opts metav1.PatchOptions, subresources ...string) (T, error)
}

// Listed is a Kind whose objects are listed and watched too.
type Listed[T, L any] interface {
	Kind[T]
	List(ctx context.Context, opts metav1.ListOptions) (L, error)
	Watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error)
}

// Reviews are questions to the API server.
type Reviews[T any] interface {
	Create(ctx context.Context, o T, opts metav1.CreateOptions) (T, error)
}

// Client is a client of one API server, over one connection.
type Client struct {
	core, coordination, node, authentication, authorization, certificates rest.Interface
	params                                                                runtime.ParameterCodec
}

var _ Interface = (*Client)(nil)

// New makes a Client, which connects when it is first asked.
func New(config *rest.Config) (*Client, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, coordinationv1.AddToScheme, nodev1.AddToScheme, authenticationv1.AddToScheme, authorizationv1.AddToScheme,
		certificatesv1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("register API types: %w", err)
		}
	}
	c := rest.CopyConfig(config)
	c.NegotiatedSerializer = rest.CodecFactoryForGeneratedClient(scheme, serializer.NewCodecFactory(scheme)).WithoutConversion()
	if c.ContentType == "" {
		c.ContentType = runtime.ContentTypeProtobuf
		c.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	}
	if c.UserAgent == "" {
		c.UserAgent = rest.DefaultKubernetesUserAgent()
	}
	httpClient, err := rest.HTTPClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("API server %s: %w", c.Host, err)
	}
	client := &Client{params: runtime.NewParameterCodec(scheme)}
	for _, g := range []struct {
		client *rest.Interface
		path   string
		gv     schema.GroupVersion
	}{
		{&client.core, "/api", corev1.SchemeGroupVersion},
		{&client.coordination, "/apis", coordinationv1.SchemeGroupVersion},
		{&client.node, "/apis", nodev1.SchemeGroupVersion},
		{&client.authentication, "/apis", authenticationv1.SchemeGroupVersion},
		{&client.authorization, "/apis", authorizationv1.SchemeGroupVersion},
		{&client.certificates, "/apis", certificatesv1.SchemeGroupVersion},
	} {
		c := *c
		c.APIPath, c.GroupVersion = g.path, &g.gv
		if *g.client, err = rest.RESTClientForConfigAndClient(&c, httpClient); err != nil {
			return nil, fmt.Errorf("API server %s: %w", c.Host, err)
		}
	}
	return client, nil
}

// Pods of a namespace.
func (c *Client) Pods(namespace string) Kind[*corev1.Pod] {
	return gentype.NewClient("pods", c.core, c.params, namespace, func() *corev1.Pod { return &corev1.Pod{} })
}

// Nodes of the cluster.
func (c *Client) Nodes() Listed[*corev1.Node, *corev1.NodeList] {
	return gentype.NewClientWithList("nodes", c.core, c.params, "",
		func() *corev1.Node { return &corev1.Node{} }, func() *corev1.NodeList { return &corev1.NodeList{} })
}

// Leases of a namespace.
func (c *Client) Leases(namespace string) Kind[*coordinationv1.Lease] {
	return gentype.NewClient("leases", c.coordination, c.params, namespace, func() *coordinationv1.Lease { return &coordinationv1.Lease{} })
}

// Events of a namespace.
func (c *Client) Events(namespace string) Kind[*corev1.Event] {
	return gentype.NewClient("events", c.core, c.params, namespace, func() *corev1.Event { return &corev1.Event{} })
}

// Secrets of a namespace.
func (c *Client) Secrets(namespace string) Listed[*corev1.Secret, *corev1.SecretList] {
	return gentype.NewClientWithList("secrets", c.core, c.params, namespace,
		func() *corev1.Secret { return &corev1.Secret{} }, func() *corev1.SecretList { return &corev1.SecretList{} })
}

// ConfigMaps of a namespace.
func (c *Client) ConfigMaps(namespace string) Listed[*corev1.ConfigMap, *corev1.ConfigMapList] {
	return gentype.NewClientWithList("configmaps", c.core, c.params, namespace,
		func() *corev1.ConfigMap { return &corev1.ConfigMap{} }, func() *corev1.ConfigMapList { return &corev1.ConfigMapList{} })
}

// Services of a namespace.
func (c *Client) Services(namespace string) Listed[*corev1.Service, *corev1.ServiceList] {
	return gentype.NewClientWithList("services", c.core, c.params, namespace,
		func() *corev1.Service { return &corev1.Service{} }, func() *corev1.ServiceList { return &corev1.ServiceList{} })
}

// RuntimeClasses of the cluster.
func (c *Client) RuntimeClasses() Kind[*nodev1.RuntimeClass] {
	return gentype.NewClient("runtimeclasses", c.node, c.params, "", func() *nodev1.RuntimeClass { return &nodev1.RuntimeClass{} })
}

// CertificateSigningRequests of the cluster.
func (c *Client) CertificateSigningRequests() Listed[*certificatesv1.CertificateSigningRequest, *certificatesv1.CertificateSigningRequestList] {
	return gentype.NewClientWithList("certificatesigningrequests", c.certificates, c.params, "",
		func() *certificatesv1.CertificateSigningRequest { return &certificatesv1.CertificateSigningRequest{} },
		func() *certificatesv1.CertificateSigningRequestList {
			return &certificatesv1.CertificateSigningRequestList{}
		})
}

// TokenReviews say whose a token is.
func (c *Client) TokenReviews() Reviews[*authenticationv1.TokenReview] {
	return gentype.NewClient("tokenreviews", c.authentication, c.params, "", func() *authenticationv1.TokenReview { return &authenticationv1.TokenReview{} })
}

// SubjectAccessReviews say what somebody may do.
func (c *Client) SubjectAccessReviews() Reviews[*authorizationv1.SubjectAccessReview] {
	return gentype.NewClient("subjectaccessreviews", c.authorization, c.params, "", func() *authorizationv1.SubjectAccessReview { return &authorizationv1.SubjectAccessReview{} })
}

// CreateToken asks for a token of a service account.
func (c *Client) CreateToken(ctx context.Context, namespace, serviceAccount string, request *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error) {
	answer := &authenticationv1.TokenRequest{}
	err := c.core.Post().Namespace(namespace).Resource("serviceaccounts").Name(serviceAccount).SubResource("token").
		VersionedParams(&metav1.CreateOptions{}, c.params).Body(request).Do(ctx).Into(answer)
	return answer, err
}
