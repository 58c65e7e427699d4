// SPDX-License-Identifier: Apache-2.0

package resilience

import (
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// verdict is what came of a load.
type verdict struct {
	connections, questions, retransmitted, moved int
	took                                         []time.Duration
	failures                                     []string
}

func (v verdict) String() string {
	return fmt.Sprintf("%d new connections and %d questions over held ones (%d SYNs sent again, %d held sockets moved off removed Backends), answers p50 %v p99 %v max %v",
		v.connections, v.questions, v.retransmitted, v.moved, quantile(v.took, 0.5), quantile(v.took, 0.99), quantile(v.took, 1))
}

func (v *verdict) count(r *record) {
	if r.Again {
		v.questions++
	} else {
		v.connections++
	}
	if r.Retransmits > 0 {
		v.retransmitted++
	}
	v.took = append(v.took, time.Duration(r.Took))
}

// judge finds every failed question, and every answer of a Backend that could
// not be right.
func judge(loads []*load, k *killTown, h *killHistory) (v verdict) {
	for _, l := range loads {
		report, err := l.stop()
		if err != nil {
			v.failures = append(v.failures, err.Error())
			continue
		}
		if len(report.Records) < 100 {
			v.failures = append(v.failures, fmt.Sprintf("load from %s asked %d questions only", l.name, len(report.Records)))
		}
		for i := range report.Records {
			r := &report.Records[i]
			v.count(r)
			if wrong := k.wrong(l, r, h, &v); wrong != "" {
				v.failures = append(v.failures, fmt.Sprintf("%s, %s:\n%s", l.question(r), h.when(r), wrong))
			}
		}
	}
	return v
}

// when says between which kills a question was asked.
func (h *killHistory) when(r *record) string {
	n := sort.Search(len(h.kills), func(i int) bool { return h.kills[i] > r.Start })
	if n == 0 {
		return "before the first kill"
	}
	return fmt.Sprintf("%.1f ms after kill %d", float64(r.Start-h.kills[n-1])/1e6, n)
}

// wrong says what is not as promised of a question, empty for nothing.
func (k *killTown) wrong(l *load, r *record, h *killHistory, v *verdict) string {
	s := l.plan.Streams[r.Stream]
	legal := k.healthy
	if port := s.To[r.To].Port(); s.To[r.To].Addr() == k.at(client{}, 1, 0, false).Addr() || s.To[r.To].Addr() == k.at(client{}, 1, 0, true).Addr() || port == steadyNodePort {
		legal = k.steadyBackends
	}
	if r.Failure != "" {
		if k.udpMayEnd && wasEnded(r) && !s.Mode.IsTCP() || k.wasMoved(l, r, len(legal) == len(k.healthy)) {
			v.moved++
			return ""
		}
		seen := r.Failure
		if r.Again {
			seen += fmt.Sprintf(" (held, its Backend is %v)", l.server(r))
		}
		return fmt.Sprintf("want an answer, of %v or a visitor\nseen %s after %v", legal, seen, time.Duration(r.Took))
	}
	server := l.server(r)
	switch {
	case slices.Contains(legal, server):
		return ""
	case len(legal) == len(k.steadyBackends) || !k.isVisitor(server):
		return fmt.Sprintf("want an answer of %v\nseen one of %v", legal, server)
	case r.Again && s.Mode != udpShared:
		return "" // keeps what it has
	}
	// A visitor: not after an agent was seen to have removed it.
	n := sort.Search(len(h.settled), func(i int) bool { return h.settled[i].known > r.Start })
	if n > 0 && k.absent(server, h.settled[n-1].version, r.Chosen) {
		return fmt.Sprintf("want no answer of %v: the kernel was seen without it %.1f ms before, and no manifest has had it since",
			server, float64(r.Start-h.settled[n-1].known)/1e6)
	}
	return ""
}

func (k *killTown) isVisitor(a netip.AddrPort) bool {
	return a.Port() == 9090 && slices.ContainsFunc(k.visitors, func(e endpoint) bool { return e.IPv4 == a.Addr() || e.IPv6 == a.Addr() })
}

// wasEnded reports whether the socket was destroyed: the next read gives
// ECONNABORTED, a write to a UDP socket EDESTADDRREQ.
func wasEnded(r *record) bool {
	return strings.Contains(r.Failure, unix.ECONNABORTED.Error()) || strings.Contains(r.Failure, unix.EDESTADDRREQ.Error())
}

// wasMoved reports whether a socket ended because it was connected to a Backend
// that was removed: then that is no loss. A socket that had no answer yet may
// have been connected to any visitor.
func (k *killTown) wasMoved(l *load, r *record, churned bool) bool {
	if !churned || !wasEnded(r) || l.plan.Streams[r.Stream].Mode.IsTCP() {
		return false
	}
	if r.Again {
		return k.removed(r, func(a netip.AddrPort) bool { return a == l.server(r) })
	}
	return k.removed(r, k.isVisitor)
}

// removed reports whether a visitor left the manifests shortly before the
// question ended: its sockets are ended soon after, with agents killed meanwhile.
func (k *killTown) removed(r *record, of func(netip.AddrPort) bool) bool {
	for i := 1; i < len(k.versions); i++ {
		before, after := &k.versions[i-1], &k.versions[i]
		if after.begun > r.Start+r.Took || after.done < r.Start-endedWithin.Nanoseconds() {
			continue
		}
		for a := range before.backends {
			if !after.backends[a] && k.isVisitor(a) && of(a) {
				return true
			}
		}
	}
	return false
}

// wantedPins are the pins of one agent, for the hooks that were counted.
func (k *killTown) wantedPins(hooks map[string]int) []string {
	pins := []string{"fairlead", "fairlead/links", "fairlead/maps"}
	for _, m := range []string{"affinity", "backend_states", "conntrack", "counters", "datagrams", "drops", "fragments", "frontend_switches", "frontends",
		"internal_sources", "netns_addresses", "services", "settings", "slots", "socket_flows", "source_ranges",
		"trace_counts", "trace_events", "trace_listener", "trace_services"} {
		pins = append(pins, "fairlead/maps/"+m)
	}
	_ = k.thread.Do(func() error {
		all, err := k.hooks()
		for _, h := range all {
			name := h.name
			if h.dir == "" {
				name = fmt.Sprintf("tcx-%d-%s", h.dev, map[bool]string{true: "ingress", false: "egress"}[h.name[len(h.name)-7:] == "ingress"])
			}
			pins = append(pins, "fairlead/links/"+name)
		}
		return err
	})
	slices.Sort(pins)
	return pins
}
