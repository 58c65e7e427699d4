// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"crypto/tls"
	"errors"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fairlead.dev/controller/source"
	"fairlead.dev/dataplane/dataplanetest"
)

// scrape asks an agent for its metrics.
func scrape(t *testing.T, a *agent) string {
	t.Helper()
	code, body := get(t, a.metricsServer, "/metrics")
	if code != 200 {
		t.Fatalf("/metrics: %d %s", code, body)
	}
	return body
}

func withMetrics(o *Options) { o.MetricsBindAddress, o.Version = "127.0.0.1:0", "v1.2.3" }

func expectLines(t *testing.T, body string, lines ...string) {
	t.Helper()
	for _, l := range lines {
		if !strings.Contains(body, "\n"+l) {
			name, _, _ := strings.Cut(strings.TrimPrefix(l, "# TYPE "), " ")
			name, _, _ = strings.Cut(name, "{")
			var seen []string
			for _, have := range strings.Split(body, "\n") {
				if strings.Contains(have, name) {
					seen = append(seen, have)
				}
			}
			t.Errorf("metrics lack %q; there is:\n%s", l, strings.Join(seen, "\n"))
		}
	}
}

func TestMetricsTellWhatWasDone(t *testing.T) {
	a := started(t, 3, withMetrics)
	slice := testSlice(2, "10.244.1.1", "10.244.1.2")
	slice.Annotations = map[string]string{"endpoints.kubernetes.io/last-change-trigger-time": time.Now().UTC().Format(time.RFC3339Nano)}
	a.source.do(func(h source.Handler) { h.OnEndpointSlice(keyOf("s2"), slice) })
	eventually(t, "the change", func() bool {
		b, _, _ := a.progress.pending()
		return b == batch{} && a.backends(2) == "10.244.1.1 10.244.1.2"
	})
	body := scrape(t, a)
	expectLines(t, body,
		"# TYPE kubeproxy_sync_proxy_rules_duration_seconds histogram",
		"# TYPE kubeproxy_sync_partial_proxy_rules_duration_seconds histogram",
		"kubeproxy_sync_full_proxy_rules_duration_seconds_count 1",
		"kubeproxy_network_programming_duration_seconds_count 1",
		"kubeproxy_sync_proxy_rules_service_changes_total 3",
		"kubeproxy_sync_proxy_rules_endpoint_changes_total 4",
		"kubeproxy_sync_proxy_rules_service_changes_pending 0",
		"kubeproxy_sync_proxy_rules_endpoint_changes_pending 0",
		"kubeproxy_sync_proxy_rules_last_timestamp_seconds 1.",
		"kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds 1.",
		`kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy="internal"} 0`,
		`kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy="external"} 0`,
		`kubeproxy_proxy_healthz_total{code="200"} 0`,
		`kubeproxy_proxy_livez_total{code="503"} 0`,
		"fairlead_services 3", "fairlead_frontends 3", "fairlead_backends 4",
		"fairlead_problems 0", "fairlead_failed_services 0", "fairlead_drift_repaired_total 0", "fairlead_apply_errors_total 0",
		`fairlead_source_connected{source="script"} 1`, "fairlead_source_problems 0",
		`fairlead_build_info{dataplane="model",goversion="go`,
	)
	if code, body := get(t, a.metricsServer, "/healthz"); code != 200 || body != "ok" {
		t.Errorf("/healthz beside the metrics: %d %q", code, body)
	}
}

func TestMetricsTellWhatWaitsAndWhatFails(t *testing.T) {
	a := started(t, 2, withMetrics)
	a.model.Reject(serviceName("s1"), errors.New("no room"))
	a.source.do(func(h source.Handler) {
		h.OnEndpointSlice(keyOf("s1"), testSlice(1, "10.244.1.1"))
		h.OnService(keyOf("s2"), nil)
	})
	eventually(t, "the failure", func() bool { return !a.inForce(serviceName("s1")) && a.backends(2) == "none" })
	eventually(t, "the counts", func() bool { return strings.Contains(scrape(t, a), "\nfairlead_failed_services 1\n") })
	expectLines(t, scrape(t, a), "fairlead_problems 1", "fairlead_services 1", "fairlead_backends 1", "fairlead_apply_errors_total ")
	release := a.model.Hold()
	defer release()
	entered := make(chan struct{}, 10)
	a.model.OnCall(func() { entered <- struct{}{} })
	a.source.do(func(h source.Handler) { give(h, 3, "10.244.0.3") })
	<-entered
	a.source.do(func(h source.Handler) { give(h, 4, "10.244.0.4") })
	body := scrape(t, a)
	if strings.Contains(body, "service_changes_pending 0") || strings.Contains(body, "endpoint_changes_pending 0") {
		t.Error("nothing pending during an Apply")
	}
}

func TestPromtoolAcceptsTheMetrics(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("SKIPPED: no promtool (Debian: prometheus)")
	}
	drops := prometheus.NewCounter(prometheus.CounterOpts{Name: "fairlead_test_drops_total", Help: "A Dataplane's own."})
	a := started(t, 1, func(o *Options) { withMetrics(o); o.Collectors = []prometheus.Collector{drops} })
	body := scrape(t, a)
	expectLines(t, body, "fairlead_test_drops_total 0")
	cmd := exec.Command(promtool, "check", "metrics")
	cmd.Stdin = strings.NewReader(body)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
}

func TestACollectorThatIsThereTwiceIsAnErrorOfNew(t *testing.T) {
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: "fairlead_twice_total", Help: "x"})
	_, err := New(Options{Source: &script{}, Dataplane: dataplanetest.New(), NodeName: "n1", Collectors: []prometheus.Collector{c, c}})
	if err == nil {
		t.Error("New took the same collector twice")
	}
}

func TestTheMetricsAddressIsServedWithTLSAndGuardedWhereAskedFor(t *testing.T) {
	serving := httptest.NewTLSServer(nil) // for its certificate
	defer serving.Close()
	a := newAgent(t, func(o *Options) {
		o.MetricsBindAddress, o.Profiling = "127.0.0.1:0", true
		o.MetricsTLS = &tls.Config{Certificates: serving.TLS.Certificates}
		o.MetricsGuard = func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Authorization") == "" {
					http.Error(w, "no", http.StatusUnauthorized)
					return
				}
				next.ServeHTTP(w, r)
			})
		}
	})
	eventually(t, "the server listens", func() bool { return a.metricsServer.bound.Load() != nil })
	address := a.metricsServer.bound.Load().String()
	client := serving.Client()
	for _, path := range []string{"/metrics", "/healthz", "/debug/pprof/cmdline"} {
		for token, want := range map[string]int{"": http.StatusUnauthorized, "Bearer x": http.StatusOK} {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+address+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			if token != "" {
				r.Header.Set("Authorization", token)
			}
			answer, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			answer.Body.Close()
			if answer.StatusCode != want {
				t.Errorf("%s with Authorization %q: %d, want %d", path, token, answer.StatusCode, want)
			}
		}
	}
	client.CloseIdleConnections()
	if code, body := getURL(t, "http://"+address+"/metrics"); code == http.StatusOK {
		t.Errorf("without TLS: %d %.100s", code, body)
	}
}

func TestProfilesAreServedOnlyWhereAskedFor(t *testing.T) {
	for profiling, want := range map[bool]int{false: http.StatusNotFound, true: http.StatusOK} {
		a := newAgent(t, func(o *Options) { o.MetricsBindAddress, o.Profiling = "127.0.0.1:0", profiling })
		for _, path := range []string{"/debug/pprof/", "/debug/pprof/cmdline", "/debug/pprof/symbol"} {
			if code, body := get(t, a.metricsServer, path); code != want {
				t.Errorf("profiling %v: %s answers %d %.100s, want %d", profiling, path, code, body, want)
			}
		}
	}
}

func TestTheStatusPageIsServedOnlyWhereAskedFor(t *testing.T) {
	for asked, want := range map[bool]int{false: http.StatusNotFound, true: http.StatusOK} {
		a := newAgent(t, func(o *Options) { o.MetricsBindAddress, o.StatusPage = "127.0.0.1:0", asked })
		code, body := get(t, a.metricsServer, "/status")
		if code != want || asked != strings.Contains(body, "<h1>fairlead on n1</h1>") {
			t.Errorf("status page %v: /status answers %d %.200s, want %d", asked, code, body, want)
		}
	}
}
