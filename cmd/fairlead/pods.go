// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/controller/config"
	"fairlead.dev/controller/source"
	"fairlead.dev/podrunner"
	"fairlead.dev/podrunner/housekeeping"
	"fairlead.dev/podrunner/node"
	"fairlead.dev/podrunner/objects"
	"fairlead.dev/podrunner/podnetwork"
	"fairlead.dev/podrunner/podspec"
	"fairlead.dev/podrunner/volume"
)

// pods is the runner of Pods, with what it needs from where Pods come from.
type pods struct {
	c       *config.Configuration
	log     *slog.Logger
	facts   *podFacts
	runner  *podrunner.Runner
	volumes *volume.Manager
	network *podnetwork.Network // nil: --pod-network off
	// pressure is what keeper finds that the node is short of.
	pressure *node.Gauge
	keeper   *housekeeping.Keeper
	events   *podEvents
	// static is fed by a directory; cluster is the API server's side. One of
	// them is nil.
	static  *objects.Static
	cluster *cluster
}

// newPods wires the runner. src is where Pods come from.
func newPods(c *config.Configuration, src source.Source, log *slog.Logger) (p *pods, err error) {
	if err := os.MkdirAll(c.StateDir, 0o750); err != nil {
		return nil, fmt.Errorf("--state-dir: %w", err)
	}
	p = &pods{c: c, log: log}
	if p.facts, err = newPodFacts(c); err != nil {
		return nil, err
	}
	o := podrunner.Options{
		NodeName: c.NodeName, Root: c.StateDir, Socket: c.CRISocket, Facts: p.facts.facts, Admit: p.admit, Logger: log,
	}
	if d, ok := src.(*source.Directory); ok {
		p.static = &objects.Static{}
		o.Objects, o.Status = p.static, directoryStatus{d}
		p.events = &podEvents{list: node.NewEventList(keptEvents), next: logEvents{log}}
	} else {
		if p.cluster, err = newCluster(c, p.facts, log); err != nil {
			return nil, err
		}
		o.Objects, o.Status = p.cluster.store, p.cluster.writer
		p.events = &podEvents{list: node.NewEventList(keptEvents), next: p.cluster.events}
		p.facts.runtimeHandler = p.cluster.runtimeHandler
	}
	o.Events = p.events
	p.volumes = volume.New(c.StateDir, o.Objects, log)
	o.Volumes = p.volumes
	if p.runner, err = podrunner.New(o); err != nil {
		return nil, err
	}
	p.pressure = node.NewPressure(c.StateDir)
	if p.keeper, err = p.newKeeper(); err != nil {
		return nil, err
	}
	if c.PodNetwork != "off" {
		if p.network, err = openPodNetwork(c, log); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// openPodNetwork opens the network of --pod-network host-gw.
func openPodNetwork(c *config.Configuration, log *slog.Logger) (*podnetwork.Network, error) {
	own, err := c.PodPrefixes()
	if err != nil {
		return nil, err
	}
	all, err := c.ClusterPrefixes()
	if err != nil {
		return nil, err
	}
	if c.Manifests != "" && len(own) == 0 {
		return nil, usagef("--pod-network %s: a directory has no Node object to say it, so set --pod-cidr", c.PodNetwork)
	}
	return podnetwork.Open(podnetwork.Options{NodeName: c.NodeName, PodCIDRs: own, ClusterCIDRs: all, Logger: log})
}

// run runs Pods until ctx ends. They run on then, unless they are to be drained.
// The kubelet's API serves the agent's metrics.
func (p *pods) run(ctx context.Context, metrics http.Handler) error {
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, running := errgroup.WithContext(running)
	g.Go(func() error { return p.runner.Run(running) })
	g.Go(func() error { return p.keeper.Run(running) })
	g.Go(func() error { return p.serveSocket(running) })
	if p.network != nil {
		g.Go(func() error { return p.runNetwork(running) })
	}
	if p.cluster != nil {
		g.Go(func() error { return p.cluster.run(running, p, metrics) })
	}
	g.Go(func() error {
		select {
		case <-running.Done(): // something above failed
		case <-ctx.Done():
			if p.c.DrainOnStop {
				p.drain()
			}
			stop()
		}
		return nil
	})
	err := g.Wait()
	if p.network != nil {
		err = errors.Join(err, p.network.Close())
	}
	return err
}

func (p *pods) runNetwork(ctx context.Context) error {
	if p.cluster != nil {
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return p.network.Follow(ctx, p.cluster.client) })
		g.Go(func() error { return p.network.Run(ctx) })
		return g.Wait()
	}
	own, err := p.c.PodPrefixes()
	if err != nil {
		return err
	}
	p.network.SetNode(p.c.NodeName, &podnetwork.Node{Name: p.c.NodeName, PodCIDRs: own, Addresses: p.facts.hostIPs})
	p.network.SetSynced()
	return p.network.Run(ctx)
}

// drainAtMost bounds a drain, as systemd and others bound the end of a service.
const drainAtMost = 80 * time.Second

// drain ends all Pods as the kubelet does at a shutdown of the node.
func (p *pods) drain() {
	ctx, cancel := context.WithTimeout(context.Background(), drainAtMost)
	defer cancel()
	p.log.Info("ending the Pods, as --drain-on-stop says")
	if n := p.registered(); n != nil {
		if err := n.Shutdown(ctx); err != nil {
			p.log.Warn("make the node not ready", "error", err)
		}
	}
	for _, pod := range p.runner.Pods() {
		p.runner.Evict(pod.UID, "Terminated", "Pod was terminated in response to imminent node shutdown.", gracePeriod(pod))
	}
	for {
		left := 0
		for _, pod := range p.runner.Pods() {
			if pod.Status.Phase != corev1.PodFailed && pod.Status.Phase != corev1.PodSucceeded {
				left++
			}
		}
		if left == 0 {
			return
		}
		select {
		case <-ctx.Done():
			p.log.Warn("Pods still run, and are left", "pods", left)
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func gracePeriod(p *corev1.Pod) time.Duration {
	if s := p.Spec.TerminationGracePeriodSeconds; s != nil {
		return time.Duration(*s) * time.Second
	}
	return corev1.DefaultTerminationGracePeriodSeconds * time.Second
}

// admit refuses what does not fit on the node.
func (p *pods) admit(pod *corev1.Pod, others []*corev1.Pod) *podspec.Refused {
	on := p.facts.node
	if n := p.registered(); n != nil && n.Object() != nil {
		on = n.Object()
	}
	if r := node.Admit(pod, others, on); r != nil {
		return &podspec.Refused{Reason: r.Reason, Message: r.Message}
	}
	return nil
}

// registered is the Node at the API server, nil where there is none (yet).
func (p *pods) registered() *node.Node {
	if p.cluster == nil {
		return nil
	}
	return p.cluster.node.Load()
}

// directoryStatus gives the status of Pods to the directory, whose Services
// follow it.
type directoryStatus struct{ d *source.Directory }

func (s directoryStatus) SetPodStatus(key types.NamespacedName, _ types.UID, status corev1.PodStatus) {
	s.d.SetPodStatus(key, status)
}

// PodFinished has nothing to do: a Pod of a directory is gone when its file is.
func (directoryStatus) PodFinished(types.NamespacedName, types.UID) {}

// teeSource is a Source whose objects go to the runner of Pods too.
type teeSource struct {
	source.Source
	pods *pods
}

func (s teeSource) Run(ctx context.Context, h source.Handler) error {
	return s.Source.Run(ctx, &tee{Handler: h, pods: s.pods, ctx: ctx})
}

type tee struct {
	source.Handler
	pods *pods
	ctx  context.Context // of the Source's Run
}

var (
	_ source.ConfigHandler  = (*tee)(nil)
	_ source.HoldingHandler = (*tee)(nil)
)

func (t *tee) OnPod(key types.NamespacedName, p *corev1.Pod) {
	t.Handler.OnPod(key, p)
	t.pods.runner.OnPod(key, p)
}

func (t *tee) OnSynced() {
	t.Handler.OnSynced()
	t.pods.runner.OnSynced()
}

// How long the kernel keeps what an earlier agent left in it: until the runtime
// answers, and then until the Pods that run have.
const (
	runtimeAtMost = time.Minute
	settleAtMost  = 10 * time.Second
)

// OnHeld is asked by a directory, which does not know what is ready: until the
// Pods that run were asked, the kernel stays as it is, so that a restart of the
// agent takes no Backend away.
func (t *tee) OnHeld() <-chan struct{} {
	t.pods.runner.OnSynced()
	settled := make(chan struct{})
	go func() {
		defer close(settled)
		t.pods.runner.Settle(t.ctx, runtimeAtMost, settleAtMost)
	}()
	return settled
}

func (t *tee) OnService(key types.NamespacedName, s *corev1.Service) {
	t.Handler.OnService(key, s)
	switch static := t.pods.static; {
	case static == nil: // the Store of an API server asks for itself
	case s == nil:
		static.DeleteService(key)
	default:
		static.SetService(s.DeepCopy())
	}
}

// OnConfigMap and OnSecret come from a directory only.
func (t *tee) OnConfigMap(key types.NamespacedName, c *corev1.ConfigMap) {
	if c == nil {
		t.pods.static.Delete(objects.Key{Kind: objects.KindConfigMap, NamespacedName: key})
		return
	}
	t.pods.static.SetConfigMap(c.DeepCopy())
}

func (t *tee) OnSecret(key types.NamespacedName, s *corev1.Secret) {
	if s == nil {
		t.pods.static.Delete(objects.Key{Kind: objects.KindSecret, NamespacedName: key})
		return
	}
	t.pods.static.SetSecret(s.DeepCopy())
}

// checkPods refuses what cannot be run with --pods cri.
func checkPods(c *config.Configuration) error {
	if (c.TLSCertFile == "") != (c.TLSPrivateKeyFile == "") {
		return usagef("--tls-cert-file and --tls-private-key-file belong together: set both or none")
	}
	if c.KubeletRotateServerCertificates && c.TLSCertFile != "" {
		return usagef("--kubelet-rotate-server-certificates and --tls-cert-file contradict each other: the certificate is the cluster's or yours")
	}
	if c.Manifests != "" && c.KubeletRotateServerCertificates {
		return usagef("--kubelet-rotate-server-certificates is for the kubelet's API, which a directory has none of")
	}
	if c.Manifests != "" && c.ClientCAFile != "" {
		return usagef("--client-ca-file is for the kubelet's API, which a directory has none of: use `fairlead logs` and `fairlead exec` on the node")
	}
	return nil
}
