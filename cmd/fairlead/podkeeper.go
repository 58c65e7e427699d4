// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"log/slog"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"fairlead.dev/podrunner/housekeeping"
	"fairlead.dev/podrunner/node"
)

// newKeeper makes what keeps the node from filling up.
func (p *pods) newKeeper() (*housekeeping.Keeper, error) {
	least, err := p.c.Shortages()
	if err != nil {
		return nil, err
	}
	return housekeeping.New(housekeeping.Options{
		Pods: p.runner, Volumes: p.volumes, NodeName: p.c.NodeName, Root: p.c.StateDir, LogRoot: p.c.PodLogDir,
		Events: p.events, Pressure: p.pressure, StatusKept: p.cluster != nil, Logger: p.log,
		// Less than 0 is never available, and 0 would be the Keeper's default.
		LeastMemoryBytes: cmp.Or(least.MemoryBytes, -1), LeastNodePercent: cmp.Or(least.NodefsPercent, -1),
		LeastImagePercent: cmp.Or(least.ImagefsPercent, -1), LeastInodesPercent: cmp.Or(least.InodesPercent, -1),
		ImageHighPercent: p.c.ImageGCHighThreshold, ImageLowPercent: p.c.ImageGCLowThreshold,
		// Without a control plane an image that was imported may be the only one.
		KeepImported: p.cluster == nil,
	})
}

// keptEvents bounds the list of Events that `fairlead pods --events` shows.
const keptEvents = 1000

// podEvents are the Events about the node's Pods and its Node: the last ones are
// kept here, and each goes on to the API server or, without one, to the log.
type podEvents struct {
	list *node.EventList
	next housekeeping.EventSink
}

func (e *podEvents) Event(object runtime.Object, kind, reason, message string) {
	e.list.Event(object, kind, reason, message)
	e.next.Event(object, kind, reason, message)
}

// logEvents says what the kubelet would make Events of.
type logEvents struct{ log *slog.Logger }

func (l logEvents) Event(object runtime.Object, kind, reason, message string) {
	level := slog.LevelDebug
	// That there is no cluster's resolver is the rule without a cluster.
	if kind == corev1.EventTypeWarning && reason != "MissingClusterDNS" {
		level = slog.LevelWarn
	}
	what, about := "object", ""
	if ref, ok := object.(*corev1.ObjectReference); ok {
		if what, about = "pod", ref.Namespace+"/"+ref.Name; ref.Kind == "Node" {
			what, about = "node", ref.Name
		}
	}
	l.log.Log(context.Background(), level, message, what, about, "reason", reason)
}
