// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// keepLease renews the Lease of the node in kube-node-lease at a quarter of
// what it promises. A renewal that fails is tried again soon: the control plane
// gives a node up when its Lease has run out.
func (n *Node) keepLease(ctx context.Context) {
	var lease *coordinationv1.Lease
	failed := 0
	for {
		got, err := n.renewLease(ctx, lease)
		wait := n.o.LeaseDuration / 4
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if failed++; failed == 1 {
				n.o.Logger.Warn("cannot renew the lease of the node; trying again", "node", n.o.Name, "err", err)
			}
			// What was in the way may have changed the Lease, too.
			lease, wait = nil, min(wait, time.Duration(failed)*200*time.Millisecond)
		default:
			lease, failed = got, 0
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// renewLease renews the Lease that the last renewal gave; nil: find it or
// create it.
func (n *Node) renewLease(ctx context.Context, lease *coordinationv1.Lease) (_ *coordinationv1.Lease, err error) {
	ctx, cancel := context.WithTimeout(ctx, n.o.LeaseDuration/4)
	defer cancel()
	leases := n.o.Client.Leases(corev1.NamespaceNodeLease)
	if lease == nil {
		lease, err = leases.Get(ctx, n.o.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			lease, err = leases.Create(ctx, n.newLease(nil), metav1.CreateOptions{})
			if err != nil {
				return nil, fmt.Errorf("create lease of node %s: %w", n.o.Name, err)
			}
			return lease, nil
		}
		if err != nil {
			return nil, fmt.Errorf("get lease of node %s: %w", n.o.Name, err)
		}
	}
	if lease, err = leases.Update(ctx, n.newLease(lease), metav1.UpdateOptions{}); err != nil {
		return nil, fmt.Errorf("renew lease of node %s: %w", n.o.Name, err)
	}
	return lease, nil
}

// newLease is the Lease as of now. The Node owns it, so that it goes with it.
func (n *Node) newLease(old *coordinationv1.Lease) *coordinationv1.Lease {
	l := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: n.o.Name, Namespace: corev1.NamespaceNodeLease}}
	if old != nil {
		l = old.DeepCopy()
	}
	seconds := int32(n.o.LeaseDuration / time.Second)
	now := metav1.NewMicroTime(time.Now())
	l.Spec.HolderIdentity, l.Spec.LeaseDurationSeconds, l.Spec.RenewTime = &n.o.Name, &seconds, &now
	if o := n.Object(); o != nil && len(l.OwnerReferences) == 0 {
		l.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: n.o.Name, UID: o.UID}}
	}
	return l
}
