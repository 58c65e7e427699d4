// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
)

// hundred is how many Pods a node is filled with.
const hundred = 100

// fill is a file of as many Pods.
func fill() string {
	var b strings.Builder
	for i := range hundred {
		fmt.Fprintf(&b, "---\n%s\n", manifestOf(fmt.Sprint("p", i)))
	}
	return b.String()
}

// full: all of them are there, and ready.
func full(pods []corev1.Pod) bool {
	return len(pods) == hundred && !slices.ContainsFunc(pods, func(p corev1.Pod) bool { return !ready(&p) })
}

func TestAHundredPodsComeStayAndGo(t *testing.T) {
	n := newNode(t)
	n.start()
	asking := n.socket()
	n.write("all.yaml", fill())
	containers := func() map[string]string {
		ids := map[string]string{}
		for name, p := range n.pods() {
			ids[name] = fmt.Sprint(p.Status.ContainerStatuses[0].ContainerID, " restarts ", p.Status.ContainerStatuses[0].RestartCount)
		}
		return ids
	}
	asking.until(n, "100 Pods are ready", 500*time.Millisecond, full)
	before := containers()
	n.kill()
	n.start()
	asking.until(n, "100 Pods are known to the next agent", 50*time.Millisecond, full)
	if diff := cmp.Diff(before, containers()); diff != "" {
		t.Errorf("containers are others than before the agent was killed:\n%s", diff)
	}
	n.remove("all.yaml")
	asking.until(n, "all Pods are gone", 500*time.Millisecond, func(pods []corev1.Pod) bool { return len(pods) == 0 })
	// What is left of them is an error of the Runtime's end.
}
