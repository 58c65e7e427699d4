// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// slotsModel is what ranges should know, slot by slot.
type slotsModel struct {
	now  time.Time
	used []bool
	free []time.Time // when it was given back; zero: never handed out, or long ago
}

// room reports whether n slots in a row are free, and rested if so asked.
func (m *slotsModel) room(n uint32, rested bool) bool {
	run := uint32(0)
	for i := range m.used {
		if run++; !m.mayHave(i, rested) {
			run = 0
		}
		if run >= n {
			return true
		}
	}
	return false
}

func (m *slotsModel) mayHave(slot int, rested bool) bool {
	return !m.used[slot] && (!rested || m.now.Sub(m.free[slot]) >= quarantine)
}

// TestSlotsAreHandedOutWhileThereIsRoomAndRestFirst plays in so little room that
// freed runs have to be merged, and taken before they have rested.
func TestSlotsAreHandedOutWhileThereIsRoomAndRestFirst(t *testing.T) {
	saw := map[string]int{}
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.Uint32Range(1, 24).Draw(t, "slots")
		m := &slotsModel{now: time.Unix(1e9, 0), used: make([]bool, limit), free: make([]time.Time, limit)}
		r := newRanges(limit, func() time.Time { return m.now })
		var held []slotRange
		alloc := func(t *rapid.T) {
			n := rapid.Uint32Range(1, limit).Draw(t, "n")
			rested, any := m.room(n, true), m.room(n, false)
			got, ok := r.alloc(n)
			if ok != any {
				t.Fatalf("%d of %d slots: handed out is %t, and room is %t", n, limit, ok, any)
			}
			saw[map[bool]string{true: "rested", false: "unrested"}[rested]+map[bool]string{true: "", false: ", no room"}[any]]++
			if !rested { // nothing rests any longer
				clear(m.free)
			}
			if !ok {
				return
			}
			if got.n != n || got.end() > limit {
				t.Fatalf("%d of %d slots: got %+v", n, limit, got)
			}
			for i := got.base; i < got.end(); i++ {
				if !m.mayHave(int(i), true) {
					t.Fatalf("%d of %d slots: got %+v, of which %d is in use or has not rested, and other room is %t", n, limit, got, i, rested)
				}
				m.used[i] = true
			}
			held = append(held, got)
		}
		put := func(t *rapid.T) {
			if len(held) == 0 {
				return
			}
			i := rapid.IntRange(0, len(held)-1).Draw(t, "which")
			for slot := held[i].base; slot < held[i].end(); slot++ {
				m.used[slot], m.free[slot] = false, m.now
			}
			r.put(held[i])
			held = append(held[:i], held[i+1:]...)
		}
		t.Repeat(map[string]func(*rapid.T){
			"alloc": alloc, "again": alloc, "put": put,
			"wait": func(t *rapid.T) {
				m.now = m.now.Add(quarantine * time.Duration(rapid.IntRange(1, 4).Draw(t, "thirds")) / 3)
			},
			"restart": func(*rapid.T) { r.adopt(append([]slotRange(nil), held...)) },
			"": func(t *rapid.T) {
				sum := uint32(0)
				for _, h := range held {
					sum += h.n
				}
				for _, a := range r.aging {
					sum += a.n
				}
				if r.used != sum {
					t.Fatalf("%d slots are said to be used, and %d are", r.used, sum)
				}
			},
		})
	})
	t.Log(saw)
	for _, what := range []string{"rested", "unrested", "unrested, no room"} {
		if saw[what] == 0 {
			t.Errorf("nothing was asked for with room that is %s", what)
		}
	}
}
