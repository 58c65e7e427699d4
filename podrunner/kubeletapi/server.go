// SPDX-License-Identifier: Apache-2.0

// Package kubeletapi is the node's side of kubectl logs, exec, attach and
// port-forward, and what metrics-server reads: the kubelet's API on port 10250,
// with TLS. Whoever asks is authenticated by a client certificate or a token
// and authorized by the API server; there is no anonymous way in and no port
// without TLS. It starts and stops no Pod: it asks for the list of them, and
// finds their containers in the runtime by their labels.
package kubeletapi

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Runtime is what is asked of the container runtime; cri-client's
// RuntimeService is one.
type Runtime interface {
	ListPodSandbox(ctx context.Context, filter *runtimeapi.PodSandboxFilter) ([]*runtimeapi.PodSandbox, error)
	PodSandboxStatus(ctx context.Context, id string, verbose bool) (*runtimeapi.PodSandboxStatusResponse, error)
	ListContainers(ctx context.Context, filter *runtimeapi.ContainerFilter) ([]*runtimeapi.Container, error)
	ContainerStatus(ctx context.Context, id string, verbose bool) (*runtimeapi.ContainerStatusResponse, error)
	ExecSync(ctx context.Context, id string, cmd []string, timeout time.Duration) (stdout, stderr []byte, err error)
	Exec(context.Context, *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error)
	Attach(context.Context, *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error)
	PortForward(context.Context, *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error)
	ListContainerStats(ctx context.Context, filter *runtimeapi.ContainerStatsFilter) ([]*runtimeapi.ContainerStats, error)
	ListPodSandboxStats(ctx context.Context, filter *runtimeapi.PodSandboxStatsFilter) ([]*runtimeapi.PodSandboxStats, error)
}

// Options of a Server. NodeName, Pods, Runtime, Authenticate, Authorize and
// Certificate are needed.
type Options struct {
	NodeName string
	// Pods are those of this node with their present status. They are not modified.
	Pods    func() []*corev1.Pod
	Runtime Runtime
	// Authenticate says who asks, see Authenticator.
	Authenticate func(*http.Request) (User, error)
	// Authorize says whether the user may, see Authorizer.
	Authorize func(context.Context, Access) (bool, error)
	// Certificate is the server's.
	Certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// Healthy is what /healthz asks of the runner; nil: always healthy.
	Healthy func() error
	// Metrics serves /metrics; nil: there are none.
	Metrics http.Handler
	// Stats serves /stats/summary and /metrics/resource; nil: there are none.
	Stats *Stats
	// LogRoot is where the logs of Pods are, used for containers that the runtime
	// no longer knows; default /var/log/pods.
	LogRoot string
	Logger  *slog.Logger
}

// Server is the kubelet's API.
type Server struct {
	o       Options
	handler http.Handler
}

// New checks the options.
func New(o Options) (*Server, error) {
	if o.NodeName == "" || o.Pods == nil || o.Runtime == nil {
		return nil, errors.New("the kubelet API needs the node's name, its Pods and a container runtime")
	}
	if o.Authenticate == nil || o.Authorize == nil || o.Certificate == nil {
		return nil, errors.New("the kubelet API needs authentication, authorization and a certificate")
	}
	if o.LogRoot == "" {
		o.LogRoot = "/var/log/pods"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{o: o}
	s.handler = s.guard(s.routes())
	return s, nil
}

// Run serves on the listener, with TLS, until ctx ends; then every connection
// is closed.
func (s *Server) Run(ctx context.Context, l net.Listener) error {
	conns := trackConns(l)
	defer conns.closeAll()
	server := &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: 30 * time.Second,
		IdleTimeout:       90 * time.Second,
		MaxHeaderBytes:    1 << 20,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(s.o.Logger.Handler(), slog.LevelDebug), // port scanners
		TLSConfig: &tls.Config{
			MinVersion:     tls.VersionTLS12,
			GetCertificate: s.o.Certificate,
			// Verified when it is used: a token will do as well.
			ClientAuth: tls.RequestClientCert,
		},
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	err := server.ServeTLS(conns, "", "")
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("serve the kubelet API on %s: %w", l.Addr(), err)
}

// ServeHTTP serves one request, for tests.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

func (s *Server) routes() http.Handler {
	m := http.NewServeMux()
	m.HandleFunc("GET /healthz", s.healthz)
	m.HandleFunc("GET /healthz/ping", s.ping)
	m.HandleFunc("GET /healthz/syncloop", s.syncloop)
	m.HandleFunc("GET /pods", s.pods)
	m.HandleFunc("GET /pods/{$}", s.pods)
	m.HandleFunc("GET /runningpods/{$}", s.runningPods)
	m.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", s.containerLogs)
	for _, method := range []string{"GET ", "POST "} { // GET: WebSocket
		m.HandleFunc(method+"/exec/{namespace}/{pod}/{container}", s.exec)
		m.HandleFunc(method+"/exec/{namespace}/{pod}/{uid}/{container}", s.exec)
		m.HandleFunc(method+"/attach/{namespace}/{pod}/{container}", s.attach)
		m.HandleFunc(method+"/attach/{namespace}/{pod}/{uid}/{container}", s.attach)
		m.HandleFunc(method+"/portForward/{namespace}/{pod}", s.portForward)
		m.HandleFunc(method+"/portForward/{namespace}/{pod}/{uid}", s.portForward)
	}
	m.HandleFunc("POST /run/{namespace}/{pod}/{container}", s.run)
	m.HandleFunc("POST /run/{namespace}/{pod}/{uid}/{container}", s.run)
	if s.o.Metrics != nil {
		m.Handle("GET /metrics", s.o.Metrics)
	}
	if s.o.Stats != nil {
		m.HandleFunc("GET /stats/summary", s.o.Stats.serveSummary)
		m.HandleFunc("GET /stats/{$}", s.o.Stats.serveSummary)
		m.HandleFunc("GET /metrics/resource", s.o.Stats.serveResource)
	}
	return m
}

// guard lets only those in who may do what they ask.
func (s *Server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r, user, ok := identify(w, r, s.o.Authenticate, s.o.Logger)
		if !ok {
			return
		}
		verb, subresources := attributes(r)
		for _, sub := range subresources {
			ok, err := s.o.Authorize(r.Context(), Access{User: user, Verb: verb, Node: s.o.NodeName, Subresource: sub})
			if err != nil {
				s.o.Logger.Warn("cannot ask whether a request to the kubelet API is allowed", "user", user.Name, "err", err)
				http.Error(w, fmt.Sprintf("Authorization error (user=%s, verb=%s, resource=nodes, subresource=%s)", user.Name, verb, sub), http.StatusInternalServerError)
				return
			}
			if ok {
				next.ServeHTTP(w, r)
				return
			}
		}
		http.Error(w, fmt.Sprintf("Forbidden (user=%s, verb=%s, resource=nodes, subresource(s)=%v)", user.Name, verb, subresources), http.StatusForbidden)
	})
}

// pod finds the Pod that a request names, and answers where there is none.
func (s *Server) pod(w http.ResponseWriter, r *http.Request) *corev1.Pod {
	for _, p := range s.o.Pods() {
		if p.Namespace == r.PathValue("namespace") && p.Name == r.PathValue("pod") {
			if uid := types.UID(r.PathValue("uid")); uid != "" && uid != p.UID {
				continue
			}
			return p
		}
	}
	http.Error(w, fmt.Sprintf("pod %q does not exist", r.PathValue("pod")), http.StatusNotFound)
	return nil
}
