// SPDX-License-Identifier: Apache-2.0

package source

import (
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"sort"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// health knows which kinds are followed and why others are not.
type health struct {
	log *slog.Logger

	mu        sync.Mutex
	problems  map[string]string // resource -> why it is not followed; "" if untried
	connected bool
	since     time.Time
	// recovered is closed, and replaced, when a kind is followed again: a
	// hint to the others not to wait any longer.
	recovered chan struct{}
}

func newHealth(log *slog.Logger, kinds []kind) *health {
	h := &health{log: log, problems: make(map[string]string), since: time.Now(), recovered: make(chan struct{})}
	for _, k := range kinds {
		h.problems[k.resource] = ""
	}
	return h
}

// up notes that the kind was listed and is watched.
func (h *health) up(k kind) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, down := h.problems[k.resource]; !down {
		return
	}
	delete(h.problems, k.resource)
	close(h.recovered)
	h.recovered = make(chan struct{})
	if len(h.problems) == 0 {
		h.connected, h.since = true, time.Now()
		h.log.Info("connected to the API server")
	}
}

// down notes that an attempt to list or watch the kind came to nothing.
func (h *health) down(k kind, err error) {
	line := problemLine(k, err)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.problems[k.resource] != line {
		h.log.Warn("not connected to the API server; the last state stays in force", "problem", line)
	}
	h.problems[k.resource] = line
	if h.connected {
		h.connected, h.since = false, time.Now()
	}
}

func (h *health) recovery() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.recovered
}

func (h *health) state() State {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := State{Connected: h.connected, Since: h.since}
	for _, line := range h.problems {
		if line != "" {
			s.Problems = append(s.Problems, line)
		}
	}
	sort.Strings(s.Problems)
	return s
}

// problemLine says in one line what is wrong and what to do.
func problemLine(k kind, err error) string {
	var unknownCA x509.UnknownAuthorityError
	var urlError *url.Error
	var opError *net.OpError
	switch {
	case apierrors.IsUnauthorized(err):
		return fmt.Sprintf("%s: the API server does not accept the credentials (401 Unauthorized); "+
			"check the token or client certificate of the kubeconfig or service account", k.resource)
	case apierrors.IsForbidden(err):
		return fmt.Sprintf("%s: %v; grant the verbs list and watch on %q in API group %q in the agent's ClusterRole",
			k.resource, err, k.resource, k.group)
	case apierrors.IsNotFound(err):
		return fmt.Sprintf("%s: the server does not have them (404); is this the address of a Kubernetes API server?", k.resource)
	case errors.As(err, &unknownCA):
		return fmt.Sprintf("%s: %v; check certificate-authority in the kubeconfig", k.resource, unknownCA)
	case errors.As(err, &opError): // without the own port: one problem, one line
		lasting := *opError
		lasting.Source = nil
		return fmt.Sprintf("%s: %v; retrying", k.resource, &lasting)
	case errors.As(err, &urlError): // without the long URL
		return fmt.Sprintf("%s: %v; retrying", k.resource, urlError.Err)
	}
	return fmt.Sprintf("%s: %v; retrying", k.resource, err)
}
