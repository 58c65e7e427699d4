// SPDX-License-Identifier: Apache-2.0

// Package podnetwork is the network of Pods where a cluster has no other: each
// node has a range of addresses for its Pods, and the nodes are routers of one
// another (host-gw). It writes what the container runtime's CNI plugins need,
// keeps the routes to the other nodes' ranges, and masquerades what leaves the
// cluster. The nodes must be in one subnet. It makes no Pod's device itself,
// and knows nothing of Services.
package podnetwork

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Options of a Network. NodeName is needed.
type Options struct {
	NodeName string
	// PodCIDRs are this node's ranges, at most one of each family; nil: those of
	// its Node.
	PodCIDRs []netip.Prefix
	// ClusterCIDRs are where traffic of Pods keeps its source address, beside all
	// nodes and their ranges.
	ClusterCIDRs []netip.Prefix
	// ConfDir is where the runtime looks for its CNI configuration; default
	// /etc/cni/net.d.
	ConfDir string
	// DataDir is where host-local notes the addresses in use; default
	// /var/lib/cni/networks, its own.
	DataDir string
	// MTU of Pods' devices; default: that of the device of the default route.
	MTU    int
	Logger *slog.Logger
}

// Node is a node of the cluster.
type Node struct {
	Name string
	// PodCIDRs are the ranges of its Pods.
	PodCIDRs []netip.Prefix
	// Addresses are its own; the first of a family is its way in.
	Addresses []netip.Addr
}

// Network keeps one node's part of the network.
type Network struct {
	o       Options
	handle  *netlink.Handle
	conn    *nftables.Conn
	space   netns.NsHandle
	changes chan netlink.RouteUpdate
	stop    chan struct{}
	poke    chan struct{}

	mu       sync.Mutex
	nodes    map[string]Node
	synced   bool // all nodes are known: what is not wanted may go
	problems []string
}

// How often all is looked at, and how soon what failed is tried again.
const (
	fullSync  = time.Minute
	retrySync = 2 * time.Second
)

// Open opens the kernel in the calling thread's network namespace, and makes it
// forward packets of the families that the node has Pods of. Close it.
func Open(o Options) (*Network, error) {
	if o.NodeName == "" {
		return nil, errors.New("the Pod network needs the node's name")
	}
	if err := checkCIDRs(o.PodCIDRs); err != nil {
		return nil, err
	}
	setDefaults(&o)
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open the kernel's routes: %w", err)
	}
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	n := &Network{o: o, handle: h, conn: conn, space: netns.None(), stop: make(chan struct{}),
		poke: make(chan struct{}, 1), nodes: map[string]Node{}}
	if n.space, err = netns.Get(); err != nil {
		return nil, errors.Join(fmt.Errorf("the thread's network namespace: %w", err), n.Close())
	}
	if err := n.watch(); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	if err := n.forward(); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

func setDefaults(o *Options) {
	if o.ConfDir == "" {
		o.ConfDir = "/etc/cni/net.d"
	}
	if o.DataDir == "" {
		o.DataDir = "/var/lib/cni/networks"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// checkCIDRs refuses what no node can have.
func checkCIDRs(cidrs []netip.Prefix) error {
	seen := map[bool]bool{}
	for _, p := range cidrs {
		switch {
		case !p.IsValid() || p != p.Masked():
			return fmt.Errorf("range of Pods %s is no network address", p)
		case p.Bits() > p.Addr().BitLen()-2:
			return fmt.Errorf("range of Pods %s is too small for a Pod", p)
		case seen[p.Addr().Is4()]:
			return fmt.Errorf("range of Pods %s: one of its family is enough", p)
		}
		seen[p.Addr().Is4()] = true
	}
	return nil
}

// watch has the kernel's changes of routes sent to n.changes.
func (n *Network) watch() error {
	changes := make(chan netlink.RouteUpdate, 64)
	if err := netlink.RouteSubscribeWithOptions(changes, n.stop, netlink.RouteSubscribeOptions{Namespace: &n.space}); err != nil {
		return fmt.Errorf("watch the kernel's routes: %w", err)
	}
	n.changes = changes
	return nil
}

// Close ends the watch; routes, rules and configuration stay in force.
func (n *Network) Close() error {
	close(n.stop)
	if n.changes != nil {
		go func() { // until the subscription has ended
			for range n.changes {
				continue
			}
		}()
	}
	n.handle.Close()
	var err error
	if n.space.IsOpen() {
		err = n.space.Close()
	}
	return errors.Join(err, n.conn.CloseLasting())
}

// SetNode says what a node is now; nil: it is gone. It does not block.
func (n *Network) SetNode(name string, node *Node) {
	n.mu.Lock()
	defer n.mu.Unlock()
	old, known := n.nodes[name]
	switch {
	case node == nil && !known:
		return
	case node == nil:
		delete(n.nodes, name)
	case known && slices.Equal(old.PodCIDRs, node.PodCIDRs) && slices.Equal(old.Addresses, node.Addresses):
		return // a heartbeat
	default:
		n.nodes[name] = Node{Name: name, PodCIDRs: slices.Clone(node.PodCIDRs), Addresses: slices.Clone(node.Addresses)}
	}
	n.wake()
}

// SetSynced says that all nodes that there are were set: from now on what is in
// the kernel for others is removed.
func (n *Network) SetSynced() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.synced = true
	n.wake()
}

func (n *Network) wake() {
	select {
	case n.poke <- struct{}{}:
	default:
	}
}

// Problems are what is not in force as it should be, a line each.
func (n *Network) Problems() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.problems)
}

// Run keeps the network until ctx ends. What came while it worked is done at
// once; a route of its that something else removed is put back.
func (n *Network) Run(ctx context.Context) error {
	for {
		wait := fullSync
		if n.changes == nil && n.watch() != nil {
			wait = retrySync
		}
		if err := n.Sync(); err != nil {
			wait = retrySync
		}
		timer := time.NewTimer(wait)
		for again := false; !again; {
			select {
			case <-ctx.Done():
				timer.Stop()
				return nil
			case <-n.poke:
				again = true
			case <-timer.C:
				again = true
			case u, ok := <-n.changes:
				again = !ok || u.Type == unix.RTM_DELROUTE && u.Protocol == routeProtocol
				if !ok {
					n.changes = nil // more came than the socket holds
				}
			}
		}
		timer.Stop()
	}
}

// Sync makes everything as it should be. The error has a line for each thing
// that is not; the rest is in force.
func (n *Network) Sync() error {
	n.mu.Lock()
	nodes, synced := slices.Collect(maps.Values(n.nodes)), n.synced
	n.mu.Unlock()
	slices.SortFunc(nodes, func(a, b Node) int { return compareStrings(a.Name, b.Name) })
	own := n.own(nodes)
	var problems []string
	note := func(err error) {
		if err != nil {
			problems = append(problems, err.Error())
		}
	}
	if len(own) == 0 {
		note(fmt.Errorf("node %s has no range of addresses for Pods: is the control plane to assign one (kube-controller-manager --allocate-node-cidrs)?", n.o.NodeName))
	} else {
		note(n.writeConflist(own))
		note(n.syncMasquerade(own, inside(nodes, own, n.o.ClusterCIDRs)))
	}
	problems = append(problems, n.syncRoutes(nodes, own, synced)...)
	n.mu.Lock()
	told := slices.Equal(problems, n.problems)
	n.problems = problems
	n.mu.Unlock()
	if len(problems) == 0 {
		return nil
	}
	err := fmt.Errorf("pod network: %d problems, the first: %s", len(problems), problems[0])
	if !told {
		n.o.Logger.Warn("the Pod network is not as it should be; trying again", "problems", len(problems), "first", problems[0])
	}
	return err
}

// own are the ranges of this node's Pods.
func (n *Network) own(nodes []Node) []netip.Prefix {
	if len(n.o.PodCIDRs) > 0 {
		return n.o.PodCIDRs
	}
	for _, node := range nodes {
		if node.Name == n.o.NodeName && checkCIDRs(node.PodCIDRs) == nil {
			return node.PodCIDRs
		}
	}
	return nil
}

func compareStrings(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// Cleanup removes all that a Network left in the calling thread's network
// namespace and in ConfDir, and says what that was. Pods keep their devices.
func Cleanup(o Options) (removed []string, err error) {
	setDefaults(&o)
	var errs []error
	for _, f := range []func(Options) ([]string, error){removeConflist, removeRoutes, removeMasquerade} {
		r, err := f(o)
		removed = append(removed, r...)
		errs = append(errs, err)
	}
	return removed, errors.Join(errs...)
}
