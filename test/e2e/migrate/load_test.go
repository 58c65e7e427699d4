// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"fairlead.dev/test/internal/traffic"
)

// patience of a question. A lost SYN is sent again after a second, a lost
// datagram never; a machine without a CPU to spare was seen to stop for six.
const patience = 15 * time.Second

// resend is when a resolver asks again.
const resend = time.Second

// resendsMost leave room for a machine that stops for a while.
const resendsMost = 3

// paths are where connections come from and what they ask: see
// test/resilience/paths_test.go.
var paths = []struct {
	member   string
	nodePort bool
}{{"client", false}, {"bypass", false}, {"outside", true}, {"host1", false}, {"host1", true}}

// load starts new connections and held ones on every path and family.
func (w *town) load() (loads []*traffic.Process) {
	w.t.Helper()
	pace := time.Millisecond
	if w.mode == "ipvs" { // in an emulated machine
		pace *= 2
	}
	for _, p := range paths {
		plan := traffic.Plan{Patience: patience}
		for i, ip := range w.steady.Spec.ClusterIPs {
			at := netip.AddrPortFrom(netip.MustParseAddr(ip), 80)
			if p.nodePort {
				at = netip.AddrPortFrom([]netip.Addr{w.node.PrimaryIPv4, w.node.PrimaryIPv6}[i], uint16(w.steady.Spec.Ports[0].NodePort))
			}
			to := []netip.AddrPort{at}
			plan.Streams = append(plan.Streams,
				traffic.Stream{Mode: traffic.TCPFresh, To: to, Every: 60 * pace},
				traffic.Stream{Mode: traffic.TCPHeld, To: to, Every: 150 * pace},
				traffic.Stream{Mode: traffic.TCPHeld, To: to, Every: 150 * pace})
			if p.nodePort { // of UDP the port is another
				at = netip.AddrPortFrom(at.Addr(), uint16(w.steady.Spec.Ports[1].NodePort))
				to = []netip.AddrPort{at}
			}
			plan.Streams = append(plan.Streams,
				traffic.Stream{Mode: traffic.UDPFresh, To: to, Every: 100 * pace},
				traffic.Stream{Mode: traffic.UDPSendto, To: to, Every: 150 * pace},
				traffic.Stream{Mode: traffic.UDPHeld, To: to, Every: 150 * pace})
		}
		m := w.member(p.member)
		l, err := traffic.Start(p.member, m.PID, m.CgroupDir, plan)
		if err != nil {
			w.t.Fatal(err)
		}
		w.t.Cleanup(func() { _, _ = l.Stop() })
		loads = append(loads, l)
	}
	return loads
}

// datagrams starts one UDP socket on each path inside the node that goes on to
// ask a Service.
func (w *town) datagrams(s *corev1.Service) (loads []*traffic.Process) {
	w.t.Helper()
	for _, name := range []string{"client", "bypass", "host1"} {
		plan := traffic.Plan{Patience: patience}
		for _, ip := range s.Spec.ClusterIPs {
			to := []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr(ip), 80)}
			plan.Streams = append(plan.Streams, traffic.Stream{Mode: traffic.UDPHeld, To: to, Every: 50 * time.Millisecond, Resend: resend})
		}
		m := w.member(name)
		l, err := traffic.Start(name, m.PID, m.CgroupDir, plan)
		if err != nil {
			w.t.Fatal(err)
		}
		w.t.Cleanup(func() { _, _ = l.Stop() })
		loads = append(loads, l)
	}
	return loads
}

// answeredBy ends loads, whose last answers must be a pod's. An answer that is
// on its way from the Backend before when its flow ends is lost, so a socket may
// have to ask again, or be ended; most do not.
func (w *town) answeredBy(loads []*traffic.Process, pod string) {
	w.t.Helper()
	time.Sleep(settling + resend)
	m := w.member(pod)
	moved := 0
	for _, l := range loads {
		report, err := l.Stop()
		if err != nil {
			w.t.Error(err)
		}
		last, lost := map[uint16]*traffic.Record{}, map[uint16]int{}
		for i := range report.Records {
			r := &report.Records[i]
			switch {
			case r.Failure == "":
				last[r.Stream] = r
				lost[r.Stream] += int(r.Retransmits)
			case r.Again && w.wasEnded(r.Failure):
				lost[r.Stream]++
			default:
				w.t.Errorf("%s: %s", l.Question(r), r.Failure)
			}
		}
		for id, r := range last {
			if a := l.Server(r).Addr(); a != m.IPv4 && a != m.IPv6 {
				w.t.Errorf("%s: answered by %v still, which is no Backend any more", l.Question(r), a)
			} else if lost[id] > resendsMost {
				w.t.Errorf("%s: %d times asked again", l.Question(r), lost[id])
			} else if lost[id] == 0 {
				moved++
			}
		}
		if len(last) != len(l.Plan.Streams) {
			w.t.Errorf("load from %s: answers of %d sockets, want %d", l.Name, len(last), len(l.Plan.Streams))
		}
	}
	if moved == 0 {
		w.t.Error("no UDP socket of before was moved off its Backend")
	}
}

// verdict is what came of loads.
type verdict struct {
	connections, questions, retransmitted, ended int
	slowest                                      time.Duration
	failures                                     []string
}

func (v verdict) String() string {
	return fmt.Sprintf("%d new connections and %d questions over held ones, %d SYNs sent again, %d held UDP sockets ended once, slowest answer %v, %d failed",
		v.connections, v.questions, v.retransmitted, v.ended, v.slowest.Round(time.Millisecond/10), len(v.failures))
}

// judge ends loads. Each question that was asked since a time, which is when
// kube-proxy was told to stop, must have been answered by a Backend: what fails
// before is kube-proxy's. A held TCP connection must be one and the same. Held
// UDP sockets may be ended.
func (w *town) judge(loads []*traffic.Process, since int64) (v verdict) {
	for _, l := range loads {
		report, err := l.Stop()
		if err != nil {
			v.failures = append(v.failures, err.Error())
		}
		connects := map[uint16]int{}
		for i := range report.Records {
			r := &report.Records[i]
			mode := l.Plan.Streams[r.Stream].Mode
			if r.Again {
				v.questions++
			} else {
				v.connections++
				connects[r.Stream]++
			}
			if r.Retransmits > 0 {
				v.retransmitted++
			}
			v.slowest = max(v.slowest, time.Duration(r.Took))
			switch {
			case r.Failure != "" && mode == traffic.UDPHeld && r.Again && w.wasEnded(r.Failure):
				v.ended++
			case r.Failure != "" && r.Start < since && !r.Again:
				w.t.Logf("while kube-proxy was alone: %s: %s", l.Question(r), r.Failure)
			case r.Failure != "":
				v.failures = append(v.failures, fmt.Sprintf("%s: want an answer, seen %s after %v", l.Question(r), r.Failure, time.Duration(r.Took)))
			case !slices.Contains(w.backends, l.Server(r)):
				v.failures = append(v.failures, fmt.Sprintf("%s: answered by %v, want one of %v", l.Question(r), l.Server(r), w.backends))
			}
		}
		for i, s := range l.Plan.Streams {
			if s.Mode == traffic.TCPHeld && connects[uint16(i)] != 1 {
				v.failures = append(v.failures, fmt.Sprintf("%s -> %v %s: want one connection, seen %d", l.Name, s.To, s.Mode, connects[uint16(i)]))
			}
		}
	}
	return v
}

// wasEnded: the socket was destroyed. Of IPVS the sender learns by a datagram that
// is refused: by the virtual server, or by IPVS itself where it is the first.
func (w *town) wasEnded(failure string) bool {
	ends := []error{unix.ECONNABORTED, unix.EDESTADDRREQ}
	if w.mode == "ipvs" {
		ends = append(ends, unix.ECONNREFUSED, unix.EPERM)
	}
	return slices.ContainsFunc(ends, func(err error) bool { return strings.Contains(failure, err.Error()) })
}
