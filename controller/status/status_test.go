// SPDX-License-Identifier: Apache-2.0

package status

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"

	"fairlead.dev/dataplane"
)

// registry has what an agent's has, with a Service whose name is hostile.
func registry(t *testing.T) *prometheus.Registry {
	t.Helper()
	r := prometheus.NewRegistry()
	add := func(name string, v float64, labels ...string) {
		l := prometheus.Labels{}
		for i := 0; i < len(labels); i += 2 {
			l[labels[i]] = labels[i+1]
		}
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: name, ConstLabels: l})
		g.Set(v)
		if err := r.Register(g); err != nil {
			t.Fatal(err)
		}
	}
	add("fairlead_build_info", 1, "version", "v1", "goversion", "go", "dataplane", "ebpf")
	add("fairlead_source_connected", 0, "source", "apiserver https://x")
	add("fairlead_services", 3)
	add("fairlead_frontends", 7)
	add("fairlead_backends", 11)
	add("fairlead_problems", 2)
	add("fairlead_source_problems", 0)
	add("fairlead_failed_services", 1)
	add("fairlead_drift_repaired_total", 4)
	add("fairlead_last_change_seconds", 0.0123)
	add("kubeproxy_sync_proxy_rules_service_changes_pending", 1)
	add("kubeproxy_sync_proxy_rules_endpoint_changes_pending", 5)
	add("kubeproxy_sync_proxy_rules_last_timestamp_seconds", 1_800_000_000)
	add("fairlead_map_entries", 950, "map", "slots")
	add("fairlead_map_max_entries", 1000, "map", "slots")
	add("fairlead_drops_total", 0, "reason", "no_route")
	add("fairlead_drops_total", 9, "reason", "no_backends")
	for _, x := range [][3]string{{"default", "web", "http"}, {"default", hostile, ""}} {
		n := float64(100 * len(x[1]))
		add("fairlead_service_connections_total", n, "namespace", x[0], "service", x[1], "port", x[2], "direction", "in")
		for _, d := range []string{"in", "out"} {
			add("fairlead_service_packets_total", 5, "namespace", x[0], "service", x[1], "port", x[2], "direction", d)
			add("fairlead_service_bytes_total", 500, "namespace", x[0], "service", x[1], "port", x[2], "direction", d)
		}
	}
	h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "kubeproxy_network_programming_duration_seconds", Help: "h", Buckets: []float64{0.1, 1, 10}})
	for range 99 {
		h.Observe(0.5)
	}
	h.Observe(5)
	r.MustRegister(h)
	return r
}

const hostile = "<script>alert(1)</script>\x1b[2J\"'"

func fromRegistry(t *testing.T) *Status {
	t.Helper()
	families, err := registry(t).Gather()
	if err != nil {
		t.Fatal(err)
	}
	s, err := FromMetrics(families)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestAStatusIsReadOffTheMetrics(t *testing.T) {
	s := fromRegistry(t)
	p99 := 1.0 // 99 of 100 are in the bucket that ends there
	want := &Status{
		Dataplane: "ebpf", Services: 3, Frontends: 7, Backends: 11,
		Traffic: []Traffic{
			{Service: "default/" + hostile, Connections: uint64(100 * len(hostile)), Packets: 10, Bytes: 1000},
			{Service: "default/web", PortName: "http", Connections: 300, Packets: 10, Bytes: 1000},
		},
		Drops: []dataplane.DropRow{{Reason: "no_backends", Count: 9}},
		Agent: &Agent{
			Version: "v1", Source: "apiserver https://x", Problems: 2, FailedServices: 1, Pending: 6,
			LastSync: time.Unix(1_800_000_000, 0).UTC(), LastChangeSeconds: 0.0123, ProgrammingP99Seconds: &p99, DriftRepaired: 4,
			Maps: []Map{{"slots", 950, 1000}},
		},
	}
	if diff := cmp.Diff(want, s, cmpopts.EquateApprox(0, 1e-9)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, err := FromMetrics(nil); err == nil {
		t.Error("nothing is taken for an agent's metrics")
	}
}

func TestTheKernelAloneGivesAStatus(t *testing.T) {
	row := func(scope string, backends ...string) dataplane.Row {
		r := dataplane.Row{Service: "default/web", PortName: "http", Kind: "ClusterIP", Address: netip.MustParseAddr("10.96.0.1"), Port: 80, Protocol: "TCP", Scope: scope}
		for _, b := range backends {
			r.Backends = append(r.Backends, dataplane.BackendRow{Address: netip.MustParseAddr(b), Port: 80, State: "active"})
		}
		return r
	}
	s := FromKernel(dataplane.Dump{Dataplane: "nftables", Frontends: []dataplane.Row{row("internal", "10.244.0.1"), row("external", "10.244.0.1", "10.244.0.2")}},
		[]dataplane.CounterRow{{Service: "default/idle"}, {Service: "default/web", PortName: "http", Connections: 2, ForwardPackets: 3, ReversePackets: 4}},
		[]dataplane.DropRow{{Reason: "a", Count: 0}})
	s.AgentError = "none answers"
	if s.Services != 1 || s.Frontends != 1 || s.Backends != 3 || len(s.Traffic) != 1 || s.Traffic[0].Packets != 7 || len(s.Drops) != 0 {
		t.Errorf("%+v", s)
	}
	var text bytes.Buffer
	if err := s.WriteText(&text, time.Now()); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"nftables", "1 Services, 1 Frontends, 3 Backends", "none answers; the kernel routes on", "default/web"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in:\n%s", want, text.String())
		}
	}
	b, err := json.Marshal(s)
	if err != nil || !strings.Contains(string(b), `"agent":null`) || !strings.Contains(string(b), `"drops":[]`) {
		t.Errorf("%s, %v", b, err)
	}
}

func TestTheTextIsOneScreenAndSteersNoTerminal(t *testing.T) {
	s := fromRegistry(t)
	for range 500 {
		s.Traffic = append(s.Traffic, Traffic{Service: "default/more", Connections: 1})
	}
	var text bytes.Buffer
	if err := s.WriteText(&text, time.Unix(1_800_000_007, 0)); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(text.String(), "\n"); n > 30 {
		t.Errorf("%d lines:\n%s", n, text.String())
	}
	for _, want := range []string{"NOT connected", "6 changes pending, 1 Services failed, 2 problems", "slots 950 of 1000 (95%)", "no_backends 9", "7s ago", "12.3ms", "within 1s", "and 492 more"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in:\n%s", want, text.String())
		}
	}
	if strings.ContainsRune(text.String(), '\x1b') {
		t.Error("an escape sequence gets to the terminal")
	}
}

func TestThePageIsSelfContainedAndEscaped(t *testing.T) {
	p := &Page{Node: "n<1>", Read: func() (*Status, error) { return fromRegistry(t), nil }}
	w := httptest.NewRecorder()
	p.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/status", nil))
	body := w.Body.String()
	if w.Code != http.StatusOK || strings.Contains(body, "<script") || !strings.Contains(body, "&lt;script&gt;") || strings.Contains(body, "n<1>") {
		t.Errorf("%d, not escaped:\n%s", w.Code, body)
	}
	if m := regexp.MustCompile(`(?i)\b(src|href|action|url\(|@import|on[a-z]+=|javascript:)`).FindString(body); m != "" {
		t.Errorf("the page asks for something: %q", m)
	}
	csp := w.Header().Get("Content-Security-Policy")
	if !strings.HasPrefix(csp, "default-src 'none'; style-src 'sha256-") || strings.Contains(csp, "unsafe") {
		t.Errorf("Content-Security-Policy %q", csp)
	}
	if !strings.Contains(body, "<style>"+style+"</style>") {
		t.Error("the style is not what its hash is of")
	}
	for _, want := range []string{"not connected", "950", "95.0 %", "1 Services failed", "no_backends"} {
		if !strings.Contains(body, want) {
			t.Errorf("no %q in:\n%s", want, body)
		}
	}
}
