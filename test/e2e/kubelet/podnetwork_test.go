// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairlead.dev/podrunner/apiclient/clientset"
	"fairlead.dev/podrunner/podnetwork"
)

func TestThePodNetworkFollowsTheNodesOfTheCluster(t *testing.T) {
	c := newCluster(t)
	uplink := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "uplink"}, PeerName: "world"}
	if err := netlink.LinkAdd(uplink); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(uplink) })
	address, _ := netlink.ParseAddr("10.98.0.1/24")
	if err := netlink.AddrAdd(uplink, address); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"uplink", "world"} {
		if l, err := netlink.LinkByName(name); err != nil || netlink.LinkSetUp(l) != nil {
			t.Fatal("cannot set up the uplink")
		}
	}
	o := podnetwork.Options{NodeName: nodeName, ConfDir: filepath.Join(t.TempDir(), "net.d")}
	n, err := podnetwork.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	go func() { done <- n.Run(ctx) }()
	go func() { done <- n.Follow(ctx, clientset.Clientset{Interface: c.admin}) }()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		if removed, err := podnetwork.Cleanup(o); err != nil || len(removed) == 0 {
			t.Errorf("cleanup: %q, %v", removed, err)
		}
	})
	add := func(name, cidr, ip string) {
		t.Helper()
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDR: cidr, PodCIDRs: []string{cidr}}}
		node, err := c.admin.CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{})
		if err == nil {
			node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: ip}}
			_, err = c.admin.CoreV1().Nodes().UpdateStatus(t.Context(), node, metav1.UpdateOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	routes := func(want ...string) {
		t.Helper()
		eventually(t, 10*time.Second, func() string {
			list, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: 143}, netlink.RT_FILTER_PROTOCOL)
			if err != nil {
				return err.Error()
			}
			var got []string
			for _, r := range list {
				got = append(got, fmt.Sprintf("%s %s", r.Dst, r.Gw))
			}
			slices.Sort(got)
			if !slices.Equal(got, want) {
				return fmt.Sprintf("routes %q, want %q; problems %q", got, want, n.Problems())
			}
			return ""
		})
	}
	add(nodeName, "10.244.1.0/24", "10.98.0.1")
	add("two", "10.244.2.0/24", "10.98.0.2")
	routes("10.244.1.0/24 <nil>", "10.244.2.0/24 10.98.0.2")
	if _, err := os.Stat(filepath.Join(o.ConfDir, "10-fairlead.conflist")); err != nil {
		t.Error(err)
	}
	if err := c.admin.CoreV1().Nodes().Delete(t.Context(), "two", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	routes("10.244.1.0/24 <nil>")
	// What a node may read by itself: the Pod network needs a role of its own.
	if _, err := c.node.Nodes().List(t.Context(), metav1.ListOptions{}); err == nil {
		t.Log("a node may list all nodes")
	} else {
		t.Logf("a node may not list all nodes: %v", err)
	}
}
