// SPDX-License-Identifier: Apache-2.0

package netfilter

import (
	"cmp"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"fairlead.dev/dataplane"
)

// States of enum tcp_conntrack (linux/netfilter/nf_conntrack_tcp.h).
const (
	tcpSynSent     = 1
	tcpSynRecv     = 2
	tcpEstablished = 3
	tcpSynSent2    = 9 // both ends opened
)

// States of enum sctp_conntrack (linux/netfilter/nf_conntrack_sctp.h).
const (
	sctpClosed        = 1 // before the answer to INIT, too
	sctpCookieWait    = 2
	sctpCookieEchoed  = 3
	sctpEstablished   = 4
	sctpHeartbeatSent = 8
)

// opening reports whether a TCP or SCTP flow is not established yet.
func (f *flow) opening() bool {
	switch f.orig.protocol {
	case dataplane.TCP:
		return f.state == tcpSynSent || f.state == tcpSynRecv || f.state == tcpSynSent2
	case dataplane.SCTP:
		return f.state == sctpClosed && f.status&statusSeenReply == 0 || f.state == sctpCookieWait || f.state == sctpCookieEchoed || f.state == sctpHeartbeatSent
	}
	return false
}

// Flows lists the flows whose original destination is a Frontend of a Service,
// sorted by it. service tells whose a Frontend is. What conntrack does not
// know is left to the caller: Scope is empty, and State is stale only where a
// flow is not translated at all. Ages need nf_conntrack_timestamp=1, else they
// are 0.
func (c *Conntrack) Flows(service func(dataplane.FrontendKey) (name, portName string, ok bool)) ([]dataplane.ConntrackRow, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	rows := []dataplane.ConntrackRow{}
	now := time.Now()
	err := c.dump(selection{}, func(f *flow) {
		if name, portName, ok := service(f.frontend()); ok {
			r := c.row(f, now)
			r.Service, r.PortName = name, portName
			rows = append(rows, r)
		}
	})
	slices.SortFunc(rows, func(a, b dataplane.ConntrackRow) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.PortName, b.PortName), cmp.Compare(a.Protocol, b.Protocol),
			a.Frontend.Compare(b.Frontend), a.Client.Compare(b.Client))
	})
	return rows, err
}

// Lookup gives Flows its argument from the rows of a Dump.
func Lookup(rows []dataplane.Row) func(dataplane.FrontendKey) (name, portName string, ok bool) {
	type names struct{ service, portName string }
	of := make(map[dataplane.FrontendKey]names, len(rows))
	for i := range rows {
		r := &rows[i]
		if p, err := dataplane.ParseProtocol(r.Protocol); err == nil {
			of[dataplane.FrontendKey{Address: r.Address, Port: r.Port, Protocol: p}] = names{r.Service, r.PortName}
		}
	}
	return func(k dataplane.FrontendKey) (string, string, bool) {
		n, ok := of[k]
		return n.service, n.portName, ok
	}
}

func (c *Conntrack) row(f *flow, now time.Time) dataplane.ConntrackRow {
	r := dataplane.ConntrackRow{
		Protocol: f.orig.protocol.String(), Client: f.orig.from, Frontend: f.orig.to, Backend: f.backend(), State: f.stateName(),
	}
	if f.reply.to != f.orig.from {
		r.Masquerade = f.reply.to.String()
	}
	if whole := c.timeouts.of(f); whole > f.timeout {
		r.IdleSeconds = whole - f.timeout - 1 // what is left comes rounded down
	}
	if began := time.Unix(0, int64(f.start)); f.start != 0 && now.After(began) {
		r.AgeSeconds = uint32(now.Sub(began) / time.Second)
	}
	return r
}

// stateName is the state in the words of dataplane.ConntrackRow.
func (f *flow) stateName() string {
	if f.backend() == f.orig.to {
		return "stale"
	}
	switch f.orig.protocol {
	case dataplane.TCP, dataplane.SCTP:
		established := f.orig.protocol == dataplane.TCP && f.state == tcpEstablished ||
			f.orig.protocol == dataplane.SCTP && f.state == sctpEstablished
		switch {
		case f.opening():
			return "new"
		case established:
			return "established"
		}
		return "closing"
	}
	if f.status&statusSeenReply != 0 {
		return "established"
	}
	return "new"
}

// timeouts are the seconds after which the kernel forgets an idle flow, by the
// name of their sysctl below net.netfilter.nf_conntrack_. A flow's own timeout
// counts down from there, which is how long it is idle.
type timeouts map[string]uint32

const sysctlPrefix = "/proc/sys/net/netfilter/nf_conntrack_"

// readTimeouts reads those of the calling thread's network namespace. One that
// is not there leaves the flows it is for without an idle time.
func readTimeouts() timeouts {
	t := timeouts{}
	paths, _ := filepath.Glob(sysctlPrefix + "*_timeout*")
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		if n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32); err == nil {
			t[strings.TrimPrefix(path, sysctlPrefix)] = uint32(n)
		}
	}
	return t
}

var tcpTimeouts = [...]string{
	1: "syn_sent", "syn_recv", "established", "fin_wait", "close_wait", "last_ack", "time_wait", "close", "syn_sent",
}

var sctpTimeouts = [...]string{
	1: "closed", "cookie_wait", "cookie_echoed", "established", "shutdown_sent", "shutdown_recd", "shutdown_ack_sent", "heartbeat_sent",
}

func (t timeouts) of(f *flow) uint32 {
	switch p := f.orig.protocol; {
	case p == dataplane.TCP && int(f.state) < len(tcpTimeouts):
		return t["tcp_timeout_"+tcpTimeouts[f.state]]
	case p == dataplane.SCTP && int(f.state) < len(sctpTimeouts):
		return t["sctp_timeout_"+sctpTimeouts[f.state]]
	case p == dataplane.UDP && f.status&statusAssured != 0:
		return t["udp_timeout_stream"]
	case p == dataplane.UDP:
		return t["udp_timeout"]
	}
	return 0
}
