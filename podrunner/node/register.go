// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// register creates the Node, or takes over the one that exists, until it
// succeeds; false: ctx has ended.
func (n *Node) register(ctx context.Context) bool {
	wait := 100 * time.Millisecond
	for {
		err := n.registerOnce(ctx)
		if err == nil {
			return true
		}
		if wait == 100*time.Millisecond {
			n.o.Logger.Warn("cannot register the node; trying again", "node", n.o.Name, "err", err)
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(wait):
		}
		wait = min(2*wait, 7*time.Second)
	}
}

func (n *Node) registerOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	nodes := n.o.Client.Nodes()
	created, err := nodes.Create(ctx, n.initial(ctx), metav1.CreateOptions{})
	if err == nil {
		n.o.Logger.Info("registered the node", "node", n.o.Name)
		n.announce(&corev1.Node{}, created)
		n.keep(created)
		return nil
	}
	// Creating may be forbidden where an administrator makes the Nodes.
	if !apierrors.IsAlreadyExists(err) && !apierrors.IsForbidden(err) {
		return fmt.Errorf("create node %s: %w", n.o.Name, err)
	}
	existing, getErr := nodes.Get(ctx, n.o.Name, metav1.GetOptions{})
	if getErr != nil {
		return fmt.Errorf("get node %s, which cannot be created (%w): %w", n.o.Name, err, getErr)
	}
	if existing, err = n.correctLabels(ctx, existing); err != nil {
		return err
	}
	n.keep(existing)
	return nil
}

// initial is the Node as it is created.
func (n *Node) initial(ctx context.Context) *corev1.Node {
	o := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.o.Name, Labels: n.labels()}}
	o.Spec.Taints = slices.Clone(n.o.Taints)
	o.Spec.ProviderID = n.o.ProviderID
	n.fill(ctx, o)
	return o
}

func (n *Node) labels() map[string]string {
	l := map[string]string{
		corev1.LabelHostname:   n.o.Hostname,
		corev1.LabelOSStable:   runtime.GOOS,
		corev1.LabelArchStable: runtime.GOARCH,
		// Deprecated, but kubelets still set them and selectors still name them.
		"beta.kubernetes.io/os":   runtime.GOOS,
		"beta.kubernetes.io/arch": runtime.GOARCH,
	}
	maps.Copy(l, n.o.Labels)
	return l
}

// defaultLabels are those that a start corrects in a Node that exists; others
// are only given to a Node that is created, since they may be changed there.
var defaultLabels = []string{
	corev1.LabelHostname, corev1.LabelOSStable, corev1.LabelArchStable,
	"beta.kubernetes.io/os", "beta.kubernetes.io/arch",
	corev1.LabelTopologyZone, corev1.LabelTopologyRegion, corev1.LabelInstanceTypeStable,
}

func (n *Node) correctLabels(ctx context.Context, existing *corev1.Node) (*corev1.Node, error) {
	wanted := n.labels()
	wrong := map[string]string{}
	for _, name := range defaultLabels {
		if v, ok := wanted[name]; ok && existing.Labels[name] != v {
			wrong[name] = v
		}
	}
	if len(wrong) == 0 {
		return existing, nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": wrong}})
	if err != nil {
		return nil, fmt.Errorf("labels of node %s: %w", n.o.Name, err)
	}
	got, err := n.o.Client.Nodes().Patch(ctx, n.o.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	if err != nil {
		return nil, fmt.Errorf("patch labels of node %s: %w", n.o.Name, err)
	}
	return got, nil
}
