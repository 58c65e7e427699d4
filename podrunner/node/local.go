// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Local is the Node of a machine that has no API server: what Admit and the
// resource fields of Pods need. Of the options only Name is needed; Runtime and
// Client are not asked.
func Local(o Options) (*corev1.Node, error) {
	o.Hostname = cmp.Or(o.Hostname, strings.ToLower(o.Name))
	o.MaxPods = cmp.Or(o.MaxPods, 110)
	o.Root = cmp.Or(o.Root, "/var/lib")
	m, err := readMachine(os.DirFS("/"), o.Root)
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", o.Name, err)
	}
	n := &Node{o: o, machine: m}
	out := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: o.Name, Labels: n.labels()}}
	out.Spec.Taints = slices.Clone(o.Taints)
	out.Status.Capacity, out.Status.Allocatable = m.capacity(o.MaxPods), m.allocatable(&o)
	n.fillAddresses(&out.Status)
	m.info(&out.Status.NodeInfo)
	return out, nil
}
