// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"net/netip"
	"time"
)

// Tracer hears of decisions as they are made, from the kernel and without the
// agent.
type Tracer interface {
	// Trace calls each for every decision that o asks for, until ctx ends, one
	// at a time. lost counts those that were beyond o.PerSecond, or came faster
	// than each returned.
	Trace(ctx context.Context, o TraceOptions, each func(Decision)) (lost uint64, err error)
	Close() error
}

// TraceOptions say which decisions. The zero value but for PerSecond asks for
// all that are made, none that only follow one.
type TraceOptions struct {
	// Wants tells whether the decisions of a Service port are asked for; nil:
	// of all, and those that belong to none.
	Wants func(service ServiceName, portName string) bool
	// OnlyDrops leaves out what was let through.
	OnlyDrops bool
	// KnownFlows asks for each packet of a flow, not its first alone.
	KnownFlows bool
	// PerSecond bounds how many a second are heard of.
	PerSecond uint32
}

// Kinds of Decision.
const (
	DecisionNew      = "new"      // a Backend was chosen
	DecisionAffinity = "affinity" // the client's Backend was taken again
	DecisionKnown    = "known"    // a packet went the way of its flow
	DecisionRejected = "rejected" // refused: RST, ICMP or ECONNREFUSED
	DecisionDropped  = "dropped"  // dropped without an answer
)

// Decision is what became of a packet or of a connect().
type Decision struct {
	Time time.Time `json:"time"`
	Kind string    `json:"kind"`
	// Path is where it was made: socket, tc or netfilter.
	Path string `json:"path"`
	// From is by which side a packet came: uplink, pod or host; empty for a
	// socket, and where the kernel does not tell.
	From     string `json:"from,omitempty"`
	Protocol string `json:"protocol"`
	// Client's port is 0 for a socket that has none yet; its address is not
	// valid where the kernel does not know it yet.
	Client netip.AddrPort `json:"client"`
	// Frontend is where the packet or the socket wanted to go, also where that
	// is no Service's.
	Frontend netip.AddrPort `json:"frontend"`
	Backend  netip.AddrPort `json:"backend"`
	// Service is namespace/name, empty where Frontend is no Service's.
	Service  string `json:"service"`
	PortName string `json:"portName"`
	// Reason of a rejection or a drop, as in fairlead_drops_total.
	Reason string `json:"reason,omitempty"`
	// Masquerade: the Backend does not see the client's address.
	Masquerade bool `json:"masquerade"`
	// PID and Command are the process's whose socket it was.
	PID     uint32 `json:"pid,omitempty"`
	Command string `json:"command,omitempty"`
}
