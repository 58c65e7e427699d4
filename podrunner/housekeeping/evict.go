// SPDX-License-Identifier: Apache-2.0

package housekeeping

import (
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// The kubelet's: the reason of an eviction, the grace of one that is not by a
// soft threshold, and how long another one waits for this one's Pod to end.
const (
	evicted     = "Evicted"
	evictGrace  = time.Second
	evictSettle = 30 * time.Second
)

// critical Pods are never evicted: the node needs them, and static ones would
// not come back.
func critical(p *corev1.Pod) bool {
	const systemCritical = 2_000_000_000 // the priority of system-cluster-critical
	if source := p.Annotations["kubernetes.io/config.source"]; source != "" && source != "api" {
		return true
	}
	if _, mirror := p.Annotations["kubernetes.io/config.mirror"]; mirror {
		return true
	}
	if p.Spec.Priority != nil {
		return *p.Spec.Priority >= systemCritical
	}
	// Nobody resolves the class of a Pod from a file.
	return strings.HasPrefix(p.Spec.PriorityClassName, "system-")
}

// evict ends a Pod, once. It is false where nothing is done.
func (k *Keeper) evict(p *corev1.Pod, message string) bool {
	if _, already := k.evicting[p.UID]; already || critical(p) {
		return false
	}
	k.evicting[p.UID] = k.now()
	k.o.Events.Event(&corev1.ObjectReference{
		APIVersion: "v1", Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID, ResourceVersion: p.ResourceVersion,
	}, corev1.EventTypeWarning, evicted, message)
	k.log.Info("evict a Pod", "pod", p.Namespace+"/"+p.Name, "message", message)
	k.o.Pods.Evict(p.UID, evicted, message, evictGrace)
	return true
}

// forgetEvicted forgets those that have ended.
func (k *Keeper) forgetEvicted(pods []*corev1.Pod) {
	going := map[types.UID]bool{}
	for _, p := range pods {
		going[p.UID] = !finished(p)
	}
	for uid := range k.evicting {
		if !going[uid] {
			delete(k.evicting, uid)
		}
	}
}

// settling: a Pod that was evicted has not ended yet, so what it frees is not
// known.
func (k *Keeper) settling() bool {
	for _, since := range k.evicting {
		if k.now().Sub(since) < evictSettle {
			return true
		}
	}
	return false
}
