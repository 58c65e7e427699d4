// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"
)

// Waiting reasons of a container whose image is not there, as the kubelet's.
const (
	ReasonImagePull        = "ErrImagePull"
	ReasonImagePullBackOff = "ImagePullBackOff"
	ReasonImageNeverPull   = "ErrImageNeverPull"
	ReasonImageInspect     = "ImageInspectError"
	ReasonImageName        = "InvalidImageName"
)

// ImageError is why an image cannot be used.
type ImageError struct {
	Reason, Message string
	// Retry is when it makes sense to try again; zero: at the next occasion.
	Retry time.Time
}

func (e *ImageError) Error() string { return e.Message }

// Image is one that the runtime has.
type Image struct {
	// Ref is what a container is created from.
	Ref string
	// UID of the user it runs as, nil where it names none or a name: Username.
	UID      *int64
	Username string
}

// PullRequest asks for an image to be there.
type PullRequest struct {
	Pod    types.UID
	Image  string
	Policy corev1.PullPolicy
	// Secrets gives the Pod's pull secrets; called only before a pull.
	Secrets func(context.Context) []*corev1.Secret
	Sandbox *runtimeapi.PodSandboxConfig
	Handler string
	// Event takes what the kubelet makes Events of. May be nil.
	Event func(eventType, reason, message string)
}

// Puller sees to it that images are there, with a backoff for those that cannot
// be had and a bound for how many are pulled at once.
type Puller struct {
	client *Client
	slots  chan struct{}
	first  time.Duration
	limit  time.Duration

	mu      sync.Mutex
	failing map[string]*failedPull // by Pod and image
}

type failedPull struct {
	pod     types.UID
	backoff time.Duration
	until   time.Time
	last    string
}

// NewPuller: at most parallel pulls at once (0: 5); the backoff of a failing
// one goes from first (0: 10 s), doubling, to limit (0: 300 s).
func NewPuller(c *Client, parallel int, first, limit time.Duration) *Puller {
	if parallel <= 0 {
		parallel = 5
	}
	if first <= 0 {
		first = 10 * time.Second
	}
	if limit <= 0 {
		limit = 300 * time.Second
	}
	return &Puller{client: c, slots: make(chan struct{}, parallel), first: first, limit: limit, failing: map[string]*failedPull{}}
}

// Forget drops what is known of a Pod's pulls.
func (p *Puller) Forget(pod types.UID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, f := range p.failing {
		if f.pod == pod {
			delete(p.failing, key)
		}
	}
}

// Ensure returns the image, pulled where the policy wants it. Errors are
// *ImageError, or ctx's.
func (p *Puller) Ensure(ctx context.Context, r PullRequest) (Image, error) {
	event := r.Event
	if event == nil {
		event = func(string, string, string) {}
	}
	name, err := withTag(r.Image)
	if err != nil {
		msg := fmt.Sprintf("Failed to apply default image tag %q: %v", r.Image, err)
		event(corev1.EventTypeWarning, "InspectFailed", msg)
		return Image{}, &ImageError{Reason: ReasonImageName, Message: msg}
	}
	spec := &runtimeapi.ImageSpec{Image: name, UserSpecifiedImage: r.Image, RuntimeHandler: r.Handler}
	if r.Policy != corev1.PullAlways {
		image, found, err := p.inspect(ctx, spec)
		switch {
		case err != nil && ctx.Err() != nil:
			return Image{}, ctx.Err()
		case err != nil:
			msg := fmt.Sprintf("Failed to inspect image %q: %s", r.Image, Message(err))
			event(corev1.EventTypeWarning, "InspectFailed", msg)
			return Image{}, &ImageError{Reason: ReasonImageInspect, Message: msg}
		case found:
			event(corev1.EventTypeNormal, "Pulled", fmt.Sprintf("Container image %q already present on machine", r.Image))
			return image, nil
		case r.Policy == corev1.PullNever:
			msg := fmt.Sprintf("Container image %q is not present with pull policy of Never", r.Image)
			event(corev1.EventTypeWarning, ReasonImageNeverPull, msg)
			return Image{}, &ImageError{Reason: ReasonImageNeverPull, Message: msg}
		}
	}
	return p.pull(ctx, r, spec, event)
}

func (p *Puller) inspect(ctx context.Context, spec *runtimeapi.ImageSpec) (Image, bool, error) {
	s, err := p.client.Images.ImageStatus(Quiet(ctx), spec, false)
	if err != nil || s.Image == nil {
		return Image{}, false, err
	}
	image := Image{Ref: s.Image.Id, Username: s.Image.Username}
	if s.Image.Uid != nil {
		image.UID = &s.Image.Uid.Value
	}
	return image, true, nil
}

func (p *Puller) pull(ctx context.Context, r PullRequest, spec *runtimeapi.ImageSpec, event func(string, string, string)) (Image, error) {
	key := string(r.Pod) + "_" + spec.Image
	if err := p.mustWait(key, r.Image); err != nil {
		event(corev1.EventTypeNormal, "BackOff", fmt.Sprintf("Back-off pulling image %q", r.Image))
		return Image{}, err
	}
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-ctx.Done():
		return Image{}, ctx.Err()
	}
	event(corev1.EventTypeNormal, "Pulling", fmt.Sprintf("Pulling image %q", r.Image))
	begin := time.Now()
	err := p.pullWith(ctx, r, spec)
	var image Image
	if err == nil {
		var found bool
		if image, found, err = p.inspect(ctx, spec); err == nil && !found {
			err = errors.New("the runtime does not have it after pulling it")
		}
	}
	if ctx.Err() != nil {
		return Image{}, ctx.Err()
	}
	if err != nil {
		event(corev1.EventTypeWarning, "Failed", fmt.Sprintf("Failed to pull image %q: %s", r.Image, Message(err)))
		return Image{}, p.failed(key, r, err)
	}
	p.mu.Lock()
	delete(p.failing, key)
	p.mu.Unlock()
	event(corev1.EventTypeNormal, "Pulled", fmt.Sprintf("Successfully pulled image %q in %v", r.Image, time.Since(begin).Round(time.Millisecond)))
	return image, nil
}

// pullWith tries the credentials that match, one after the other.
func (p *Puller) pullWith(ctx context.Context, r PullRequest, spec *runtimeapi.ImageSpec) error {
	auths := []*runtimeapi.AuthConfig{nil}
	if r.Secrets != nil {
		keyring, err := NewKeyring(r.Secrets(ctx))
		if err != nil {
			return err
		}
		if found := keyring.Lookup(spec.Image); len(found) > 0 {
			auths = found
		}
	}
	var errs []error
	for _, auth := range auths {
		_, err := p.client.Images.PullImage(Quiet(ctx), spec, auth, r.Sandbox)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	if len(errs) == 1 {
		return errs[0]
	}
	return errors.Join(errs...)
}

func (p *Puller) mustWait(key, image string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.failing[key]
	if f == nil || !time.Now().Before(f.until) {
		return nil
	}
	return &ImageError{
		Reason: ReasonImagePullBackOff, Retry: f.until,
		Message: fmt.Sprintf("Back-off pulling image %q: %s", image, f.last),
	}
}

func (p *Puller) failed(key string, r PullRequest, err error) error {
	e := pullError(r.Image, err)
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.failing[key]
	now := time.Now()
	switch {
	case f == nil || now.Sub(f.until) > 2*p.limit:
		f = &failedPull{pod: r.Pod, backoff: p.first}
		p.failing[key] = f
	default:
		f.backoff = min(2*f.backoff, p.limit)
	}
	f.until = now.Add(f.backoff)
	f.last = e.Reason + ": " + e.Message
	return e
}

// pullError words what a runtime says as the kubelet does.
func pullError(image string, err error) *ImageError {
	msg := Message(err)
	for known, why := range map[error]string{
		crierrors.ErrRegistryUnavailable:       "the registry is unavailable",
		crierrors.ErrSignatureValidationFailed: "the signature validation failed",
	} {
		if rest, ok := strings.CutPrefix(msg, known.Error()); ok {
			return &ImageError{Reason: known.Error(), Message: fmt.Sprintf("image pull failed for %s because %s%s", image, why, rest)}
		}
	}
	return &ImageError{Reason: ReasonImagePull, Message: msg}
}
