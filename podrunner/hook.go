// SPDX-License-Identifier: Apache-2.0

package podrunner

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"fairlead.dev/podrunner/podstatus"
	"fairlead.dev/podrunner/probe"
)

// hookClient is for hooks by http: certificates are not checked, as of probes.
var hookClient = &http.Client{Transport: &http.Transport{
	TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true,
}}

// runHook runs a lifecycle handler; output is what a command wrote.
func (w *worker) runHook(ctx context.Context, h *corev1.LifecycleHandler, spec *corev1.Container, id, host string) error {
	switch {
	case h.Exec != nil:
		output, exit, err := w.r.client.Exec(ctx, id, h.Exec.Command, 0)
		if err == nil && exit != 0 {
			err = fmt.Errorf("command '%s' exited with %d: %s", strings.Join(h.Exec.Command, " "), exit, output)
		}
		if err != nil {
			//lint:ignore ST1005 the kubelet's words
			return fmt.Errorf("Exec lifecycle hook (%v) for Container %q in Pod %q failed - error: %w, message: %q",
				h.Exec.Command, spec.Name, w.name(), err, output)
		}
		return nil
	case h.HTTPGet != nil:
		if err := getHook(ctx, h.HTTPGet, spec, host); err != nil {
			return fmt.Errorf("HTTP lifecycle hook (%s) for Container %q in Pod %q failed - error: %w", h.HTTPGet.Path, spec.Name, w.name(), err)
		}
		return nil
	case h.Sleep != nil:
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Duration(h.Sleep.Seconds) * time.Second):
			return nil
		}
	}
	//lint:ignore ST1005 the kubelet's words
	return errors.New("Cannot run handler: invalid handler")
}

// getHook asks; that there is an answer is enough. Where https is answered in
// plain, http is tried, as the kubelet does.
func getHook(ctx context.Context, a *corev1.HTTPGetAction, spec *corev1.Container, host string) error {
	req, err := probe.Request(ctx, a, spec, host, "kube-lifecycle/1.37")
	if err != nil {
		return err
	}
	resp, err := hookClient.Do(req)
	if err != nil && strings.Contains(err.Error(), "server gave HTTP response to HTTPS client") {
		req = req.Clone(ctx)
		req.URL.Scheme = "http"
		req.Header.Del("Authorization")
		resp, err = hookClient.Do(req)
	}
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 10<<10))
	return nil
}

func (w *worker) name() string {
	return fmt.Sprintf("%s_%s(%s)", w.key.Name, w.key.Namespace, w.uid)
}

// postStart runs the hook of a container that was just started. While it runs
// the container counts as not started; when it fails the container is ended.
func (w *worker) postStart(ctx context.Context, o startOrder, c *podstatus.Container, event func(string, string, string)) (time.Time, error) {
	if o.spec.Lifecycle == nil || o.spec.Lifecycle.PostStart == nil {
		return time.Time{}, nil
	}
	err := w.runHook(ctx, o.spec.Lifecycle.PostStart, o.spec, c.ID, w.host())
	if err == nil || ctx.Err() != nil {
		return time.Time{}, ctx.Err()
	}
	event(corev1.EventTypeWarning, "FailedPostStartHook", "PostStartHook failed")
	w.waiting[o.spec.Name] = podstatus.Waiting{Reason: "PostStartHookError", Message: err.Error()}
	w.stopContainer(w.r.ctx, *c, o.spec, w.specGrace(), "FailedPostStartHook", nil)
	return time.Time{}, err
}

// preStop runs the hook of a container that is to be stopped, for as long as it
// has.
func (w *worker) preStop(ctx context.Context, pod *corev1.Pod, spec *corev1.Container, id, host string, grace time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	err := w.runHook(ctx, spec.Lifecycle.PreStop, spec, id, host)
	if err != nil && ctx.Err() == nil {
		w.r.event(pod, w.pathOfIn(pod, spec.Name), corev1.EventTypeWarning, "FailedPreStopHook", "PreStopHook failed")
		w.r.log.Debug("preStop hook", "pod", w.key, "container", spec.Name, "error", err)
	}
}
