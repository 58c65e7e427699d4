// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"cmp"
	"fmt"
	"slices"

	mobyipvs "github.com/moby/ipvs"

	"fairlead.dev/dataplane"
)

// stats are those of each of our virtual servers.
func (k *kernel) stats() (map[uint32]mobyipvs.SvcStats, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	list, err := k.handle.GetServices()
	if err != nil {
		return nil, fmt.Errorf("list virtual servers: %w", err)
	}
	out := map[uint32]mobyipvs.SvcStats{}
	for _, s := range list {
		if s.FWMark != 0 && k.marks.ours(s.FWMark) {
			out[s.FWMark] = s.Stats
		}
	}
	return out, nil
}

// countersOf sums the servers of each Service port.
func countersOf(found decoded, stats map[uint32]mobyipvs.SvcStats) []dataplane.CounterRow {
	marks := map[uint32]map[uint32]bool{}
	add := func(id, mark uint32) {
		if marks[id] == nil {
			marks[id] = map[uint32]bool{}
		}
		marks[id][mark] = true
	}
	for _, f := range found.frontends {
		for _, mark := range f.marks {
			add(f.port, mark)
		}
	}
	for id, homes := range found.homes {
		for _, mark := range homes {
			add(id, mark)
		}
	}
	rows := []dataplane.CounterRow{}
	for id, name := range found.names {
		row := dataplane.CounterRow{Service: name.service.String(), PortName: name.port}
		for mark := range marks[id] {
			addStats(&row, stats[mark])
		}
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b dataplane.CounterRow) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.PortName, b.PortName))
	})
	return rows
}

func addStats(row *dataplane.CounterRow, s mobyipvs.SvcStats) {
	row.Connections += uint64(s.Connections)
	row.ForwardPackets += uint64(s.PacketsIn)
	row.ForwardBytes += s.BytesIn
	row.ReversePackets += uint64(s.PacketsOut)
	row.ReverseBytes += s.BytesOut
}

func compareAffinity(a, b dataplane.AffinityRow) int {
	return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.PortName, b.PortName), cmp.Compare(a.Client, b.Client))
}
