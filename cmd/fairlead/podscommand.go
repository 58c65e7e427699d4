// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	human "k8s.io/apimachinery/pkg/util/duration"

	"fairlead.dev/controller/config"
)

func newPodsCommand() *cobra.Command {
	c := config.Default()
	output, namespace, events := "table", "", false
	cmd := &cobra.Command{
		Use:   "pods",
		Short: "List the Pods that the agent of this node runs",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output, "table", "wide", "json"); err != nil {
				return err
			}
			if events {
				return printEvents(cmd, c.StateDir, output, namespace)
			}
			pods, err := askAgent[corev1.Pod](cmd.Context(), c.StateDir, "pods")
			if err != nil {
				return err
			}
			if namespace != "" {
				pods = slices.DeleteFunc(pods, func(p corev1.Pod) bool { return p.Namespace != namespace })
			}
			slices.SortFunc(pods, func(a, b corev1.Pod) int {
				return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
			})
			if output == "json" {
				// As kubectl has it: secrets in a Pod's spec are root's to read.
				return json.NewEncoder(cmd.OutOrStdout()).Encode(corev1.PodList{Items: pods})
			}
			return writeDump(cmd.OutOrStdout(), output, "", podsListing(pods))
		},
	}
	addOutputFlag(cmd, &output, "table", "wide", "json")
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "Pods of this namespace only")
	cmd.Flags().BoolVar(&events, "events", false, "list what happened to the Pods and the node, the last first, since the agent began")
	cmd.Flags().StringVar(&c.StateDir, "state-dir", c.StateDir, "`DIR`, as given to run")
	return cmd
}

func podsListing(pods []corev1.Pod) listing[corev1.Pod] {
	return listing[corev1.Pod]{name: "pods", rows: pods, columns: []column[corev1.Pod]{
		{head: "NAMESPACE", cell: func(p *corev1.Pod) string { return p.Namespace }},
		{head: "NAME", cell: func(p *corev1.Pod) string { return p.Name }},
		{head: "READY", cell: func(p *corev1.Pod) string { ready, _, _ := summarize(p); return ready }},
		{head: "STATUS", cell: func(p *corev1.Pod) string { _, status, _ := summarize(p); return status }},
		{head: "RESTARTS", cell: func(p *corev1.Pod) string { _, _, restarts := summarize(p); return restarts }},
		{head: "AGE", cell: func(p *corev1.Pod) string {
			if p.Status.StartTime == nil {
				return "-"
			}
			return human.HumanDuration(time.Since(p.Status.StartTime.Time))
		}},
		{head: "IP", cell: func(p *corev1.Pod) string { return cmp.Or(p.Status.PodIP, "-") }},
		{head: "MESSAGE", wide: true, cell: func(p *corev1.Pod) string { return cmp.Or(message(p), "-") }},
	}}
}

func printEvents(cmd *cobra.Command, stateDir, output, namespace string) error {
	events, err := askAgent[corev1.Event](cmd.Context(), stateDir, "events")
	if err != nil {
		return err
	}
	if namespace != "" {
		events = slices.DeleteFunc(events, func(e corev1.Event) bool { return e.Namespace != namespace })
	}
	if output == "json" {
		return json.NewEncoder(cmd.OutOrStdout()).Encode(corev1.EventList{Items: events})
	}
	return writeDump(cmd.OutOrStdout(), output, "", listing[corev1.Event]{name: "events", rows: events, columns: []column[corev1.Event]{
		{head: "LAST", cell: func(e *corev1.Event) string { return human.HumanDuration(time.Since(e.LastTimestamp.Time)) }},
		{head: "COUNT", cell: func(e *corev1.Event) string { return strconv.Itoa(int(e.Count)) }},
		{head: "TYPE", cell: func(e *corev1.Event) string { return e.Type }},
		{head: "REASON", cell: func(e *corev1.Event) string { return e.Reason }},
		{head: "OBJECT", cell: eventObject},
		{head: "MESSAGE", cell: func(e *corev1.Event) string { return strings.Join(strings.Fields(e.Message), " ") }},
	}})
}

// eventObject is NAMESPACE/POD, with a container in brackets, or node/NAME.
func eventObject(e *corev1.Event) string {
	o := e.InvolvedObject
	if o.Kind == "Node" {
		return "node/" + o.Name
	}
	if _, container, ok := strings.Cut(strings.TrimSuffix(o.FieldPath, "}"), "{"); ok {
		return o.Namespace + "/" + o.Name + "(" + container + ")"
	}
	return o.Namespace + "/" + o.Name
}

// summarize gives what kubectl shows of a Pod: n/m, one word, and restarts.
func summarize(p *corev1.Pod) (ready, status, restarts string) {
	status = cmp.Or(p.Status.Reason, string(p.Status.Phase), "Pending")
	n, again := 0, int32(0)
	for _, s := range p.Status.InitContainerStatuses {
		again += s.RestartCount
		if s.State.Waiting != nil && s.State.Waiting.Reason != "" && s.State.Waiting.Reason != "PodInitializing" {
			status = "Init:" + s.State.Waiting.Reason
		}
	}
	for _, s := range p.Status.ContainerStatuses {
		again += s.RestartCount
		switch {
		case s.Ready:
			n++
		case s.State.Waiting != nil && s.State.Waiting.Reason != "":
			status = s.State.Waiting.Reason
		case s.State.Terminated != nil && s.State.Terminated.Reason != "":
			status = s.State.Terminated.Reason
		}
	}
	if p.Status.Phase == corev1.PodFailed && p.Status.Reason != "" {
		status = p.Status.Reason // says more than how its containers ended
	}
	if p.DeletionTimestamp != nil {
		status = "Terminating"
	}
	return fmt.Sprintf("%d/%d", n, len(p.Spec.Containers)), status, strconv.Itoa(int(again))
}

// message is why a Pod is not as it should be.
func message(p *corev1.Pod) string {
	if p.Status.Message != "" {
		return p.Status.Message
	}
	for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		switch {
		case s.State.Waiting != nil && s.State.Waiting.Message != "":
			return s.Name + ": " + s.State.Waiting.Message
		case s.State.Terminated != nil && s.State.Terminated.Message != "":
			return s.Name + ": " + s.State.Terminated.Message
		}
	}
	return ""
}
