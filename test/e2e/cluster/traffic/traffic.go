// SPDX-License-Identifier: Apache-2.0

// Package traffic is what a cluster test and its clients say to each other.
package traffic

import (
	"fmt"
	"strings"
	"time"
)

// Mode is how a question is asked.
type Mode string

// The modes. A held connection is made once for all questions of a stream, and
// its loss is a failure.
const (
	TCP     Mode = "tcp"
	UDP     Mode = "udp"
	Held    Mode = "held"
	HeldUDP Mode = "held-udp"
)

// Question is asked once.
type Question struct {
	Mode   Mode
	To     string        // HOST:PORT
	Within time.Duration // 0: ten seconds
}

// Answer is what the server said, or why there is no answer.
type Answer struct {
	Server, Node, Client string
	Failure              string
	// Moved: a UDP socket was ended since its server was no endpoint any more,
	// and the question was asked again.
	Moved bool
}

// Stream is a series of questions, one after another.
type Stream struct {
	Mode   Mode
	To     string
	Every  time.Duration // from one to the next
	Within time.Duration // for each; 0: ten seconds
}

// Plan is a load.
type Plan struct{ Streams []Stream }

// Report is what came of a load.
type Report struct{ Streams []StreamReport }

// StreamReport is what came of one stream.
type StreamReport struct {
	Stream
	Asked, Failed int
	Moved, Slow   int
	Longest       time.Duration
	Servers       map[string]int // answers by Pod
	Failures      []string       // the first ones
}

// Totals are the questions, and those that failed.
func (r Report) Totals() (asked, failed int, longest time.Duration) {
	for _, s := range r.Streams {
		asked, failed, longest = asked+s.Asked, failed+s.Failed, max(longest, s.Longest)
	}
	return asked, failed, longest
}

// Moved counts questions of UDP sockets that were moved off their server.
func (r Report) Moved() (n int) {
	for _, s := range r.Streams {
		n += s.Moved
	}
	return n
}

// Slow counts the answers that took a second and more: a packet was lost on the
// way and sent again, or the machine is busy.
func (r Report) Slow() (n int) {
	for _, s := range r.Streams {
		n += s.Slow
	}
	return n
}

// Failures are the failures of all streams, each with what was asked.
func (r Report) Failures() string {
	var b strings.Builder
	for _, s := range r.Streams {
		for _, f := range s.Failures {
			fmt.Fprintf(&b, "%s %s: %s\n", s.Mode, s.To, f)
		}
	}
	return b.String()
}
