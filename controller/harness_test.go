// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"fairlead.dev/controller/source"
	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/dataplanetest"
)

// script is a Source that does what the test says.
type script struct {
	steps        chan func(source.Handler)
	disconnected atomic.Bool
	fails        error
}

func (s *script) Name() string { return "script" }

func (s *script) Run(ctx context.Context, h source.Handler) error {
	if s.fails != nil {
		return s.fails
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case f := <-s.steps:
			f(h)
		}
	}
}

func (s *script) State() source.State { return source.State{Connected: !s.disconnected.Load()} }

// do returns when the Handler took what f gives it.
func (s *script) do(f func(source.Handler)) {
	done := make(chan struct{})
	s.steps <- func(h source.Handler) { f(h); close(done) }
	<-done
}

// agent is a Controller that runs.
type agent struct {
	*Controller
	t      testing.TB
	model  *dataplanetest.Model
	source *script
	cancel context.CancelFunc
	done   chan error
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// newAgent runs a Controller until the test ends, and fails the test where
// goroutines outlive it.
func newAgent(t testing.TB, edit func(*Options)) *agent {
	t.Helper()
	before := stacks()
	a := &agent{t: t, model: dataplanetest.New(), source: &script{steps: make(chan func(source.Handler))}, done: make(chan error, 1)}
	o := Options{Source: a.source, Dataplane: a.model, NodeName: "n1", CheckInterval: -1, Log: quiet()}
	if edit != nil {
		edit(&o)
	}
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	a.Controller = c
	ctx, cancel := context.WithCancel(context.Background())
	a.cancel = cancel
	go func() { a.done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case <-a.done:
		case <-time.After(10 * time.Second):
			t.Fatal("Run did not return within 10 s of its context's end")
		}
		if a.model.Overlapped() {
			t.Error("two calls of the Dataplane overlapped")
		}
		checkLeaks(t, before)
	})
	return a
}

// stop ends Run and returns its error.
func (a *agent) stop() error {
	a.cancel()
	err := <-a.done
	a.done <- nil
	return err
}

// stacks counts the goroutines that run this package's code or its servers.
func stacks() int {
	buf := make([]byte, 1<<20)
	n := 0
	for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(g, "created by fairlead.dev/controller") || strings.Contains(g, "created by golang.org/x/sync/errgroup") || strings.Contains(g, "created by net/http.(*Server)") {
			n++
		}
	}
	return n
}

func checkLeaks(t testing.TB, before int) {
	t.Helper()
	var after int
	for range 100 {
		if after = stacks(); after <= before {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	buf := make([]byte, 1<<20)
	t.Errorf("%d goroutines before, %d after:\n%s", before, after, buf[:runtime.Stack(buf, true)])
}

// eventually waits up to 5 s for what is to become true.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if is() {
			return
		}
	}
	t.Fatalf("not within 5 s: %s", what)
}

func keyOf(name string) types.NamespacedName {
	return types.NamespacedName{Namespace: "default", Name: name}
}

func serviceName(name string) dataplane.ServiceName {
	return dataplane.ServiceName{Namespace: "default", Name: name}
}

// testService is a Service named "s<n>" with its own address.
func testService(n int) *corev1.Service {
	ip := netip.AddrFrom4([4]byte{10, 96, byte(n >> 8), byte(n)}).String()
	policy := corev1.ServiceInternalTrafficPolicyCluster
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("s%d", n), UID: types.UID(fmt.Sprint(n))},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip}, InternalTrafficPolicy: &policy,
			IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			Ports:      []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080), Protocol: corev1.ProtocolTCP}},
		},
	}
}

// testSlice has the endpoints of Service "s<n>", all ready and on this node.
func testSlice(n int, addrs ...string) *discoveryv1.EndpointSlice {
	name, port, proto, yes, node := "http", int32(8080), corev1.ProtocolTCP, true, "n1"
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: fmt.Sprintf("s%d", n),
			Labels: map[string]string{discoveryv1.LabelServiceName: fmt.Sprintf("s%d", n)},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &port, Protocol: &proto}},
	}
	for _, a := range addrs {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{a}, NodeName: &node, Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes},
		})
	}
	return s
}

// give delivers Service "s<n>" with its endpoints.
func give(h source.Handler, n int, addrs ...string) {
	s := testService(n)
	h.OnService(keyOf(s.Name), s)
	h.OnEndpointSlice(keyOf(s.Name), testSlice(n, addrs...))
}

// started is an agent whose kernel is in line with Services 1 to n.
func started(t testing.TB, n int, edit func(*Options)) *agent {
	t.Helper()
	a := newAgent(t, edit)
	a.source.do(func(h source.Handler) {
		for i := 1; i <= n; i++ {
			give(h, i, "10.244.0.1")
		}
		h.OnSynced()
	})
	eventually(t, "first Sync", func() bool { return a.progress.condition().synced })
	return a
}

// backends are the addresses the kernel has for Service "s<n>".
func (a *agent) backends(n int) string {
	s := a.model.Kernel().Services[serviceName(fmt.Sprintf("s%d", n))]
	if s == nil {
		return "none"
	}
	var out []string
	for _, b := range s.Frontends[0].Internal.Backends {
		out = append(out, b.Address.String())
	}
	return strings.Join(out, " ")
}

// valueOf reads a counter or gauge.
func valueOf(t testing.TB, m prometheus.Metric) float64 {
	t.Helper()
	var out dto.Metric
	if err := m.Write(&out); err != nil {
		t.Fatal(err)
	}
	return out.GetCounter().GetValue() + out.GetGauge().GetValue()
}
