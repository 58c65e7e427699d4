// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"net/http"
	"net/http/pprof"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"fairlead.dev/controller/status"
)

// metrics are the controller's own. Names that begin with kubeproxy_ mean what
// they mean in kube-proxy, so its dashboards and alerts work.
type metrics struct {
	registry *prometheus.Registry

	syncSeconds, fullSeconds, partialSeconds prometheus.Histogram
	programmingSeconds                       prometheus.Histogram
	serviceChanges, endpointChanges          prometheus.Counter
	healthz, livez                           *prometheus.CounterVec
	drift, applyErrors                       prometheus.Counter
	services, frontends, backends            prometheus.Gauge
}

// From 0.1 ms, what one map update takes, to 13 s.
var syncBuckets = prometheus.ExponentialBuckets(0.0001, 2, 18)

// From 1 ms to kube-proxy's 300 s: the trigger time has the resolution of the
// API's clocks, and a control plane can be slow.
var programmingBuckets = []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300}

func newMetrics() *metrics {
	m := &metrics{
		registry:           prometheus.NewRegistry(),
		syncSeconds:        histogram("kubeproxy_sync_proxy_rules_duration_seconds", "Time to bring the kernel in line once, whole or for one Change.", syncBuckets),
		fullSeconds:        histogram("kubeproxy_sync_full_proxy_rules_duration_seconds", "Time to compare the whole kernel with the rule table and repair it.", syncBuckets),
		partialSeconds:     histogram("kubeproxy_sync_partial_proxy_rules_duration_seconds", "Time to make the kernel follow one Change.", syncBuckets),
		programmingSeconds: histogram("kubeproxy_network_programming_duration_seconds", "Time from the trigger of an endpoint change (annotation endpoints.kubernetes.io/last-change-trigger-time) until it is in force here.", programmingBuckets),
		serviceChanges:     counter("kubeproxy_sync_proxy_rules_service_changes_total", "Service changes that arrived."),
		endpointChanges:    counter("kubeproxy_sync_proxy_rules_endpoint_changes_total", "EndpointSlice changes that arrived."),
		healthz:            counterVec("kubeproxy_proxy_healthz_total", "Answers of /healthz by status code.", "code"),
		livez:              counterVec("kubeproxy_proxy_livez_total", "Answers of /livez by status code.", "code"),
		drift:              counter("fairlead_drift_repaired_total", "Frontends in the kernel that differed from the rule table without a Change, and were repaired."),
		applyErrors:        counter("fairlead_apply_errors_total", "Attempts to bring the kernel in line that failed, whole or for some Services."),
		services:           gauge("fairlead_services", "Services in the rule table."),
		frontends:          gauge("fairlead_frontends", "Frontends in the rule table."),
		backends:           gauge("fairlead_backends", "Backends in the rule table, counted once for each row of dump that has them."),
	}
	m.registry.MustRegister(m.syncSeconds, m.fullSeconds, m.partialSeconds, m.programmingSeconds,
		m.serviceChanges, m.endpointChanges, m.healthz, m.livez, m.drift, m.applyErrors, m.services, m.frontends, m.backends,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, code := range []int{http.StatusOK, http.StatusServiceUnavailable} {
		m.healthz.WithLabelValues(codeLabel(code))
		m.livez.WithLabelValues(codeLabel(code))
	}
	return m
}

func histogram(name, help string, buckets []float64) prometheus.Histogram {
	return prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
}

func counter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
}

func counterVec(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
}

func gauge(name, help string) prometheus.Gauge {
	return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
}

// reading is the metrics that are read off the controller when they are asked
// for.
type reading struct{ c *Controller }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

var (
	servicePending  = desc("kubeproxy_sync_proxy_rules_service_changes_pending", "Service changes that are not in force yet.")
	endpointPending = desc("kubeproxy_sync_proxy_rules_endpoint_changes_pending", "EndpointSlice changes that are not in force yet.")
	lastQueued      = desc("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", "Unix time at which a change last arrived.")
	lastDone        = desc("kubeproxy_sync_proxy_rules_last_timestamp_seconds", "Unix time at which the kernel was last brought in line.")
	lastChange      = desc("fairlead_last_change_seconds", "Time from the arrival of the last change until it was in force.")
	noLocal         = desc("kubeproxy_sync_proxy_rules_no_local_endpoints_total", "Service ports with traffic policy Local and no endpoint on this node.", "traffic_policy")
	objectProblems  = desc("fairlead_problems", "Objects, or parts of them, that are not in force as written.")
	failedServices  = desc("fairlead_failed_services", "Services whose last state the kernel did not take; the one before is in force.")
	sourceConnected = desc("fairlead_source_connected", "Whether changes arrive as they happen (1), or the last state is kept (0).", "source")
	sourceProblems  = desc("fairlead_source_problems", "Files or objects that the source could not take as written.")
	buildInfo       = desc("fairlead_build_info", "1, with the version of fairlead and of Go, and the Dataplane in use.", "version", "goversion", "dataplane")
)

func (r reading) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{servicePending, endpointPending, lastQueued, lastDone, lastChange, noLocal, objectProblems, failedServices, sourceConnected, sourceProblems, buildInfo} {
		ch <- d
	}
}

func (r reading) Collect(ch chan<- prometheus.Metric) {
	set := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	pending, queued, done := r.c.progress.pending()
	set(servicePending, float64(pending.services))
	set(endpointPending, float64(pending.endpoints))
	set(lastQueued, unixSeconds(queued))
	set(lastDone, unixSeconds(done))
	set(lastChange, r.c.progress.took().Seconds())
	set(failedServices, float64(r.c.progress.condition().failed))
	set(objectProblems, float64(len(r.c.Problems())))
	state := r.c.opts.Source.State()
	connected := 0.0
	if state.Connected {
		connected = 1
	}
	set(sourceConnected, connected, r.c.opts.Source.Name())
	set(sourceProblems, float64(len(state.Problems)))
	set(buildInfo, 1, r.c.opts.Version, runtime.Version(), r.c.opts.Dataplane.Name())
	// kube-proxy has this as a gauge, whose name may not end in _total by the
	// rules of promtool: untyped is true as well and keeps the name.
	for scope, n := range r.c.noLocalEndpoints() {
		ch <- prometheus.MustNewConstMetric(noLocal, prometheus.UntypedValue, float64(n), scope.String())
	}
}

// unixSeconds is 0 for a time that never was.
func unixSeconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixNano()) / 1e9
}

// exposition serves the metrics as Prometheus reads them.
func (m *metrics) exposition() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 4, Timeout: 20 * time.Second, Registry: m.registry,
	})
}

// handler serves /metrics, and a /healthz that only says that the process
// answers; where asked for, the status page of a node and profiles.
func (m *metrics) handler(statusOf string, profiling bool) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/metrics", m.exposition())
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		_, _ = w.Write([]byte("ok"))
	})
	if statusOf != "" {
		mux.Handle("/status", &status.Page{Node: statusOf, Read: m.status})
	}
	if profiling {
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
	return mux
}

// status reads the metrics as /metrics would show them.
func (m *metrics) status() (*status.Status, error) {
	families, err := m.registry.Gather()
	if err != nil {
		return nil, err
	}
	return status.FromMetrics(families)
}
