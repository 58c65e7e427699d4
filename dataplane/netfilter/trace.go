// SPDX-License-Identifier: Apache-2.0

package netfilter

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/nfnetlink"
)

// Tracer listens to the kernel's conntrack: each flow that it begins to know
// is a decision. What is dropped or refused never becomes a flow, so of that it
// hears nothing.
type Tracer struct {
	rows func() ([]dataplane.Row, error)
	s    *socket
}

var _ dataplane.Tracer = (*Tracer)(nil)

// Errors of Trace for what conntrack does not tell.
var (
	errNoDrops = errors.New("the kernel's netfilter does not tell what it drops or refuses: see `fairlead dump counters`, or use the ebpf dataplane")
	errNoKnown = errors.New("the kernel's conntrack does not tell of packets of flows that are known: use the ebpf dataplane, or tcpdump")
)

// traceBuffer is the socket's receive buffer: what comes in while each works.
const traceBuffer = 4 << 20

// OpenTracer listens in the calling thread's network namespace, from now on.
// rows reads the rule table, to know whose a Frontend is.
func OpenTracer(rows func() ([]dataplane.Row, error)) (*Tracer, error) {
	s, err := openSocket()
	if err != nil {
		return nil, err
	}
	// Only root may go beyond the system's limit; less is only less.
	if unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, traceBuffer) != nil {
		_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, traceBuffer)
	}
	if err := unix.SetsockoptInt(s.fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.NFNLGRP_CONNTRACK_NEW); err != nil {
		s.close()
		return nil, fmt.Errorf("listen to new flows: %w", err)
	}
	return &Tracer{rows: rows, s: s}, nil
}

// Close stops listening.
func (t *Tracer) Close() error { return t.s.close() }

// Trace implements dataplane.Tracer. How many flows the kernel could not tell
// of is not known: each time that it happened counts as one.
func (t *Tracer) Trace(ctx context.Context, o dataplane.TraceOptions, each func(dataplane.Decision)) (lost uint64, err error) {
	switch {
	case o.OnlyDrops:
		return 0, errNoDrops
	case o.KnownFlows:
		return 0, errNoKnown
	}
	// So that the end of ctx is seen in time.
	if err := unix.SetsockoptTimeval(t.s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 200_000}); err != nil {
		return 0, fmt.Errorf("set up netfilter netlink socket: %w", err)
	}
	names := &tracedNames{rows: t.rows, lookup: Lookup(nil)}
	bound := rateBound{perSecond: o.PerSecond}
	for ctx.Err() == nil {
		n, _, err := unix.Recvfrom(t.s.fd, t.s.in, 0)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOBUFS):
			lost++
			continue
		case err != nil:
			return lost, fmt.Errorf("receive from netfilter: %w", err)
		}
		now := time.Now()
		eachNewFlow(t.s.in[:n], func(f *flow) {
			service, portName, ok, readErr := names.of(f.frontend(), now)
			err = errors.Join(err, readErr)
			if !ok || !asked(o, service, portName) {
				return
			}
			if !bound.passes(now) {
				lost++
				return
			}
			each(decisionOf(f, service, portName, now))
		})
		if err != nil {
			return lost, err
		}
	}
	return lost, nil
}

// asked: decisions of this Service port are wanted.
func asked(o dataplane.TraceOptions, service, portName string) bool {
	if o.Wants == nil {
		return true
	}
	name, err := dataplane.ParseServiceName(service)
	return err == nil && o.Wants(name, portName)
}

// eachNewFlow decodes the events of one datagram.
func eachNewFlow(b []byte, each func(*flow)) {
	var f flow
	for m, err := range nfnetlink.Messages(b) {
		if err == nil && m.Kind>>8 == unix.NFNL_SUBSYS_CTNETLINK && decode(m.Payload, &f) {
			each(&f)
		}
	}
}

func decisionOf(f *flow, service, portName string, now time.Time) dataplane.Decision {
	d := dataplane.Decision{
		Time: now, Kind: dataplane.DecisionNew, Path: "netfilter", Protocol: f.orig.protocol.String(),
		Client: f.orig.from, Frontend: f.orig.to,
		Service: service, PortName: portName, Masquerade: f.reply.to.Addr() != f.orig.from.Addr(),
	}
	if f.backend() != f.orig.to {
		d.Backend = f.backend()
	}
	return d
}

// tracedNames knows whose Frontends are, and reads the rule table again for one
// that it does not know: most flows of a node are no Service's, so reading has
// a twentieth of the time.
type tracedNames struct {
	rows   func() ([]dataplane.Row, error)
	next   time.Time // not read again before
	lookup func(dataplane.FrontendKey) (name, portName string, ok bool)
}

func (n *tracedNames) of(k dataplane.FrontendKey, now time.Time) (service, portName string, ok bool, err error) {
	if service, portName, ok = n.lookup(k); ok || now.Before(n.next) {
		return service, portName, ok, nil
	}
	rows, err := n.rows()
	if err != nil {
		return "", "", false, err
	}
	n.next = now.Add(max(time.Second, 20*time.Since(now)))
	n.lookup = Lookup(rows)
	service, portName, ok = n.lookup(k)
	return service, portName, ok, nil
}

// rateBound lets so many a second pass.
type rateBound struct {
	perSecond uint32
	second    int64
	sent      uint32
}

func (r *rateBound) passes(now time.Time) bool {
	if s := now.Unix(); s != r.second {
		r.second, r.sent = s, 0
	}
	if r.sent >= r.perSecond {
		return false
	}
	r.sent++
	return true
}
