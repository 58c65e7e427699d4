// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// healthServer answers /healthz and /livez as kube-proxy does (KEP-3836).
//
// healthz tells a load balancer whether to send traffic to this node: not
// before the first Sync, not while changes wait for longer than the timeout,
// not when the node is about to go. livez tells a supervisor whether a restart
// might help: only while changes wait. Services that cannot be programmed one
// by one are counted in the body and do not fail either, so that one bad object
// does not take every node out of every load balancer; their own
// healthCheckNodePort fails.
type healthServer struct {
	progress *progress
	// eligible reports whether the node is to stay in load balancers.
	eligible func() bool
	// connected reports whether the Source is.
	connected func() bool
	// healthz and livez count answers by status code.
	healthz, livez *prometheus.CounterVec
}

// healthBody has kube-proxy's keys first. Of the others, zero values are left out.
type healthBody struct {
	LastUpdated  string `json:"lastUpdated"`
	CurrentTime  string `json:"currentTime"`
	NodeEligible *bool  `json:"nodeEligible,omitempty"`
	// NotSynced: the kernel has not been brought in line a first time yet.
	NotSynced          bool `json:"notSynced,omitempty"`
	FailedServices     int  `json:"failedServices,omitempty"`
	SourceDisconnected bool `json:"sourceDisconnected,omitempty"`
}

func (h *healthServer) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		c, eligible := h.progress.condition(), h.eligible()
		body := h.body(c)
		body.NodeEligible = &eligible
		writeHealth(w, c.synced && !c.stale && eligible, body, h.healthz)
	})
	mux.HandleFunc("/livez", func(w http.ResponseWriter, _ *http.Request) {
		c := h.progress.condition()
		writeHealth(w, !c.stale, h.body(c), h.livez)
	})
	return mux
}

func (h *healthServer) body(c condition) healthBody {
	return healthBody{
		LastUpdated: c.lastUpdated.UTC().Format(time.RFC3339Nano), CurrentTime: c.now.UTC().Format(time.RFC3339Nano),
		NotSynced: !c.synced, FailedServices: c.failed, SourceDisconnected: !h.connected(),
	}
}

func writeHealth(w http.ResponseWriter, ok bool, body healthBody, count *prometheus.CounterVec) {
	code := http.StatusOK
	if !ok {
		code = http.StatusServiceUnavailable
	}
	count.WithLabelValues(codeLabel(code)).Inc()
	writeJSON(w, code, body)
}

func codeLabel(code int) string {
	if code == http.StatusOK {
		return "200"
	}
	return "503"
}

func writeJSON(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	// A client that is gone is no one to tell.
	_ = json.NewEncoder(w).Encode(body)
}
