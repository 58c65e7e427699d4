// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"fairlead.dev/controller/compile"
	"fairlead.dev/dataplane"
)

// healthCheckPorts runs the healthCheckNodePort servers: one for each Service
// with externalTrafficPolicy Local that asks for it, so that a load balancer
// learns whether this node has endpoints of it.
type healthCheckPorts struct {
	log *slog.Logger
	// healthy reports whether the kernel has what the Service wants.
	healthy func(dataplane.ServiceName) bool
	wake    chan struct{}

	mu       sync.Mutex
	services map[dataplane.ServiceName]compile.HealthCheck
	// hosts are the addresses to listen on; one empty string is all of them.
	hosts    []string
	problems map[healthCheckKey]compile.Problem
}

// healthCheckKey is one listener.
type healthCheckKey struct {
	service dataplane.ServiceName
	host    string
	port    uint16
}

type healthCheckServer struct {
	listener net.Listener
	http     *http.Server
}

func newHealthCheckPorts(log *slog.Logger, healthy func(dataplane.ServiceName) bool) *healthCheckPorts {
	return &healthCheckPorts{
		log: log, healthy: healthy, wake: make(chan struct{}, 1),
		services: map[dataplane.ServiceName]compile.HealthCheck{}, hosts: []string{""},
		problems: map[healthCheckKey]compile.Problem{},
	}
}

// update takes what changed; nil ends a Service's server.
func (h *healthCheckPorts) update(changed map[dataplane.ServiceName]*compile.HealthCheck) {
	if len(changed) == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, c := range changed {
		if c == nil {
			delete(h.services, name)
		} else {
			h.services[name] = *c
		}
	}
	ring(h.wake)
}

// listenOn limits the servers to some addresses.
func (h *healthCheckPorts) listenOn(addrs []netip.Addr) {
	hosts := make([]string, 0, len(addrs))
	for _, a := range addrs {
		hosts = append(hosts, a.String())
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if !slices.Equal(h.hosts, hosts) {
		h.hosts = hosts
		ring(h.wake)
	}
}

// currentProblems are the servers that could not listen.
func (h *healthCheckPorts) currentProblems() []compile.Problem {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Collect(maps.Values(h.problems))
}

// run opens and closes servers until ctx ends, when it closes all.
func (h *healthCheckPorts) run(ctx context.Context) {
	const retryMin, retryMax = 250 * time.Millisecond, 10 * time.Second
	running := map[healthCheckKey]healthCheckServer{}
	var serving sync.WaitGroup
	defer func() {
		for _, s := range running {
			s.close()
		}
		serving.Wait()
	}()
	delay := retryMin
	for {
		var retry <-chan time.Time
		if h.reconcile(running, &serving) {
			retry = time.After(delay)
			delay = min(2*delay, retryMax)
		} else {
			delay = retryMin
		}
		select {
		case <-ctx.Done():
			return
		case <-h.wake:
		case <-retry:
		}
	}
}

// reconcile reports whether a server could not be opened.
func (h *healthCheckPorts) reconcile(running map[healthCheckKey]healthCheckServer, serving *sync.WaitGroup) (again bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	wanted := map[healthCheckKey]bool{}
	for name, c := range h.services {
		for _, host := range h.hosts {
			wanted[healthCheckKey{service: name, host: host, port: c.NodePort}] = true
		}
	}
	// First close: a port may have moved from one Service to another.
	for key, s := range running {
		if !wanted[key] {
			s.close()
			delete(running, key)
		}
	}
	last := h.problems
	h.problems = map[healthCheckKey]compile.Problem{}
	for key := range wanted {
		if _, ok := running[key]; ok {
			continue
		}
		s, err := h.open(key, serving)
		if err == nil {
			running[key] = s
			continue
		}
		again = true
		h.problems[key] = compile.Problem{Object: "Service " + key.service.String(), Reason: fmt.Sprintf("healthCheckNodePort %d: %v: stop what holds the port", key.port, err)}
		if _, known := last[key]; !known {
			h.log.Warn("cannot serve a healthCheckNodePort, trying again in the background", "service", key.service.String(), "port", key.port, "error", err)
		}
	}
	return again
}

func (h *healthCheckPorts) open(key healthCheckKey, serving *sync.WaitGroup) (healthCheckServer, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(key.host, strconv.Itoa(int(key.port))))
	if err != nil {
		return healthCheckServer{}, err
	}
	name := key.service
	s := healthCheckServer{listener: l, http: newHTTPServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { h.answer(w, name) }), h.log)}
	serving.Go(func() { _ = s.http.Serve(l) })
	return s, nil
}

func (s healthCheckServer) close() {
	s.http.Close()
	s.listener.Close()
}

// healthCheckBody has kube-proxy's keys.
type healthCheckBody struct {
	Service struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	} `json:"service"`
	LocalEndpoints      int  `json:"localEndpoints"`
	ServiceProxyHealthy bool `json:"serviceProxyHealthy"`
}

func (h *healthCheckPorts) answer(w http.ResponseWriter, name dataplane.ServiceName) {
	h.mu.Lock()
	check := h.services[name] // gone: 0 endpoints
	h.mu.Unlock()
	body := healthCheckBody{LocalEndpoints: check.LocalEndpoints, ServiceProxyHealthy: h.healthy(name)}
	body.Service.Namespace, body.Service.Name = name.Namespace, name.Name
	code := http.StatusServiceUnavailable
	if body.LocalEndpoints > 0 && body.ServiceProxyHealthy {
		code = http.StatusOK
	}
	w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(body.LocalEndpoints))
	writeJSON(w, code, body)
}
