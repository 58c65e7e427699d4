// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"fairlead.dev/podrunner/containerdtest"
)

// troubled are Pods that do not run, or not for long, and what docs/pods.md says
// is seen of them: the words of a row of `fairlead pods -o wide`, and an Event.
var troubled = []struct{ name, spec, row, event string }{
	{name: "toobig", spec: `containers: [{name: c, image: IMAGE, args: [sleep], resources: {requests: {cpu: "9999"}}}]`,
		row: `0/1 +OutOfcpu +0 .* Pod was rejected: .*cpu`, event: `Warning +OutOfcpu +default/toobig +`},
	{name: "nomap", spec: `containers: [{name: c, image: IMAGE, args: [sleep]}], volumes: [{name: v, configMap: {name: none}}]`,
		row: `0/1 +ContainerCreating +0`, event: `Warning +FailedMount +default/nomap +.*"none" not found`},
	{name: "nokey", spec: `containers: [{name: c, image: IMAGE, args: [sleep], env: [{name: A, valueFrom: {secretKeyRef: {name: none, key: k}}}]}]`,
		row: `0/1 +CreateContainerConfigError +0 .*"none" not found`, event: `Warning +Failed +default/nokey\(c\) .*"none" not found`},
	{name: "noimage", spec: `containers: [{name: c, image: "fairlead.test/none:1", imagePullPolicy: Never}]`,
		row: `0/1 +ErrImageNeverPull +0`, event: `Warning +(Failed|ErrImageNeverPull) +default/noimage\(c\) `},
	{name: "nocommand", spec: `containers: [{name: c, image: IMAGE, command: [/none]}]`,
		row: `0/1 +(RunContainerError|CrashLoopBackOff) `, event: `Warning +Failed +default/nocommand\(c\) .*/none`},
	{name: "crashes", spec: `containers: [{name: c, image: IMAGE, args: [exit, "3"]}]`,
		row: `0/1 +CrashLoopBackOff +[1-9]`, event: `Warning +BackOff +default/crashes\(c\) `},
	{name: "unready", spec: `containers: [{name: c, image: IMAGE, args: [sleep], readinessProbe: {tcpSocket: {port: 1}, periodSeconds: 1}}]`,
		row: `0/1 +Running +0`, event: `Warning +Unhealthy +default/unready\(c\) +Readiness probe failed`},
	{name: "greedy", spec: `containers: [{name: c, image: IMAGE, args: [then, write, /data/f, x, ";", sleep], volumeMounts: [{name: v, mountPath: /data}]}],
 volumes: [{name: v, emptyDir: {sizeLimit: 1Ki}}]`,
		row: `0/1 +Evicted +0 .*EmptyDir volume "v" exceeds the limit`, event: `Warning +Evicted +default/greedy `},
}

// TestPodsThatDoNotRunSayWhy has them beside one that is well, and writes a log
// that is to be rotated.
func TestPodsThatDoNotRunSayWhy(t *testing.T) {
	n := newNode(t)
	var all strings.Builder
	pod := func(name, spec string) {
		fmt.Fprintf(&all, "---\n{apiVersion: v1, kind: Pod, metadata: {name: %s}, spec: {terminationGracePeriodSeconds: 0, %s}}\n", name,
			strings.ReplaceAll(spec, "IMAGE", containerdtest.Image))
	}
	for _, c := range troubled {
		pod(c.name, c.spec)
	}
	pod("well", `containers: [{name: c, image: IMAGE, args: [then, lines, "250000", ";", sleep]}]`)
	n.write("all.yaml", all.String())
	n.start()
	for _, c := range troubled {
		row := regexp.MustCompile(`(?m)^default +` + c.name + ` +` + c.row)
		n.until(c.name+" is listed as "+c.row, func() bool {
			out, _, _ := n.fairlead("pods", "--state-dir", n.rt.Root, "-o", "wide")
			return row.MatchString(out)
		})
		event := regexp.MustCompile(c.event)
		n.until("there is an Event "+c.event, func() bool {
			out, _, _ := n.fairlead("pods", "--events", "--state-dir", n.rt.Root)
			return event.MatchString(out)
		})
	}
	n.noneIsTriedAllTheTime()
	logs := func(pattern string) []string {
		found, _ := filepath.Glob(n.rt.LogRoot + "/default_well_*/c/" + pattern)
		return found
	}
	n.until("the log of 10 MiB is rotated", func() bool { return len(logs("0.log.*")) > 0 })
	if p := n.pods()["well"]; !ready(p) || p.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("the Pod that is well is not: %+v", p)
	}
	if err := os.Remove(filepath.Join(n.manifests, "all.yaml")); err != nil {
		t.Fatal(err)
	}
	n.await("there are no Pods", func(pods map[string]*corev1.Pod) bool { return pods != nil && len(pods) == 0 })
	n.stop()
}

// noneIsTriedAllTheTime holds the number of Events against the time: what fails
// is tried again after a while, which grows.
func (n *node) noneIsTriedAllTheTime() {
	n.Helper()
	out, errOut, status := n.fairlead("pods", "--events", "--state-dir", n.rt.Root, "-o", "json")
	var events corev1.EventList
	if err := json.Unmarshal([]byte(out), &events); status != 0 || err != nil {
		n.Fatalf("fairlead pods --events -o json: status %d, %v, %s", status, err, errOut)
	}
	for _, e := range events.Items {
		lasts := e.LastTimestamp.Sub(e.FirstTimestamp.Time)
		if most := 5 + 2*lasts.Seconds(); float64(e.Count) > most {
			n.Errorf("%s %s happened %d times in %v", e.InvolvedObject.Name, e.Reason, e.Count, lasts)
		}
	}
}
