// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"time"
)

var tcpFlowCases = []Case{
	{
		ID: "tcp-half-open-moved", Clause: "a connection that is being made to a removed Backend is moved to a live one or fails, long before it would time out",
		Protocols: tcpOnly, Clients: anywhere,
		Steps: func(s *Story) {
			web := s.service().nodePort().to(on("mute")...)
			s.apply(web)
			// SYNs are repeated after 1, 3 and 7 s, for two minutes in all. A busy
			// machine may miss the first two.
			const movedFor = 8 * time.Second
			q := s.ask(s.entry(web)).with(func(r *request) { r.Timeout = movedFor + 2*time.Second })
			type result struct {
				out []outcome
				err error
			}
			done := make(chan result, 1)
			client := s.member(q.who)
			go func() {
				out, err := client.do(call{Op: opAsk, Request: q.r})
				done <- result{out, err}
			}()
			time.Sleep(150 * time.Millisecond)
			s.apply(web.to(on("b")...))
			got := <-done
			if got.err != nil {
				s.t.Fatal(got.err)
			}
			o := got.out[0]
			moved := o.Failure == "" && o.Backend == "b" && o.Elapsed < movedFor
			ended := (o.Failure == refused || o.Failure == aborted || o.Failure == reset) && o.Elapsed < movedFor
			if !moved && !ended {
				q.fail(fmt.Sprintf("answer of b, or an error, within %v", movedFor), o.describe())
			}
		},
	},
	{
		ID: "tcp-long-transfer", Clause: "a megabyte each way arrives as sent, in segments of any size",
		Protocols: tcpOnly, Clients: anywhere,
		Steps: func(s *Story) {
			web := s.service().nodePort()
			for _, backend := range []string{"a", "d", "host1"} {
				s.apply(web.to(on(backend)...))
				s.ask(s.entry(web)).with(bulk(1 << 20)).reaches(backend)
			}
		},
	},
	{
		ID: "tcp-source-port-reused", Clause: "a client may use its source port again for the next connection, also when it reset the last one",
		Protocols: tcpOnly, Clients: []string{"bypass", "outside"},
		Steps: func(s *Story) {
			web := s.service().nodePort().to(on("a", "d")...)
			s.apply(web)
			from := s.freshPort()
			for range 8 {
				s.ask(s.entry(web)).from(from).reachesOneOf("a", "d")
			}
		},
	},
}

// bulk moves n bytes each way.
func bulk(n int) func(*request) {
	return func(r *request) {
		r.Times, r.Upload, r.Download, r.Timeout = 1, n, n, 5*time.Second
	}
}
