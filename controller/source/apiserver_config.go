// SPDX-License-Identifier: Apache-2.0

package source

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// LoadRESTConfig reads a kubeconfig file (its current context), or, where the
// path is empty, the service account that Kubernetes gives to a pod.
//
// In a pod the address is that of $KUBERNETES_SERVICE_HOST, which is a Service
// address: an agent that makes Services work must be given a direct address
// there, or a kubeconfig.
func LoadRESTConfig(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		c, err := rest.InClusterConfig()
		if errors.Is(err, rest.ErrNotInCluster) {
			return nil, errors.New("no API server configured and not running in a pod; pass --kubeconfig FILE or --manifests DIR")
		} else if err != nil {
			return nil, fmt.Errorf("service account of this pod: %w; is automountServiceAccountToken off?", err)
		}
		return c, nil
	}
	c, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		&clientcmd.ClientConfigLoadingRules{ExplicitPath: kubeconfig},
		&clientcmd.ConfigOverrides{},
	).ClientConfig()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("kubeconfig %s: %w; pass --kubeconfig FILE with an existing file", kubeconfig, unwrapPath(err))
	case err != nil:
		return nil, fmt.Errorf("kubeconfig %s: %w; see whether `kubectl --kubeconfig %s get services` works", kubeconfig, err, kubeconfig)
	}
	return c, nil
}

// unwrapPath leaves the reason of a file error whose path is said elsewhere.
func unwrapPath(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// restClients share one connection to the API server.
type restClients struct {
	host            string
	conns           *conns
	core, discovery groupClient
}

// groupClient reads one version of one API group.
type groupClient struct {
	rest.Interface
	params runtime.ParameterCodec
}

// newRESTClients knows the two API groups that are read, and no others: the
// full clientset costs each agent megabytes.
func newRESTClients(config *rest.Config, userAgent string) (restClients, error) {
	c := rest.CopyConfig(config)
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, discoveryv1.AddToScheme} {
		if err := add(scheme); err != nil {
			return restClients{}, fmt.Errorf("register API types: %w", err)
		}
	}
	c.NegotiatedSerializer = rest.CodecFactoryForGeneratedClient(scheme, serializer.NewCodecFactory(scheme)).WithoutConversion()
	c.ContentType = runtime.ContentTypeProtobuf
	c.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	c.UserAgent = userAgent
	c.QPS = -1 // a few watches; the backoff limits them
	c.WarningHandlerWithContext = rest.NoWarnings{}
	c.Timeout = 0 // of a whole request, thus of a watch
	if c.Dial == nil {
		c.Dial = dialer().DialContext
	}
	open := &conns{}
	c.Dial = open.dialWith(c.Dial)
	c.Wrap(func(next http.RoundTripper) http.RoundTripper { return errorRecorder{next} })

	host, _, err := rest.DefaultServerUrlFor(c)
	if err != nil {
		return restClients{}, fmt.Errorf("API server address %q: %w; correct \"server\" in the kubeconfig", c.Host, err)
	}
	httpClient, err := rest.HTTPClientFor(c)
	if err != nil {
		return restClients{}, fmt.Errorf("API server %s: %w; correct its certificates and credentials in the kubeconfig", host, err)
	}
	params := runtime.NewParameterCodec(scheme)
	group := func(path string, gv schema.GroupVersion) (groupClient, error) {
		c := *c
		c.APIPath, c.GroupVersion = path, &gv
		client, err := rest.RESTClientForConfigAndClient(&c, httpClient)
		if err != nil {
			return groupClient{}, fmt.Errorf("API server %s: %w", host, err)
		}
		return groupClient{client, params}, nil
	}
	clients := restClients{host: host.String(), conns: open}
	if clients.core, err = group("/api", corev1.SchemeGroupVersion); err != nil {
		return restClients{}, err
	}
	if clients.discovery, err = group("/apis", discoveryv1.SchemeGroupVersion); err != nil {
		return restClients{}, err
	}
	return clients, nil
}

// dialer notices a silently dead connection (a peer that lost power, a load
// balancer that forgot) within 25 s; client-go's HTTP/2 pings take 45 s, and
// TCP alone 15 minutes.
func dialer() *net.Dialer {
	return &net.Dialer{
		Timeout:         10 * time.Second,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 3},
		Control: func(_, _ string, c syscall.RawConn) error {
			// Best effort: without it, HTTP/2 pings find out.
			return c.Control(func(fd uintptr) {
				_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 20_000)
			})
		},
	}
}
