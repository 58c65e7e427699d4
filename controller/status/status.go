// SPDX-License-Identifier: Apache-2.0

// Package status is one node at a glance: what `fairlead status` prints and the
// status page shows. It is made from the agent's metrics, or from what the
// kernel holds, and knows how to look in text and in HTML. It asks nobody.
package status

import (
	"cmp"
	"slices"
	"time"

	"fairlead.dev/dataplane"
)

// Status is one node. Its JSON is a contract, as dump's is.
type Status struct {
	Dataplane string `json:"dataplane"`
	// Services, Frontends and Backends are what is in force; a Backend counts
	// once for each row of dump that has it.
	Services  int `json:"services"`
	Frontends int `json:"frontends"`
	Backends  int `json:"backends"`
	// Traffic are the Service ports with traffic, those with most connections
	// first. Drops are the reasons that were given at least once.
	Traffic []Traffic           `json:"traffic"`
	Drops   []dataplane.DropRow `json:"drops"`
	// Agent is nil where none answers; AgentError says why.
	Agent      *Agent `json:"agent"`
	AgentError string `json:"agentError,omitempty"`
}

// Traffic is what went through one Service port since its Service came. Packets
// and bytes are those of the packet path, both ways.
type Traffic struct {
	Service     string `json:"service"`
	PortName    string `json:"portName"`
	Connections uint64 `json:"connections"`
	Packets     uint64 `json:"packets"`
	Bytes       uint64 `json:"bytes"`
}

// Agent is what only the process knows.
type Agent struct {
	Version         string `json:"version"`
	Source          string `json:"source"`
	SourceConnected bool   `json:"sourceConnected"`
	// SourceProblems, Problems and FailedServices count what is not in force as
	// written: unreadable, refused, not taken by the kernel.
	SourceProblems int `json:"sourceProblems"`
	Problems       int `json:"problems"`
	FailedServices int `json:"failedServices"`
	// Pending are changes that have arrived and are not in force.
	Pending int `json:"pending"`
	// LastSync is when the kernel was last brought in line; zero: never.
	LastSync time.Time `json:"lastSync"`
	// LastChangeSeconds is how long the last change that arrived took until it
	// was in force here.
	LastChangeSeconds float64 `json:"lastChangeSeconds"`
	// ProgrammingP99Seconds is from an endpoint's change until it was in force
	// here, by way of the control plane; nil where no change said when it began.
	ProgrammingP99Seconds *float64 `json:"programmingP99Seconds"`
	DriftRepaired         uint64   `json:"driftRepaired"`
	Maps                  []Map    `json:"maps"`
}

// Map is a kernel map's fill, in entries.
type Map struct {
	Name    string `json:"name"`
	Entries int    `json:"entries"`
	Max     int    `json:"max"`
}

// Percent is the fill, 0 to 100.
func (m Map) Percent() float64 {
	if m.Max <= 0 {
		return 0
	}
	return 100 * float64(m.Entries) / float64(m.Max)
}

// FromKernel is what can be said without an agent.
func FromKernel(d dataplane.Dump, counters []dataplane.CounterRow, drops []dataplane.DropRow) *Status {
	s := &Status{Dataplane: d.Dataplane}
	services, frontends := map[string]bool{}, map[dataplane.FrontendKey]bool{}
	for i := range d.Frontends {
		r := &d.Frontends[i]
		services[r.Service] = true
		// What does not parse is no Frontend of ours, and counts for none.
		if p, err := dataplane.ParseProtocol(r.Protocol); err == nil {
			frontends[dataplane.FrontendKey{Address: r.Address, Port: r.Port, Protocol: p}] = true
		}
		s.Backends += len(r.Backends)
	}
	s.Services, s.Frontends = len(services), len(frontends)
	for _, c := range counters {
		s.Traffic = append(s.Traffic, Traffic{
			Service: c.Service, PortName: c.PortName, Connections: c.Connections,
			Packets: c.ForwardPackets + c.ReversePackets, Bytes: c.ForwardBytes + c.ReverseBytes,
		})
	}
	s.Drops = drops
	s.tidy()
	return s
}

// tidy leaves out what is zero, and sorts.
func (s *Status) tidy() {
	s.Traffic = slices.DeleteFunc(s.Traffic, func(t Traffic) bool { return t.Connections == 0 && t.Packets == 0 })
	slices.SortFunc(s.Traffic, func(a, b Traffic) int {
		return cmp.Or(cmp.Compare(b.Connections, a.Connections), cmp.Compare(b.Packets, a.Packets),
			cmp.Compare(a.Service, b.Service), cmp.Compare(a.PortName, b.PortName))
	})
	s.Drops = slices.DeleteFunc(s.Drops, func(d dataplane.DropRow) bool { return d.Count == 0 })
	slices.SortFunc(s.Drops, func(a, b dataplane.DropRow) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Reason, b.Reason))
	})
	if s.Traffic == nil {
		s.Traffic = []Traffic{} // [] in JSON, never null
	}
	if s.Drops == nil {
		s.Drops = []dataplane.DropRow{}
	}
	if s.Agent != nil {
		slices.SortFunc(s.Agent.Maps, func(a, b Map) int { return cmp.Compare(a.Name, b.Name) })
		if s.Agent.Maps == nil {
			s.Agent.Maps = []Map{}
		}
	}
}
