// SPDX-License-Identifier: Apache-2.0

package node

import (
	"encoding/json"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
)

// podStatusPatch is the strategic merge patch that makes the old status the new
// one, with the UID as its precondition; nil: they are equal.
func podStatusPatch(uid types.UID, from, to *corev1.PodStatus) ([]byte, error) {
	a, err := json.Marshal(corev1.Pod{Status: *from})
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(corev1.Pod{Status: *to})
	if err != nil {
		return nil, err
	}
	diff, err := strategicpatch.CreateTwoWayMergePatch(a, b, corev1.Pod{})
	if err != nil {
		return nil, fmt.Errorf("compare the status with the API server's: %w", err)
	}
	if string(diff) == "{}" {
		return nil, nil
	}
	var patch map[string]any
	if err := json.Unmarshal(diff, &patch); err != nil {
		return nil, err
	}
	patch["metadata"] = map[string]any{"uid": uid}
	return json.Marshal(patch)
}

// nodeStatusPatch is the strategic merge patch of a Node's status. Addresses are
// replaced as a whole: the API declares that they are merged by type, of which
// a dual-stack node has two that are equal.
func nodeStatusPatch(from, to *corev1.Node) ([]byte, error) {
	changed := !slices.Equal(from.Status.Addresses, to.Status.Addresses)
	status := *to.Status.DeepCopy()
	status.Addresses = from.Status.Addresses
	a, err := json.Marshal(corev1.Node{Status: from.Status})
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(corev1.Node{ObjectMeta: metav1.ObjectMeta{}, Status: status})
	if err != nil {
		return nil, err
	}
	diff, err := strategicpatch.CreateTwoWayMergePatch(a, b, corev1.Node{})
	if err != nil {
		return nil, fmt.Errorf("compare the status with the API server's: %w", err)
	}
	if !changed {
		return diff, nil
	}
	var patch map[string]any
	if err := json.Unmarshal(diff, &patch); err != nil {
		return nil, err
	}
	addresses := []any{}
	for _, x := range to.Status.Addresses {
		addresses = append(addresses, x)
	}
	s, ok := patch["status"].(map[string]any)
	if !ok {
		s = map[string]any{}
		patch["status"] = s
	}
	s["addresses"] = append(addresses, map[string]any{"$patch": "replace"})
	return json.Marshal(patch)
}
