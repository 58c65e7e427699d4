// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"net/netip"
	"time"
)

var udpFlowCases = []Case{
	{
		ID: "udp-unconnected", Clause: "answers to an unconnected socket come from the Service address it sent to",
		Protocols: udpOnly, Clients: anywhere,
		Steps: func(s *Story) {
			web := s.service().nodePort().to(on("a", "d")...)
			s.apply(web)
			s.ask(s.entry(web)).with(func(r *request) { r.Unconnected = true }).reaches("a", "d")
		},
	},
	{
		ID: "udp-one-socket-two-services", Clause: "one unconnected socket can talk to several Services, whose answers come from each's address",
		Protocols: udpOnly, Clients: anywhere,
		Steps: func(s *Story) {
			first, second := s.service().nodePort().to(on("a")...), s.service().nodePort().to(on("a")...)
			second.targets[mainPort] = 8081
			s.apply(first, second)
			h := s.ask(s.entry(first)).with(func(r *request) { r.Unconnected = true }).servedAt(8080).open()
			for range 3 {
				h.r.To = s.entry(second)
				h.servedAt(8081).checkOne(h.again())
				h.r.To = s.entry(first)
				h.servedAt(8080).checkOne(h.again())
			}
		},
	},
	{
		ID: "udp-backend-removed", Clause: "a connected UDP socket of a removed Backend reaches a live one with its next datagram, or fails at once",
		Protocols: udpOnly, Clients: anywhere,
		Steps: func(s *Story) {
			web := s.service().nodePort()
			for _, gone := range []string{"a", "d"} {
				s.apply(web.to(on(gone)...))
				h := s.ask(s.entry(web)).open()
				s.apply(web.to(on("b")...))
				h.movesTo("b")
			}
		},
	},
	{
		ID: "udp-backend-recreated", Clause: "the same client address and port reaches the Backends of now, not those its flow had",
		Protocols: udpOnly, Clients: anywhere,
		Steps: func(s *Story) {
			web := s.service().nodePort()
			from := s.freshPort()
			for _, backend := range []string{"a", "d", "b", "a"} {
				s.apply(web.to(on(backend)...))
				q := s.ask(s.entry(web)).from(from)
				q.r.Times = 3
				q.reaches(backend)
			}
		},
	},
	{
		ID: "udp-scaled-to-zero", Clause: "a sender to a UDP Service that lost all endpoints gets an error at once, and answers when there are some again",
		Protocols: udpOnly, Clients: anywhere,
		Steps: func(s *Story) {
			web := s.service().nodePort().to(on("a")...)
			s.apply(web)
			h := s.ask(s.entry(web)).open()
			s.apply(web.to())
			o := h.afterMove("a")
			if o.Failure != refused && o.Failure != aborted || o.Elapsed > atOnce {
				h.fail("an error at once on the connected socket", o.describe())
			}
			s.ask(s.entry(web)).refusedAtOnce()
			s.apply(web.to(on("b")...))
			s.ask(s.entry(web)).reaches("b")
			if o.Failure == refused {
				h.movesTo("b")
			}
		},
	},
	{
		ID: "udp-started-without-backends", Clause: "a flow that began when there was no endpoint is served when there is one",
		Protocols: udpOnly, Clients: anywhere,
		Steps: func(s *Story) {
			web := s.service().nodePort()
			from := s.freshPort()
			s.apply(web)
			s.ask(s.entry(web)).from(from).refusedAtOnce()
			s.apply(web.to(on("d")...))
			s.ask(s.entry(web)).from(from).with(func(r *request) { r.Times = 1 }).reaches("d")
		},
	},
	{
		ID: "udp-service-deleted", Clause: "a flow of a deleted Service is not carried on to its Backend",
		Protocols: udpOnly, Clients: []string{"bypass", "outside"},
		Steps: func(s *Story) {
			web := s.service().nodePort().to(on("a")...)
			s.apply(web)
			h := s.ask(s.entry(web)).open()
			s.remove(web)
			h.r.Timeout = silentFor
			if o := h.again(); o.Failure == "" {
				h.fail("no answer", o.describe())
			}
		},
	},
}

// bindAddress is what the variant's client binds to choose its port.
func (s *Story) bindAddress() netip.Addr {
	if s.client == "host1" {
		// A node has several: let the kernel choose by the route.
		if s.family == IPv6 {
			return netip.IPv6Unspecified()
		}
		return netip.IPv4Unspecified()
	}
	return s.addressOf(s.client)
}

// afterMove asks again until the removed Backend no longer answers.
func (h *heldConnection) afterMove(removed string) outcome {
	h.story.t.Helper()
	for deadline := time.Now().Add(movedWithin); ; time.Sleep(time.Millisecond) {
		o := h.again()
		if o.Failure != "" || o.Backend != removed || time.Now().After(deadline) {
			return o
		}
	}
}

// movesTo expects the next datagrams to be answered by a live Backend, or an
// error at once after which a new socket is.
func (h *heldConnection) movesTo(backend string) {
	h.story.t.Helper()
	o := h.afterMove(h.backend)
	switch {
	case o.Failure == "" && o.Backend == backend:
		return
	case (o.Failure == refused || o.Failure == aborted) && o.Elapsed <= atOnce:
		q := *h.asking
		q.reaches(backend)
		return
	}
	h.fail("answer of "+backend+" or an error at once", o.describe())
}
