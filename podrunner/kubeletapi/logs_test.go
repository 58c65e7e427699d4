// SPDX-License-Identifier: Apache-2.0

package kubeletapi

import (
	"net/url"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
)

func TestLogOptionsAreReadAsTheAPIServerSendsThem(t *testing.T) {
	now := time.Date(2024, 1, 1, 1, 0, 0, 0, time.UTC)
	for query, want := range map[string]struct {
		change   func(*LogOptions)
		previous bool
		err      bool
	}{
		"":                                 {},
		"follow=true&timestamps=true":      {change: func(o *LogOptions) { o.Follow, o.Timestamps = true, true }},
		"follow=false&timestamps=0":        {},
		"previous=true":                    {previous: true},
		"tailLines=0":                      {change: func(o *LogOptions) { o.Tail = 0 }},
		"tailLines=7&limitBytes=9":         {change: func(o *LogOptions) { o.Tail, o.Limit = 7, 9 }},
		"tail=3":                           {change: func(o *LogOptions) { o.Tail = 3 }},
		"tail=all":                         {},
		"tailLines=-1":                     {err: true},
		"tailLines=x":                      {err: true},
		"limitBytes=0":                     {err: true},
		"sinceSeconds=60":                  {change: func(o *LogOptions) { o.Since = now.Add(-time.Minute) }},
		"sinceSeconds=9223372036854775807": {change: func(o *LogOptions) { o.Since = now.Add(-(1 << 32) * time.Second) }},
		"sinceSeconds=0":                   {err: true},
		"sinceTime=2024-01-01T00:00:00Z":   {change: func(o *LogOptions) { o.Since = now.Add(-time.Hour) }},
		"sinceTime=yesterday":              {err: true},
		"sinceTime=2024-01-01T00:00:00Z&sinceSeconds=1": {err: true},
		"stream=Stdout":             {change: func(o *LogOptions) { o.Stderr = false }},
		"stream=Stderr":             {change: func(o *LogOptions) { o.Stdout = false }},
		"stream=All&tailLines=1":    {change: func(o *LogOptions) { o.Tail = 1 }},
		"stream=Stderr&tailLines=1": {err: true},
		"stream=stdout":             {err: true},
	} {
		q, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		o := AllLogs
		if want.change != nil {
			want.change(&o)
		}
		got, previous, err := parseLogOptions(q, now)
		if (err != nil) != want.err {
			t.Errorf("%q: %v", query, err)
		} else if err == nil && (cmp.Diff(o, got) != "" || previous != want.previous) {
			t.Errorf("%q: previous %t, (-want +got):\n%s", query, previous, cmp.Diff(o, got))
		}
	}
}

func TestTheContainerOfALogIsFoundOrTheKubeletsWordsAreSaid(t *testing.T) {
	ended := func(id string) corev1.ContainerState {
		return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ContainerID: id}}
	}
	waiting := func(reason string) corev1.ContainerState {
		return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}}
	}
	runs := corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
	for _, c := range []struct {
		name     string
		status   *corev1.ContainerStatus
		previous bool
		id       string
		restarts int32
		err      string
	}{
		{name: "no status", err: `container "c" in pod "p" is not available`},
		{name: "it runs", status: &corev1.ContainerStatus{State: runs, ContainerID: "containerd://a", RestartCount: 2}, id: "a", restarts: 2},
		{name: "it ended", status: &corev1.ContainerStatus{State: ended("containerd://a")}, id: "a"},
		{name: "it waits for its next start", status: &corev1.ContainerStatus{State: waiting("CrashLoopBackOff"), LastTerminationState: ended("containerd://a"), RestartCount: 1}, id: "a", restarts: 1},
		{name: "it waits for its first", status: &corev1.ContainerStatus{State: waiting("ContainerCreating")}, err: `container "c" in pod "p" is waiting to start: ContainerCreating`},
		{name: "its image does not come", status: &corev1.ContainerStatus{State: waiting("ImagePullBackOff")}, err: `container "c" in pod "p" is waiting to start: trying and failing to pull image`},
		{name: "its image did not come", status: &corev1.ContainerStatus{State: waiting("ErrImagePull")}, err: `container "c" in pod "p" is waiting to start: image can't be pulled`},
		{name: "nothing is known", status: &corev1.ContainerStatus{}, err: `container "c" in pod "p" is waiting to start - no logs yet`},
		{name: "it never had a container", status: &corev1.ContainerStatus{State: ended("")}, err: `container "c" in pod "p" is terminated`},
		{name: "the one before", previous: true, status: &corev1.ContainerStatus{State: runs, ContainerID: "x://b", LastTerminationState: ended("x://a"), RestartCount: 1}, id: "a"},
		{name: "the one before does not exist", previous: true, status: &corev1.ContainerStatus{State: runs, ContainerID: "x://b"}, err: `previous terminated container "c" in pod "p" not found`},
	} {
		t.Run(c.name, func(t *testing.T) {
			pod := &corev1.Pod{}
			pod.Name = "p"
			if c.status != nil {
				c.status.Name = "c"
				pod.Status.InitContainerStatuses = []corev1.ContainerStatus{*c.status}
			}
			id, restarts, err := loggedContainer(pod, "c", c.previous)
			text := ""
			if err != nil {
				text = err.Error()
			}
			if id != c.id || restarts != c.restarts || text != c.err {
				t.Errorf("id %q restarts %d err %q, want %q %d %q", id, restarts, text, c.id, c.restarts, c.err)
			}
		})
	}
}
