// SPDX-License-Identifier: Apache-2.0

package node

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
)

func conditionAt(kind corev1.PodConditionType, status corev1.ConditionStatus, at int64) corev1.PodCondition {
	return corev1.PodCondition{Type: kind, Status: status, LastTransitionTime: metav1.Unix(at, 0)}
}

func TestWhatIsNotTheNodesInAStatusStays(t *testing.T) {
	const yes, no = corev1.ConditionTrue, corev1.ConditionFalse
	start := metav1.Unix(5, 0)
	for _, c := range []struct {
		name             string
		old, found, want corev1.PodStatus
	}{
		{"conditions of others stay, whatever the node thinks of them",
			corev1.PodStatus{Conditions: []corev1.PodCondition{conditionAt("example.com/gate", yes, 1), conditionAt(corev1.PodScheduled, yes, 2)}},
			corev1.PodStatus{Conditions: []corev1.PodCondition{conditionAt("example.com/gate", no, 9), conditionAt("example.com/old", no, 9), conditionAt(corev1.PodReady, yes, 9)}},
			corev1.PodStatus{Conditions: []corev1.PodCondition{conditionAt(corev1.PodScheduled, yes, 2), conditionAt("example.com/gate", yes, 1), conditionAt(corev1.PodReady, yes, 9)}}},
		{"a condition whose status stays keeps its time",
			corev1.PodStatus{Conditions: []corev1.PodCondition{conditionAt(corev1.PodReady, yes, 1), conditionAt(corev1.ContainersReady, no, 1)}},
			corev1.PodStatus{Conditions: []corev1.PodCondition{conditionAt(corev1.PodReady, yes, 9), conditionAt(corev1.ContainersReady, yes, 9)}},
			corev1.PodStatus{Conditions: []corev1.PodCondition{conditionAt(corev1.PodReady, yes, 1), conditionAt(corev1.ContainersReady, yes, 9)}}},
		{"a condition of the node that it no longer names goes",
			corev1.PodStatus{Conditions: []corev1.PodCondition{conditionAt(corev1.PodResizePending, yes, 1)}}, corev1.PodStatus{}, corev1.PodStatus{}},
		{"the first start and the class stay",
			corev1.PodStatus{StartTime: &start, QOSClass: corev1.PodQOSBurstable},
			corev1.PodStatus{StartTime: new(metav1.Unix(7, 0))},
			corev1.PodStatus{StartTime: &start, QOSClass: corev1.PodQOSBurstable}},
		{"a final phase stays, with its reason",
			corev1.PodStatus{Phase: corev1.PodFailed, Reason: "Evicted", Message: "why"},
			corev1.PodStatus{Phase: corev1.PodRunning},
			corev1.PodStatus{Phase: corev1.PodFailed, Reason: "Evicted", Message: "why"}},
		{"a Pod that ended is not ready",
			corev1.PodStatus{},
			corev1.PodStatus{Phase: corev1.PodSucceeded, Conditions: []corev1.PodCondition{conditionAt(corev1.PodReady, yes, 9)}},
			corev1.PodStatus{Phase: corev1.PodSucceeded, Conditions: []corev1.PodCondition{
				{Type: corev1.PodReady, Status: no, Reason: "PodCompleted", LastTransitionTime: metav1.Unix(9, 0)}}}},
		{"claims are the scheduler's",
			corev1.PodStatus{ResourceClaimStatuses: []corev1.PodResourceClaimStatus{{Name: "a"}}, NominatedNodeName: "n"}, corev1.PodStatus{},
			corev1.PodStatus{ResourceClaimStatuses: []corev1.PodResourceClaimStatus{{Name: "a"}}, NominatedNodeName: "n"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(&c.want, mergePodStatus(&c.old, &c.found)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestAPatchMakesTheOldStatusTheNewOne(t *testing.T) {
	old := corev1.PodStatus{Phase: corev1.PodPending, Conditions: []corev1.PodCondition{conditionAt("gate", "True", 1), conditionAt(corev1.PodReady, "False", 1)},
		PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}}}
	to := corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{conditionAt("gate", "True", 1), conditionAt(corev1.PodReady, "True", 2)},
		PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}, {IP: "fd00::1"}}}
	patch, err := podStatusPatch("u", &old, &to)
	if err != nil {
		t.Fatal(err)
	}
	before, _ := json.Marshal(corev1.Pod{Status: old})
	after, err := strategicpatch.StrategicMergePatch(before, patch, corev1.Pod{})
	if err != nil {
		t.Fatalf("%v in %s", err, patch)
	}
	var got corev1.Pod
	if err := json.Unmarshal(after, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(to, got.Status); diff != "" || got.UID != "u" {
		t.Errorf("uid %q, (-want +got):\n%s\npatch %s", got.UID, diff, patch)
	}
	if patch, err := podStatusPatch("u", &to, &to); patch != nil || err != nil {
		t.Errorf("patch of nothing: %s, %v", patch, err)
	}
}

func TestBothAddressesOfADualStackNodeAreReplaced(t *testing.T) {
	address := func(a string) corev1.NodeAddress {
		return corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a}
	}
	for _, c := range [][2][]corev1.NodeAddress{
		{{address("10.0.0.1")}, {address("10.0.0.2"), address("fd00::2")}},
		{{address("10.0.0.1"), address("fd00::1")}, {address("fd00::1"), address("10.0.0.1")}},
		{nil, {address("10.0.0.2"), address("fd00::2")}},
	} {
		old := &corev1.Node{Status: corev1.NodeStatus{Addresses: c[0]}}
		to := &corev1.Node{Status: corev1.NodeStatus{Addresses: c[1]}}
		patch, err := nodeStatusPatch(old, to)
		if err != nil {
			t.Fatal(err)
		}
		before, _ := json.Marshal(old)
		after, err := strategicpatch.StrategicMergePatch(before, patch, corev1.Node{})
		if err != nil {
			t.Fatalf("%v in %s", err, patch)
		}
		var got corev1.Node
		if err := json.Unmarshal(after, &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(to.Status.Addresses, got.Status.Addresses); diff != "" {
			t.Errorf("(-want +got):\n%s\npatch %s", diff, patch)
		}
	}
}

func TestTheTransitionOfAConditionIsWhenItsStatusChanged(t *testing.T) {
	s := &corev1.NodeStatus{}
	setCondition(s, readyCondition([]string{"container runtime is down"}), metav1.Unix(1, 0))
	setCondition(s, readyCondition([]string{"container runtime is down", "node is shutting down"}), metav1.Unix(2, 0))
	want := corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionFalse, Reason: "KubeletNotReady",
		Message: "[container runtime is down, node is shutting down]", LastHeartbeatTime: metav1.Unix(2, 0), LastTransitionTime: metav1.Unix(1, 0)}
	if diff := cmp.Diff([]corev1.NodeCondition{want}, s.Conditions); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	setCondition(s, readyCondition(nil), metav1.Unix(3, 0))
	if c := s.Conditions[0]; !c.LastTransitionTime.Equal(new(metav1.Unix(3, 0))) || c.Message != "kubelet is posting ready status" {
		t.Errorf("condition %+v", c)
	}
}

func TestLikeEventsAreCountedAndTheOldestGo(t *testing.T) {
	l := NewEventList(2)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "n", UID: "u"}}
	for range 3 {
		l.Eventf(pod, corev1.EventTypeWarning, "BackOff", "Back-off %s", "x")
		time.Sleep(time.Millisecond)
	}
	l.Event(pod, corev1.EventTypeNormal, "Started", "Started")
	l.Event(&corev1.ObjectReference{Kind: "Node", Name: "one"}, corev1.EventTypeNormal, "NodeReady", "ready")
	l.Eventf(pod, corev1.EventTypeWarning, "BackOff", "Back-off %s", "x")
	got := l.Events()
	if len(got) != 2 || got[0].Reason != "BackOff" || got[0].Count != 1 || got[1].Reason != "NodeReady" {
		t.Errorf("events %+v", got)
	}
	l = NewEventList(2)
	for range 3 {
		l.Event(pod, corev1.EventTypeWarning, "BackOff", "again")
	}
	if got := l.Events(); len(got) != 1 || got[0].Count != 3 || got[0].LastTimestamp.Before(&got[0].FirstTimestamp) {
		t.Errorf("events %+v", got)
	}
}
