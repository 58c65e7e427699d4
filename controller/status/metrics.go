// SPDX-License-Identifier: Apache-2.0

package status

import (
	"errors"
	"math"
	"time"

	dto "github.com/prometheus/client_model/go"

	"fairlead.dev/dataplane"
)

// FromMetrics reads a Status off an agent's metrics. An error: they are not an
// agent's.
func FromMetrics(families []*dto.MetricFamily) (*Status, error) {
	m := map[string]*dto.MetricFamily{}
	for _, f := range families {
		m[f.GetName()] = f
	}
	build := m["fairlead_build_info"]
	if build == nil || len(build.Metric) == 0 {
		return nil, errors.New("no fairlead_build_info: these are not the metrics of a fairlead agent")
	}
	a := &Agent{
		Version:           label(build.Metric[0], "version"),
		SourceProblems:    number(m, "fairlead_source_problems"),
		Problems:          number(m, "fairlead_problems"),
		FailedServices:    number(m, "fairlead_failed_services"),
		Pending:           number(m, "kubeproxy_sync_proxy_rules_service_changes_pending") + number(m, "kubeproxy_sync_proxy_rules_endpoint_changes_pending"),
		LastChangeSeconds: value(m, "fairlead_last_change_seconds"),
		DriftRepaired:     uint64(number(m, "fairlead_drift_repaired_total")),
	}
	if t := value(m, "kubeproxy_sync_proxy_rules_last_timestamp_seconds"); t > 0 {
		a.LastSync = time.UnixMilli(int64(t * 1000)).UTC()
	}
	if f := m["fairlead_source_connected"]; f != nil && len(f.Metric) > 0 {
		a.Source, a.SourceConnected = label(f.Metric[0], "source"), valueOf(f.Metric[0]) == 1
	}
	if f := m["kubeproxy_network_programming_duration_seconds"]; f != nil && len(f.Metric) > 0 {
		a.ProgrammingP99Seconds = quantile(0.99, f.Metric[0].GetHistogram())
	}
	a.Maps = mapsOf(m)
	s := &Status{
		Dataplane: label(build.Metric[0], "dataplane"),
		Services:  number(m, "fairlead_services"), Frontends: number(m, "fairlead_frontends"), Backends: number(m, "fairlead_backends"),
		Traffic: trafficOf(m), Agent: a,
	}
	if f := m["fairlead_drops_total"]; f != nil {
		for _, x := range f.Metric {
			s.Drops = append(s.Drops, dataplane.DropRow{Reason: label(x, "reason"), Count: uint64(valueOf(x))})
		}
	}
	s.tidy()
	return s, nil
}

func mapsOf(m map[string]*dto.MetricFamily) (out []Map) {
	most := map[string]int{}
	if f := m["fairlead_map_max_entries"]; f != nil {
		for _, x := range f.Metric {
			most[label(x, "map")] = int(valueOf(x))
		}
	}
	if f := m["fairlead_map_entries"]; f != nil {
		for _, x := range f.Metric {
			out = append(out, Map{Name: label(x, "map"), Entries: int(valueOf(x)), Max: most[label(x, "map")]})
		}
	}
	return out
}

func trafficOf(m map[string]*dto.MetricFamily) (out []Traffic) {
	type port struct{ service, name string }
	rows := map[port]*Traffic{}
	each := func(family string, add func(*Traffic, uint64)) {
		f := m[family]
		if f == nil {
			return
		}
		for _, x := range f.Metric {
			p := port{label(x, "namespace") + "/" + label(x, "service"), label(x, "port")}
			if rows[p] == nil {
				rows[p] = &Traffic{Service: p.service, PortName: p.name}
			}
			add(rows[p], uint64(valueOf(x)))
		}
	}
	each("fairlead_service_connections_total", func(t *Traffic, n uint64) { t.Connections += n })
	each("fairlead_service_packets_total", func(t *Traffic, n uint64) { t.Packets += n })
	each("fairlead_service_bytes_total", func(t *Traffic, n uint64) { t.Bytes += n })
	for _, t := range rows {
		out = append(out, *t)
	}
	return out
}

// quantile is Prometheus's histogram_quantile over all observations; nil where
// there are none.
func quantile(q float64, h *dto.Histogram) *float64 {
	total := float64(h.GetSampleCount())
	if total == 0 {
		return nil
	}
	below, count := 0.0, 0.0
	for _, b := range h.GetBucket() {
		if math.IsInf(b.GetUpperBound(), 1) {
			break
		}
		if n := float64(b.GetCumulativeCount()); n >= q*total {
			v := below + (b.GetUpperBound()-below)*(q*total-count)/(n-count)
			return &v
		}
		below, count = b.GetUpperBound(), float64(b.GetCumulativeCount())
	}
	return &below // beyond the last bound
}

func label(m *dto.Metric, name string) string {
	for _, l := range m.Label {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}

func valueOf(m *dto.Metric) float64 {
	switch {
	case m.Gauge != nil:
		return m.Gauge.GetValue()
	case m.Counter != nil:
		return m.Counter.GetValue()
	}
	return m.GetUntyped().GetValue()
}

// value is that of a metric without labels; 0 where there is none.
func value(m map[string]*dto.MetricFamily, name string) float64 {
	f := m[name]
	if f == nil || len(f.Metric) == 0 {
		return 0
	}
	return valueOf(f.Metric[0])
}

func number(m map[string]*dto.MetricFamily, name string) int { return int(value(m, name)) }
