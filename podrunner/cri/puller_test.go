// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"fairlead.dev/podrunner/containerdtest"
)

func TestMain(m *testing.M) { containerdtest.Main(m) }

func open(t *testing.T) *Client {
	t.Helper()
	rt := containerdtest.Start(t)
	c, err := Open(t.Context(), rt.Socket, 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if c.Name() != "containerd" || c.Version() == "" {
		t.Errorf("runtime %q %q", c.Name(), c.Version())
	}
	return c
}

func TestImagesAreGotAsThePolicySays(t *testing.T) {
	c := open(t)
	registry := containerdtest.NewRegistry(t)
	registry.User, registry.Password = "user", "right"
	auth := func(password string) string {
		return fmt.Sprintf(`{"auths": {"%s": {"auth": %q}}}`, registry.Host, base64.StdEncoding.EncodeToString([]byte("user:"+password)))
	}
	image := registry.Host + "/team/app:1"
	p := NewPuller(c, 1, time.Minute, time.Hour)
	ensure := func(pod types.UID, image string, policy corev1.PullPolicy, secrets ...string) (Image, []string, error) {
		var mu sync.Mutex
		var events []string
		got, err := p.Ensure(t.Context(), PullRequest{Pod: pod, Image: image, Policy: policy,
			Event: func(_, reason, _ string) { mu.Lock(); defer mu.Unlock(); events = append(events, reason) },
			Secrets: func(context.Context) (all []*corev1.Secret) {
				for _, s := range secrets {
					all = append(all, secret(corev1.SecretTypeDockerConfigJson, ".dockerconfigjson", s))
				}
				return all
			}})
		return got, events, err
	}
	reason := func(err error) string {
		var e *ImageError
		if errors.As(err, &e) {
			return e.Reason
		}
		return ""
	}

	_, _, err := ensure("u", image, corev1.PullNever)
	if reason(err) != ReasonImageNeverPull {
		t.Errorf("never: %v", err)
	}
	_, events, err := ensure("u", image, corev1.PullIfNotPresent)
	if reason(err) != ReasonImagePull || strings.Join(events, " ") != "Pulling Failed" {
		t.Errorf("without the secret: %v, %v", err, events)
	}
	_, events, err = ensure("u", image, corev1.PullIfNotPresent)
	var e *ImageError
	if reason(err) != ReasonImagePullBackOff || strings.Join(events, " ") != "BackOff" || !errors.As(err, &e) || time.Until(e.Retry) > time.Minute || time.Until(e.Retry) <= 0 ||
		!strings.HasPrefix(e.Message, `Back-off pulling image "`+image+`": ErrImagePull: `) {
		t.Errorf("at once again: %v, %v", err, events)
	}
	p.mu.Lock()
	for _, f := range p.failing { // a minute later
		f.until = time.Now()
	}
	p.mu.Unlock()
	_, _, err = ensure("u", image, corev1.PullIfNotPresent, auth("wrong"))
	if reason(err) != ReasonImagePull || strings.Contains(err.Error(), "wrong") {
		t.Errorf("with a wrong password: %v", err)
	}
	got, events, err := ensure("other", image, corev1.PullIfNotPresent, auth("wrong"), auth("right"))
	if err != nil || got.Ref == "" || strings.Join(events, " ") != "Pulling Pulled" {
		t.Fatalf("with the right one after a wrong one, for a Pod without backoff: %v, %v", err, events)
	}
	pulls := registry.Pulls.Load()
	again, events, err := ensure("u", image, corev1.PullIfNotPresent)
	if err != nil || again.Ref != got.Ref || strings.Join(events, " ") != "Pulled" || registry.Pulls.Load() != pulls {
		t.Errorf("when it is there: %v, %v, %d pulls more", err, events, registry.Pulls.Load()-pulls)
	}
	p.Forget("u")
	if _, _, err = ensure("u", registry.Host+"/team/app:none", corev1.PullAlways, auth("right")); reason(err) != ReasonImagePull || !strings.Contains(err.Error(), "not found") {
		t.Errorf("a tag that is not there: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Ensure(ctx, PullRequest{Pod: "x", Image: image, Policy: corev1.PullAlways}); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

func TestOpenSaysWhatToDoWhereThereIsNoRuntime(t *testing.T) {
	_, err := Open(t.Context(), t.TempDir()+"/none.sock", 200*time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), "is it running, and is --cri-socket its socket?") {
		t.Errorf("%v", err)
	}
}
