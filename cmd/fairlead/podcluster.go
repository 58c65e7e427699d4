// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"

	"fairlead.dev/controller/config"
	"fairlead.dev/controller/source"
	"fairlead.dev/podrunner"
	"fairlead.dev/podrunner/apiclient"
	"fairlead.dev/podrunner/cri"
	"fairlead.dev/podrunner/kubeletapi"
	"fairlead.dev/podrunner/kubeletapi/servingcert"
	"fairlead.dev/podrunner/node"
	"fairlead.dev/podrunner/objects"
)

// cluster is the API server's side of running Pods: the Node, the status of its
// Pods, and the kubelet's API.
type cluster struct {
	c          *config.Configuration
	log        *slog.Logger
	facts      *podFacts
	client     apiclient.Interface
	store      *objects.API
	writer     *node.PodWriter
	events     record.EventRecorder
	stopEvents func()
	node       atomic.Pointer[node.Node] // nil before the runtime was reached
}

func newCluster(c *config.Configuration, facts *podFacts, log *slog.Logger) (*cluster, error) {
	rest, err := source.LoadRESTConfig(c.Kubeconfig)
	if err != nil {
		return nil, err
	}
	// A node that starts 100 Pods asks much at once; the API server has its
	// own fairness.
	rest.QPS, rest.Burst = 100, 200
	rest.UserAgent = "fairlead/" + readBuildInfo().Version
	client, err := apiclient.New(rest)
	if err != nil {
		return nil, fmt.Errorf("API client of the pod runner: %w", err)
	}
	k := &cluster{
		c: c, log: log, facts: facts, client: client, writer: node.NewPodWriter(client, log),
		store: objects.NewAPI(objects.APIOptions{Client: client, Logger: log}),
	}
	k.events, k.stopEvents = node.NewEvents(client, c.NodeName)
	return k, nil
}

// runtimeHandlerWithin bounds the question for a RuntimeClass.
const runtimeHandlerWithin = 10 * time.Second

func (k *cluster) runtimeHandler(class string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), runtimeHandlerWithin)
	defer cancel()
	r, err := k.client.RuntimeClasses().Get(ctx, class, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	return r.Handler, nil
}

// run does all of it until ctx ends. The Node is registered when the runtime
// was reached.
func (k *cluster) run(ctx context.Context, p *pods, metrics http.Handler) error {
	defer k.stopEvents()
	defer k.store.Close()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return k.writer.Run(ctx) })
	g.Go(func() error {
		runtime, err := reached(ctx, p.runner)
		if err != nil {
			return nil // ctx has ended
		}
		n, err := k.newNode(p, runtime)
		if err != nil {
			return err
		}
		k.node.Store(n)
		g.Go(func() error { return n.Run(ctx) })
		if k.c.KubeletBindAddress == "" {
			return nil
		}
		return k.serve(ctx, g, p, runtime, metrics)
	})
	return g.Wait()
}

// reached waits for the runtime.
func reached(ctx context.Context, r *podrunner.Runner) (*cri.Client, error) {
	for {
		if c := r.Runtime(); c != nil {
			return c, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (k *cluster) newNode(p *pods, runtime *cri.Client) (*node.Node, error) {
	labels, err := k.c.NodeLabelMap()
	if err != nil {
		return nil, err
	}
	taints, err := k.c.Taints()
	if err != nil {
		return nil, err
	}
	o := node.Options{
		Name: k.c.NodeName, Client: k.client, Addresses: k.facts.hostIPs, Runtime: runtime.Runtime, Labels: labels, Taints: taints,
		MaxPods: k.c.MaxPods, Version: "v1.37.0+fairlead." + readBuildInfo().Version, Events: k.events, Logger: k.log,
		Root: k.c.StateDir, Pressure: p.pressure.Measure, Images: node.ListImages(runtime.Images.ListImages),
		// Of those that a kubelet of this version can have.
		DeclaredFeatures: []string{"ExtendWebSocketsToKubelet"},
	}
	if k.c.KubeletBindAddress != "" {
		_, port, err := net.SplitHostPort(k.c.KubeletBindAddress)
		if err != nil {
			return nil, err
		}
		n, err := strconv.ParseInt(port, 10, 32)
		if err != nil {
			return nil, err
		}
		o.KubeletPort = int32(n)
	}
	return node.New(o)
}

// serve serves the kubelet's API.
func (k *cluster) serve(ctx context.Context, g *errgroup.Group, p *pods, runtime *cri.Client, metrics http.Handler) error {
	certificate, err := k.certificate(ctx, g)
	if err != nil {
		return err
	}
	a := kubeletapi.NewAuthenticator(nil, k.client)
	if k.c.ClientCAFile != "" {
		roots, err := kubeletapi.CAFile(k.c.ClientCAFile)
		if err != nil {
			return fmt.Errorf("--client-ca-file: %w", err)
		}
		a = kubeletapi.NewAuthenticator(roots, k.client)
	}
	stats, err := kubeletapi.NewStats(kubeletapi.StatsOptions{
		NodeName: k.c.NodeName, Pods: p.runner.Pods, Runtime: runtime.Runtime, Volumes: p.volumes.Usage,
		PodCgroup: k.facts.podCgroup, ImageFs: runtime.Images.ImageFsInfo, Root: k.c.StateDir, LogRoot: k.c.PodLogDir,
	})
	if err != nil {
		return err
	}
	s, err := kubeletapi.New(kubeletapi.Options{
		NodeName: k.c.NodeName, Pods: p.runner.Pods, Runtime: runtime.Runtime, Certificate: certificate, Stats: stats,
		Authenticate: a.Authenticate, Authorize: kubeletapi.NewAuthorizer(k.client).Authorize,
		Healthy: p.runner.Healthy, Metrics: metrics, LogRoot: k.c.PodLogDir, Logger: k.log,
	})
	if err != nil {
		return err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", k.c.KubeletBindAddress)
	if err != nil {
		return fmt.Errorf("--kubelet-bind-address %s: %w", k.c.KubeletBindAddress, err)
	}
	if err := s.Run(ctx, l); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// certificate is a file's, the cluster's, which is kept current until ctx ends,
// or one that the agent signed.
func (k *cluster) certificate(ctx context.Context, g *errgroup.Group) (kubeletapi.GetCertificate, error) {
	dir := filepath.Join(k.c.StateDir, "pki")
	switch {
	case k.c.TLSCertFile != "":
		return kubeletapi.CertificateFiles(k.c.TLSCertFile, k.c.TLSPrivateKeyFile)
	case k.c.KubeletRotateServerCertificates:
		m, err := servingcert.New(servingcert.Options{
			Requests: k.client.CertificateSigningRequests(), Dir: dir, NodeName: k.c.NodeName, Addresses: k.facts.hostIPs, Logger: k.log,
		})
		if err != nil {
			return nil, err
		}
		g.Go(func() error { m.Run(ctx); return nil })
		return m.GetCertificate, nil
	}
	return kubeletapi.SelfSigned(dir, k.c.NodeName, k.facts.hostIPs)
}
