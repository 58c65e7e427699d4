// SPDX-License-Identifier: Apache-2.0

package kubeletapi

import (
	"context"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// The metrics of /metrics/resource, with the kubelet's names: metrics-server
// and through it the HPA read them.
var (
	containerLabels = []string{"container", "pod", "namespace"}
	podLabels       = []string{"pod", "namespace"}

	descNodeCPU         = prometheus.NewDesc("node_cpu_usage_seconds_total", "Cumulative cpu time consumed by the node in core-seconds", nil, nil)
	descNodeMemory      = prometheus.NewDesc("node_memory_working_set_bytes", "Current working set of the node in bytes", nil, nil)
	descNodeSwap        = prometheus.NewDesc("node_swap_usage_bytes", "Current swap usage of the node in bytes", nil, nil)
	descContainerCPU    = prometheus.NewDesc("container_cpu_usage_seconds_total", "Cumulative cpu time consumed by the container in core-seconds", containerLabels, nil)
	descContainerMemory = prometheus.NewDesc("container_memory_working_set_bytes", "Current working set of the container in bytes", containerLabels, nil)
	descContainerSwap   = prometheus.NewDesc("container_swap_usage_bytes", "Current amount of the container swap usage in bytes", containerLabels, nil)
	descContainerStart  = prometheus.NewDesc("container_start_time_seconds", "Start time of the container since unix epoch in seconds", containerLabels, nil)
	descPodCPU          = prometheus.NewDesc("pod_cpu_usage_seconds_total", "Cumulative cpu time consumed by the pod in core-seconds", podLabels, nil)
	descPodMemory       = prometheus.NewDesc("pod_memory_working_set_bytes", "Current working set of the pod in bytes", podLabels, nil)
	descPodSwap         = prometheus.NewDesc("pod_swap_usage_bytes", "Current amount of the pod swap usage in bytes", podLabels, nil)
	descScrapeError     = prometheus.NewDesc("scrape_error", "1 if there was an error while getting container metrics, 0 otherwise", nil, nil)
	descResourceError   = prometheus.NewDesc("resource_scrape_error", "1 if there was an error while getting container metrics, 0 otherwise", nil, nil)
)

func (s *Stats) serveResource(w http.ResponseWriter, r *http.Request) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(resourceCollector{s, r.Context()})
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}).ServeHTTP(w, r)
}

// resourceCollector measures once, for one request.
type resourceCollector struct {
	s   *Stats
	ctx context.Context
}

// Describe implements prometheus.Collector: what there is depends on the Pods.
func (c resourceCollector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c resourceCollector) Collect(ch chan<- prometheus.Metric) {
	summary, err := c.s.Summary(c.ctx, true)
	failed := 0.0
	if err != nil {
		failed, summary = 1, &statsapi.Summary{}
	}
	ch <- prometheus.MustNewConstMetric(descScrapeError, prometheus.GaugeValue, failed)
	ch <- prometheus.MustNewConstMetric(descResourceError, prometheus.GaugeValue, failed)
	cpu(ch, descNodeCPU, summary.Node.CPU)
	workingSet(ch, descNodeMemory, summary.Node.Memory)
	swapped(ch, descNodeSwap, summary.Node.Swap)
	for _, p := range summary.Pods {
		for _, x := range p.Containers {
			labels := []string{x.Name, p.PodRef.Name, p.PodRef.Namespace}
			if x.StartTime.Unix() > 0 {
				ch <- prometheus.MustNewConstMetric(descContainerStart, prometheus.GaugeValue, float64(x.StartTime.UnixNano())/float64(time.Second), labels...)
			}
			cpu(ch, descContainerCPU, x.CPU, labels...)
			workingSet(ch, descContainerMemory, x.Memory, labels...)
			swapped(ch, descContainerSwap, x.Swap, labels...)
		}
		labels := []string{p.PodRef.Name, p.PodRef.Namespace}
		cpu(ch, descPodCPU, p.CPU, labels...)
		workingSet(ch, descPodMemory, p.Memory, labels...)
		swapped(ch, descPodSwap, p.Swap, labels...)
	}
}

func cpu(ch chan<- prometheus.Metric, d *prometheus.Desc, c *statsapi.CPUStats, labels ...string) {
	if c != nil && c.UsageCoreNanoSeconds != nil {
		send(ch, d, prometheus.CounterValue, float64(*c.UsageCoreNanoSeconds)/float64(time.Second), c.Time, labels)
	}
}

func workingSet(ch chan<- prometheus.Metric, d *prometheus.Desc, m *statsapi.MemoryStats, labels ...string) {
	if m != nil && m.WorkingSetBytes != nil {
		send(ch, d, prometheus.GaugeValue, float64(*m.WorkingSetBytes), m.Time, labels)
	}
}

func swapped(ch chan<- prometheus.Metric, d *prometheus.Desc, s *statsapi.SwapStats, labels ...string) {
	if s != nil && s.SwapUsageBytes != nil {
		send(ch, d, prometheus.GaugeValue, float64(*s.SwapUsageBytes), s.Time, labels)
	}
}

func send(ch chan<- prometheus.Metric, d *prometheus.Desc, kind prometheus.ValueType, v float64, at metav1.Time, labels []string) {
	ch <- prometheus.NewMetricWithTimestamp(at.Time, prometheus.MustNewConstMetric(d, kind, v, labels...))
}
