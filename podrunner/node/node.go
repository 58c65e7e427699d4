// SPDX-License-Identifier: Apache-2.0

// Package node is what a cluster sees of this machine: the Node object with its
// capacity and conditions, the Lease that says it lives, whether a Pod fits on
// it, and the status and Events of its Pods as they are written to the API
// server. It words all of it as the kubelet does. It starts no container, and
// knows of the runtime only what Version and Status say.
package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"fairlead.dev/podrunner/apiclient"
)

// Runtime is what is asked of the container runtime; cri-client's
// RuntimeService is one.
type Runtime interface {
	Version(ctx context.Context, apiVersion string) (*runtimeapi.VersionResponse, error)
	Status(ctx context.Context, verbose bool) (*runtimeapi.StatusResponse, error)
}

// Options of a Node. Name, Client, Runtime and Addresses are needed.
type Options struct {
	Name   string
	Client apiclient.Interface
	// Addresses are this node's, the primary one first; they become InternalIPs.
	Addresses []netip.Addr
	// Hostname is its address of that type and its label; default: Name.
	Hostname string
	Runtime  Runtime
	// Labels are put on the Node beside kubernetes.io/hostname, os and arch.
	Labels map[string]string
	// Taints are what the Node is created with. A Node that exists keeps its own.
	Taints []corev1.Taint
	// ProviderID is put into a Node that is created.
	ProviderID string
	// MaxPods is the capacity of Pods; default 110, the kubelet's.
	MaxPods int
	// Reserved is subtracted from capacity, beside the kubelet's default
	// eviction thresholds (100 Mi of memory, a tenth of the disk).
	Reserved corev1.ResourceList
	// Root is a directory of the filesystem that Pods write to; default /var/lib.
	Root string
	// KubeletPort is where the kubelet's API is; default 10250.
	KubeletPort int32
	// Version is reported as the kubelet's.
	Version string
	// DeclaredFeatures are named in status, as ExtendWebSocketsToKubelet.
	DeclaredFeatures []string
	// Images lists the images of the node, the biggest first; nil: none.
	Images func(context.Context) ([]corev1.ContainerImage, error)
	// Pressure tells what the node runs out of; default: NewPressure(Root).
	Pressure func() Pressure
	// Troubles are further reasons why the node is not ready; nil: none.
	Troubles func() []string
	// Events receives the Node's Events; nil: none.
	Events record.EventRecorder
	Logger *slog.Logger

	// LeaseDuration is what the Lease promises; default 40 s, renewed four times
	// within it.
	LeaseDuration time.Duration
	// StatusEvery is how often the status is computed; default 10 s.
	StatusEvery time.Duration
	// ReportEvery is how often it is written though nothing changed; default 5
	// minutes, and up to half of it later after a change.
	ReportEvery time.Duration
}

// Node keeps the Node object and its Lease.
type Node struct {
	o       Options
	machine machine
	poke    chan struct{}

	mu         sync.Mutex
	object     *corev1.Node // as the API server last gave it
	reported   time.Time    // when the status was last written
	reportWait time.Duration
	shutdown   string // why it is not ready, if it shuts down
}

// New checks the options. Nothing is sent before Run.
func New(o Options) (*Node, error) {
	switch {
	case o.Name == "":
		return nil, errors.New("a Node needs a name")
	case o.Client == nil || o.Runtime == nil:
		return nil, errors.New("a Node needs an API server and a container runtime")
	case len(o.Addresses) == 0:
		return nil, fmt.Errorf("node %s: no address is known; give one", o.Name)
	}
	o.Hostname = cmp.Or(o.Hostname, strings.ToLower(o.Name))
	o.MaxPods = cmp.Or(o.MaxPods, 110)
	o.Root = cmp.Or(o.Root, "/var/lib")
	o.KubeletPort = cmp.Or(o.KubeletPort, 10250)
	o.LeaseDuration = cmp.Or(o.LeaseDuration, 40*time.Second)
	o.StatusEvery = cmp.Or(o.StatusEvery, 10*time.Second)
	o.ReportEvery = cmp.Or(o.ReportEvery, 5*time.Minute)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Pressure == nil {
		o.Pressure = NewPressure(o.Root).Measure
	}
	if o.Events == nil {
		o.Events = NewEventList(1)
	}
	m, err := readMachine(os.DirFS("/"), o.Root)
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", o.Name, err)
	}
	return &Node{o: o, machine: m, poke: make(chan struct{}, 1)}, nil
}

// Allocatable is what Pods of this node may request in sum.
func (n *Node) Allocatable() corev1.ResourceList {
	return n.machine.allocatable(&n.o)
}

// Object is the Node as the API server last gave it, nil before the
// registration. It must not be modified.
func (n *Node) Object() *corev1.Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.object
}

// Poke has the status computed now, as when the runtime became ready.
func (n *Node) Poke() {
	select {
	case n.poke <- struct{}{}:
	default:
	}
}

// Shutdown makes the Node not ready and says why, so that nothing more is
// scheduled here; it is written at once. The Pods are the runner's to end.
func (n *Node) Shutdown(ctx context.Context) error {
	n.mu.Lock()
	n.shutdown = "node is shutting down"
	n.mu.Unlock()
	return n.report(ctx)
}

// Run registers the Node and keeps its Lease and its status until ctx ends.
// What fails is tried again.
func (n *Node) Run(ctx context.Context) error {
	n.event(corev1.EventTypeNormal, "Starting", "Starting kubelet.")
	if !n.register(ctx) {
		return nil
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { n.keepLease(ctx) })
	n.keepStatus(ctx)
	return nil
}

// keepStatus computes the status in every period, and faster until the node is
// ready for the first time.
func (n *Node) keepStatus(ctx context.Context) {
	failed := false
	for {
		err := n.report(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil && !failed {
			n.o.Logger.Warn("cannot report the status of the node; trying again", "node", n.o.Name, "err", err)
		}
		failed = err != nil
		wait := n.o.StatusEvery
		if !n.ready() {
			wait = min(wait, time.Second)
		}
		select {
		case <-ctx.Done():
			return
		case <-n.poke:
		case <-time.After(wait):
		}
	}
}

func (n *Node) ready() bool {
	o := n.Object()
	c := condition(o.Status.Conditions, corev1.NodeReady)
	return c != nil && c.Status == corev1.ConditionTrue
}

// report computes the status and writes it, if it changed or is due.
func (n *Node) report(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	// The API server answers this from its cache.
	old, err := n.o.Client.Nodes().Get(ctx, n.o.Name, metav1.GetOptions{ResourceVersion: "0"})
	if err != nil {
		return fmt.Errorf("get node %s: %w", n.o.Name, err)
	}
	for attempt := 0; ; attempt++ {
		wanted := old.DeepCopy()
		n.fill(ctx, wanted)
		changed := !sameStatus(&old.Status, &wanted.Status)
		if !changed && !n.due() {
			n.keep(old)
			return nil
		}
		patch, err := nodeStatusPatch(old, wanted)
		if err != nil {
			return fmt.Errorf("status of node %s: %w", n.o.Name, err)
		}
		got, err := n.o.Client.Nodes().Patch(ctx, n.o.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
		if apierrors.IsConflict(err) && attempt < 5 {
			if old, err = n.o.Client.Nodes().Get(ctx, n.o.Name, metav1.GetOptions{}); err == nil {
				continue
			}
		}
		if err != nil {
			return fmt.Errorf("patch status of node %s: %w", n.o.Name, err)
		}
		n.written(changed)
		n.announce(old, got)
		n.keep(got)
		return nil
	}
}

// due says whether it is time to write a status that did not change.
func (n *Node) due() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return time.Since(n.reported) >= n.reportWait
}

// written notes that the status was written. After a change the next report
// comes at a random time, so that the nodes of a cluster do not report at once.
func (n *Node) written(changed bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.reportWait = n.o.ReportEvery
	if changed || n.reported.IsZero() {
		n.reportWait += time.Duration(rand.Int64N(int64(n.o.ReportEvery))) - n.o.ReportEvery/2
	}
	n.reported = time.Now()
}

func (n *Node) keep(o *corev1.Node) {
	o.ManagedFields = nil
	n.mu.Lock()
	defer n.mu.Unlock()
	n.object = o
}

// announce makes Events of what became different.
func (n *Node) announce(old, now *corev1.Node) {
	if b := old.Status.NodeInfo.BootID; b != "" && b != n.machine.bootID {
		n.event(corev1.EventTypeWarning, "Rebooted", fmt.Sprintf("Node %s has been rebooted, boot id: %s", n.o.Name, n.machine.bootID))
	}
	for _, c := range now.Status.Conditions {
		was := condition(old.Status.Conditions, c.Type)
		if was == nil && c.Type == corev1.NodeReady {
			continue // of a Node that is new
		}
		if reason := conditionEvent(c); reason != "" && (was == nil || was.Status != c.Status) {
			n.event(corev1.EventTypeNormal, reason, fmt.Sprintf("Node %s status is now: %s", n.o.Name, reason))
		}
	}
}

func (n *Node) event(kind, reason, message string) {
	// The kubelet names the Node by its name where a UID belongs, and so do those
	// who look for a Node's Events.
	n.o.Events.Event(&corev1.ObjectReference{Kind: "Node", Name: n.o.Name, UID: types.UID(n.o.Name)}, kind, reason, message)
}
