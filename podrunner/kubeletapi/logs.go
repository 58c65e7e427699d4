// SPDX-License-Identifier: Apache-2.0

package kubeletapi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// containerLogs serves the log of a container; the parameters are those of
// PodLogOptions.
func (s *Server) containerLogs(w http.ResponseWriter, r *http.Request) {
	o, previous, err := parseLogOptions(r.URL.Query(), time.Now())
	if err != nil {
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
		return
	}
	pod := s.pod(w, r)
	if pod == nil {
		return
	}
	name := r.PathValue("container")
	if !hasContainer(pod, name) {
		http.Error(w, fmt.Sprintf("container %q not found in pod %q", name, pod.Name), http.StatusNotFound)
		return
	}
	id, restarts, err := loggedContainer(pod, name, previous)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	path := s.logPath(r.Context(), pod, name, id, restarts)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	out := &countingWriter{ResponseWriter: w}
	control := http.NewResponseController(w)
	if o.Follow {
		_ = control.Flush() // so that the client knows that it was let in
	}
	err = ReadLog(r.Context(), path, o, out, func() { _ = control.Flush() }, func(ctx context.Context) (bool, error) {
		status, err := s.o.Runtime.ContainerStatus(ctx, id, false)
		return status.GetStatus().GetState() == runtimeapi.ContainerState_CONTAINER_RUNNING, err
	})
	switch {
	case err == nil || r.Context().Err() != nil:
	case !out.written && !o.Follow:
		code := http.StatusInternalServerError
		if errors.Is(err, fs.ErrNotExist) {
			code = http.StatusNotFound
		}
		http.Error(w, fmt.Sprintf("no log of container %q in pod %q: %v", name, pod.Name, err), code)
	default:
		s.o.Logger.Warn("cannot read a container's log to its end", "pod", pod.Namespace+"/"+pod.Name, "container", name, "err", err)
		panic(http.ErrAbortHandler) // the client must not take it for the whole
	}
}

// countingWriter knows whether an answer has begun.
type countingWriter struct {
	http.ResponseWriter
	written bool
}

// Write implements io.Writer.
func (c *countingWriter) Write(b []byte) (int, error) {
	c.written = true
	return c.ResponseWriter.Write(b)
}

func hasContainer(pod *corev1.Pod, name string) bool {
	is := func(c corev1.Container) bool { return c.Name == name }
	return slices.ContainsFunc(pod.Spec.Containers, is) || slices.ContainsFunc(pod.Spec.InitContainers, is) ||
		slices.ContainsFunc(pod.Spec.EphemeralContainers, func(c corev1.EphemeralContainer) bool { return c.Name == name })
}

// loggedContainer is the container whose log is meant by a name, and how often
// it was started again before. Errors are the kubelet's.
func loggedContainer(pod *corev1.Pod, name string, previous bool) (id string, restarts int32, err error) {
	status := containerStatus(&pod.Status, name)
	if status == nil {
		return "", 0, fmt.Errorf("container %q in pod %q is not available", name, pod.Name)
	}
	now, last := status.State, status.LastTerminationState.Terminated
	switch {
	case previous:
		if last == nil || last.ContainerID == "" {
			return "", 0, fmt.Errorf("previous terminated container %q in pod %q not found", name, pod.Name)
		}
		id, restarts = last.ContainerID, status.RestartCount-1
		if now.Waiting != nil {
			restarts = status.RestartCount // the next one was not made yet
		}
	case now.Running != nil:
		id, restarts = status.ContainerID, status.RestartCount
	case now.Terminated != nil && now.Terminated.ContainerID != "":
		id, restarts = now.Terminated.ContainerID, status.RestartCount
	case last != nil && last.ContainerID != "":
		id, restarts = last.ContainerID, status.RestartCount
	case now.Terminated != nil || last != nil:
		return "", 0, fmt.Errorf("container %q in pod %q is terminated", name, pod.Name)
	case now.Waiting != nil:
		return "", 0, fmt.Errorf("container %q in pod %q is waiting to start: %s", name, pod.Name, waitingWords(now.Waiting.Reason))
	default:
		return "", 0, fmt.Errorf("container %q in pod %q is waiting to start - no logs yet", name, pod.Name)
	}
	_, bare, ok := strings.Cut(id, "://")
	if ok {
		id = bare
	}
	return id, max(0, restarts), nil
}

func waitingWords(reason string) string {
	switch reason {
	case "ErrImagePull":
		return "image can't be pulled"
	case "ImagePullBackOff":
		return "trying and failing to pull image"
	}
	return reason
}

func containerStatus(s *corev1.PodStatus, name string) *corev1.ContainerStatus {
	for _, list := range [][]corev1.ContainerStatus{s.ContainerStatuses, s.InitContainerStatuses, s.EphemeralContainerStatuses} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}

// logPath is where the runtime writes the log of a container, and where it did
// for one that it no longer knows, or cannot be asked about.
func (s *Server) logPath(ctx context.Context, pod *corev1.Pod, name, id string, restarts int32) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if status, err := s.o.Runtime.ContainerStatus(ctx, id, false); err == nil && status.GetStatus().GetLogPath() != "" {
		return status.GetStatus().GetLogPath()
	}
	return filepath.Join(s.o.LogRoot, fmt.Sprintf("%s_%s_%s", pod.Namespace, pod.Name, pod.UID), name, fmt.Sprintf("%d.log", restarts))
}

// parseLogOptions reads PodLogOptions as the API server sends them.
func parseLogOptions(q url.Values, now time.Time) (o LogOptions, previous bool, err error) {
	o = AllLogs
	is := func(name string) bool {
		v := q.Get(name)
		return q.Has(name) && v != "0" && !strings.EqualFold(v, "false")
	}
	number := func(name string, least int64) int64 {
		v := q.Get(name)
		if v == "" || err != nil {
			return -1
		}
		n, parseErr := strconv.ParseInt(v, 10, 64)
		if parseErr != nil || n < least {
			err = fmt.Errorf("invalid value %q of %s", v, name)
		}
		return n
	}
	o.Follow, o.Timestamps = is("follow"), is("timestamps")
	if t := q.Get("tail"); t != "" && t != "all" {
		q.Set("tailLines", t)
	}
	o.Tail, o.Limit = number("tailLines", 0), number("limitBytes", 1)
	if seconds := number("sinceSeconds", 1); seconds > 0 {
		o.Since = now.Add(-time.Duration(min(seconds, 1<<32)) * time.Second)
	}
	if err != nil {
		return o, false, err
	}
	if v := q.Get("sinceTime"); v != "" {
		if !o.Since.IsZero() {
			return o, false, errors.New("at most one of `sinceTime` or `sinceSeconds` may be specified")
		}
		if o.Since, err = time.Parse(time.RFC3339Nano, v); err != nil {
			return o, false, fmt.Errorf("invalid value %q of sinceTime", v)
		}
	}
	switch v := q.Get("stream"); v {
	case "", corev1.LogStreamAll:
	case corev1.LogStreamStdout, corev1.LogStreamStderr:
		if o.Tail >= 0 {
			return o, false, errors.New("`tailLines` and specific `stream` are mutually exclusive for now")
		}
		o.Stdout, o.Stderr = v == corev1.LogStreamStdout, v == corev1.LogStreamStderr
	default:
		return o, false, fmt.Errorf("invalid stream %q", v)
	}
	return o, is("previous"), nil
}
