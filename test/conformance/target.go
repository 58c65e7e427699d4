// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/controller/compile"
	"fairlead.dev/dataplane"
	"fairlead.dev/test/internal/namespace"
)

// Target is a Dataplane to put through the table.
type Target struct {
	// Name is printed in the summary: ebpf, nftables, iptables, ipvs.
	Name string
	// New makes the Dataplane for a node. It and the Dataplane's methods are
	// called on a thread in the node's network namespace; goroutines that the
	// Dataplane starts are not in it, and have Node.NetNSPath. What New leaves
	// in the namespace, in Node.CgroupRoot and in Node.BPFFS goes with them.
	New func(*Node) (dataplane.Dataplane, error)
	// Unsupported says why cases do not apply: by ID or, for some of a case's
	// variants, by ID/PART, where PART is in the variants' names ("ipv6",
	// "udp", "ipv6-udp", "pod2").
	Unsupported map[string]string
}

// unsupported is the reason why a variant of a case does not apply.
func (t Target) unsupported(c Case, v variant) (reason string, ok bool) {
	for key, reason := range t.Unsupported {
		if id, part, cut := strings.Cut(key, "/"); cut && id == c.ID && v.has(part) {
			return reason, true
		}
	}
	return "", false
}

// applyWithin bounds one call of a Dataplane.
var applyWithin = 10 * time.Second * slowness

// zone is the topology zone of both nodes.
const zone = "zone-1"

// agent is what `fairlead run` is on a node: it compiles objects and applies
// the Changes.
type agent struct {
	node     *Node
	thread   *namespace.Thread
	dp       dataplane.Dataplane
	compiler *compile.Compiler
	problems []compile.Problem
}

// newAgent starts a Dataplane on a node.
func newAgent(target Target, n *Node) (*agent, error) {
	a := &agent{node: n, compiler: compile.New(compile.Options{})}
	var err error
	if a.thread, err = namespace.NewThread(n.ns.Path()); err != nil {
		return nil, err
	}
	a.compiler.SetNode(compile.NodeFacts{
		Name: n.Name, Zone: zone, Addresses: n.Addresses,
		NodePortAddresses: append([]netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}, n.Addresses...),
		PrimaryIPv4:       n.PrimaryIPv4, PrimaryIPv6: n.PrimaryIPv6,
		InternalSources: ClusterCIDRs, ServiceCIDRs: ServiceCIDRs,
	})
	a.compiler.Compile()
	err = a.thread.Do(func() (err error) {
		a.dp, err = target.New(n)
		return err
	})
	if err == nil && a.dp == nil {
		err = errors.New("no Dataplane was made")
	}
	if err != nil {
		return nil, fmt.Errorf("new %s on %s: %w", target.Name, n.Name, err)
	}
	if _, err := a.sync(); err != nil {
		return nil, err
	}
	return a, nil
}

// sync is the full check: it returns how much of the kernel was not as it should be.
func (a *agent) sync() (changed int, err error) {
	err = a.thread.Do(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), applyWithin)
		defer cancel()
		changed, err = a.dp.Sync(ctx, a.compiler.Table())
		return err
	})
	if err != nil {
		err = fmt.Errorf("sync %s: %w", a.node.Name, err)
	}
	return changed, err
}

// apply compiles what was set and applies the Change.
func (a *agent) apply() error {
	r := a.compiler.Compile()
	a.problems = r.Problems
	if r.Change.Empty() {
		return nil
	}
	err := a.thread.Do(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), applyWithin)
		defer cancel()
		return a.dp.Apply(ctx, r.Change)
	})
	if err != nil {
		return fmt.Errorf("apply on %s: %w", a.node.Name, err)
	}
	return nil
}

func (a *agent) close() error {
	err := a.thread.Do(a.dp.Close)
	a.thread.Close()
	return err
}

// objects are what a case set; nil is the absence of one.
type objects struct {
	services map[types.NamespacedName]*corev1.Service
	slices   map[types.NamespacedName]*discoveryv1.EndpointSlice
	pods     map[types.NamespacedName]*corev1.Pod
}

func newObjects() objects {
	return objects{
		services: map[types.NamespacedName]*corev1.Service{},
		slices:   map[types.NamespacedName]*discoveryv1.EndpointSlice{},
		pods:     map[types.NamespacedName]*corev1.Pod{},
	}
}

// give tells the agent about the objects, and applies.
func (a *agent) give(o objects) error {
	for k, v := range o.services {
		a.compiler.SetService(k, v)
	}
	for k, v := range o.slices {
		a.compiler.SetEndpointSlice(k, v)
	}
	for k, v := range o.pods {
		if v == nil || v.Spec.NodeName == a.node.Name {
			a.compiler.SetPod(k, v)
		}
	}
	return a.apply()
}

// forget is give with every object of o gone.
func (a *agent) forget(o objects) error {
	none := newObjects()
	for k := range o.services {
		none.services[k] = nil
	}
	for k := range o.slices {
		none.slices[k] = nil
	}
	for k := range o.pods {
		none.pods[k] = nil
	}
	return a.give(none)
}
