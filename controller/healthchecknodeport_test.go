// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"fairlead.dev/controller/compile"
	"fairlead.dev/controller/source"
	"fairlead.dev/dataplane"
)

// ports runs health check servers on 127.0.0.1 and ::1 until the test ends.
type ports struct {
	*healthCheckPorts
	t         *testing.T
	unhealthy atomic.Bool
}

func newPorts(t *testing.T) *ports {
	before := stacks()
	p := &ports{t: t}
	p.healthCheckPorts = newHealthCheckPorts(quiet(), func(dataplane.ServiceName) bool { return !p.unhealthy.Load() })
	p.listenOn([]netip.Addr{netip.MustParseAddr("127.0.0.1")})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { p.run(ctx); close(ended) }()
	t.Cleanup(func() { cancel(); <-ended; checkLeaks(t, before) })
	return p
}

func (p *ports) set(name string, port uint16, local int) {
	p.update(map[dataplane.ServiceName]*compile.HealthCheck{serviceName(name): {NodePort: port, LocalEndpoints: local}})
}

func (p *ports) drop(name string) {
	p.update(map[dataplane.ServiceName]*compile.HealthCheck{serviceName(name): nil})
}

// freePort is one that nobody listens on now.
func freePort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

func answers(t *testing.T, port uint16) int {
	code, _ := getURL(t, fmt.Sprintf("http://127.0.0.1:%d/", port))
	return code
}

func TestHealthCheckNodePortAnswersAsKubeProxyDoes(t *testing.T) {
	p := newPorts(t)
	port := freePort(t)
	p.set("web", port, 2)
	eventually(t, "the server", func() bool { return answers(t, port) == 200 })
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := c.Get(fmt.Sprintf("http://127.0.0.1:%d/any/path", port))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	var got any
	if err := json.NewDecoder(r.Body).Decode(&got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"service":        map[string]any{"namespace": "default", "name": "web"},
		"localEndpoints": 2.0, "serviceProxyHealthy": true,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("body (-want +got):\n%s", d)
	}
	for key, want := range map[string]string{
		"Content-Type": "application/json", "X-Content-Type-Options": "nosniff", "X-Load-Balancing-Endpoint-Weight": "2",
	} {
		if got := r.Header.Get(key); got != want {
			t.Errorf("header %s %q, want %q", key, got, want)
		}
	}
}

func TestHealthCheckNodePortFailsWithoutLocalEndpointsOrWithAnUnhealthyProxy(t *testing.T) {
	p := newPorts(t)
	port := freePort(t)
	p.set("web", port, 1)
	eventually(t, "200", func() bool { return answers(t, port) == 200 })
	p.set("web", port, 0)
	if code := answers(t, port); code != 503 {
		t.Errorf("without local endpoints: %d, want 503 at once", code)
	}
	p.set("web", port, 3)
	p.unhealthy.Store(true)
	if code := answers(t, port); code != 503 {
		t.Errorf("with an unhealthy proxy: %d, want 503", code)
	}
	p.unhealthy.Store(false)
	if code := answers(t, port); code != 200 {
		t.Errorf("healthy again: %d, want 200", code)
	}
}

func TestHealthCheckNodePortIsClosedWithItsService(t *testing.T) {
	p := newPorts(t)
	one, two := freePort(t), freePort(t)
	p.set("web", one, 1)
	eventually(t, "the first port", func() bool { return answers(t, one) == 200 })
	p.set("web", two, 1)
	eventually(t, "the second port", func() bool { return answers(t, two) == 200 })
	eventually(t, "the first port closed", func() bool { return answers(t, one) == 0 })
	p.drop("web")
	eventually(t, "the second port closed", func() bool { return answers(t, two) == 0 })
}

func TestHealthCheckNodePortMovesBetweenServices(t *testing.T) {
	p := newPorts(t)
	port := freePort(t)
	p.set("old", port, 0)
	eventually(t, "the old Service's answer", func() bool { return answers(t, port) == 503 })
	p.update(map[dataplane.ServiceName]*compile.HealthCheck{serviceName("old"): nil, serviceName("new"): {NodePort: port, LocalEndpoints: 1}})
	eventually(t, "the new Service's answer", func() bool { return answers(t, port) == 200 })
}

func TestHealthCheckNodePortInUseIsAProblemUntilItIsFree(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	p := newPorts(t)
	p.set("web", port, 1)
	eventually(t, "a Problem", func() bool { return len(p.currentProblems()) == 1 })
	if got := p.currentProblems()[0].Object; got != "Service default/web" {
		t.Errorf("Problem of %q", got)
	}
	l.Close()
	eventually(t, "the server", func() bool { return answers(t, port) == 200 })
	eventually(t, "no Problem", func() bool { return len(p.currentProblems()) == 0 })
}

func TestHealthCheckNodePortFollowsTheNodePortAddresses(t *testing.T) {
	p := newPorts(t)
	port := freePort(t)
	p.set("web", port, 1)
	eventually(t, "the server", func() bool { return answers(t, port) == 200 })
	p.listenOn(nil)
	eventually(t, "closed", func() bool { return answers(t, port) == 0 })
	p.listenOn([]netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")})
	eventually(t, "the second address", func() bool {
		code, _ := getURL(t, fmt.Sprintf("http://127.0.0.2:%d/", port))
		return code == 200
	})
}

func TestHealthCheckNodePortOfAnAgentFollowsItsEndpoints(t *testing.T) {
	a := started(t, 0, func(o *Options) { o.NodePortAddresses = []string{"localhost"} })
	port := freePort(t)
	s := testService(1)
	s.Spec.Type = corev1.ServiceTypeLoadBalancer
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	s.Spec.HealthCheckNodePort = int32(port)
	a.source.do(func(h source.Handler) {
		h.OnService(keyOf("s1"), s)
		h.OnEndpointSlice(keyOf("s1"), testSlice(1, "10.244.0.1"))
	})
	eventually(t, "200", func() bool { return answers(t, port) == 200 })
	a.source.do(func(h source.Handler) { h.OnEndpointSlice(keyOf("s1"), testSlice(1)) })
	eventually(t, "503 without endpoints", func() bool { return answers(t, port) == 503 })
	a.source.do(func(h source.Handler) { h.OnService(keyOf("s1"), nil) })
	eventually(t, "closed", func() bool { return answers(t, port) == 0 })
	begin := time.Now()
	if err := a.stop(); err != nil || time.Since(begin) > 2*time.Second {
		t.Errorf("Run: %v after %v", err, time.Since(begin))
	}
}
