// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"slices"
	"time"
)

// quarantine is how long a freed range or backend number is not used again: a
// program that read the old Frontend just before the switch still reads it.
// Programs run for microseconds; the margin is for a host that stops a vCPU.
const quarantine = 500 * time.Millisecond

// slotRange is a run of entries of the slots map.
type slotRange struct{ base, n uint32 }

func (r slotRange) end() uint32 { return r.base + r.n }

// ranges hands out runs of slots, first fit by size class, and keeps freed
// ones in quarantine.
type ranges struct {
	max   uint32
	used  uint32 // slots handed out or in quarantine
	next  uint32 // everything from here to max was never handed out
	free  map[uint32][]uint32
	holes []slotRange // sorted; freed runs that were merged
	aging []agingRange
	now   func() time.Time
}

type agingRange struct {
	slotRange
	freed time.Time
}

func newRanges(limit uint32, now func() time.Time) *ranges {
	return &ranges{max: limit, free: map[uint32][]uint32{}, now: now}
}

// alloc returns a run of n slots, false where there is no room.
func (r *ranges) alloc(n uint32) (slotRange, bool) {
	if n == 0 {
		return slotRange{}, true
	}
	r.release(r.now().Add(-quarantine))
	if got, ok := r.take(n); ok {
		return got, true
	}
	r.compact()
	if got, ok := r.take(n); ok {
		return got, true
	}
	// Rather a shorter quarantine than no programming at all.
	r.release(r.now())
	r.compact()
	return r.take(n)
}

func (r *ranges) take(n uint32) (slotRange, bool) {
	if list := r.free[n]; len(list) > 0 {
		base := list[len(list)-1]
		r.free[n] = list[:len(list)-1]
		r.used += n
		return slotRange{base, n}, true
	}
	if r.max-r.next >= n {
		got := slotRange{r.next, n}
		r.next += n
		r.used += n
		return got, true
	}
	for i, h := range r.holes {
		if h.n < n {
			continue
		}
		if h.n == n {
			r.holes = slices.Delete(r.holes, i, i+1)
		} else {
			r.holes[i] = slotRange{h.base + n, h.n - n}
		}
		r.used += n
		return slotRange{h.base, n}, true
	}
	return slotRange{}, false
}

// put gives a run back; it is handed out again after the quarantine.
func (r *ranges) put(s slotRange) {
	if s.n > 0 {
		r.aging = append(r.aging, agingRange{s, r.now()})
	}
}

func (r *ranges) release(freedBefore time.Time) {
	i := 0
	for i < len(r.aging) && !r.aging[i].freed.After(freedBefore) {
		s := r.aging[i].slotRange
		r.free[s.n] = append(r.free[s.n], s.base)
		r.used -= s.n
		i++
	}
	if i > 0 {
		r.aging = slices.Delete(r.aging, 0, i)
	}
}

// compact merges all free runs, also with what was never handed out, so that one
// of another size fits.
func (r *ranges) compact() {
	all := r.holes
	for n, list := range r.free {
		for _, base := range list {
			all = append(all, slotRange{base, n})
		}
	}
	clear(r.free)
	slices.SortFunc(all, func(a, b slotRange) int { return int(a.base) - int(b.base) })
	merged := all[:0]
	for _, s := range all {
		if k := len(merged); k > 0 && merged[k-1].end() == s.base {
			merged[k-1].n += s.n
			continue
		}
		merged = append(merged, s)
	}
	if k := len(merged); k > 0 && merged[k-1].end() == r.next {
		r.next = merged[k-1].base
		merged = merged[:k-1]
	}
	r.holes = merged
}

// adopt makes exactly the given runs the used ones. Runs must not overlap and
// lie below max.
func (r *ranges) adopt(used []slotRange) {
	aging := r.aging
	r.used, r.next, r.holes, r.aging = 0, 0, nil, nil
	clear(r.free)
	for _, a := range aging { // still read by nobody, but not sure yet
		used = append(used, a.slotRange)
	}
	slices.SortFunc(used, func(a, b slotRange) int { return int(a.base) - int(b.base) })
	for _, s := range used {
		if s.base > r.next {
			r.holes = append(r.holes, slotRange{r.next, s.base - r.next})
		}
		r.used += s.n
		r.next = max(r.next, s.end())
	}
	r.aging = aging
}

// numbers hands out small integers, oldest freed last, so that one is not used
// again soon.
type numbers struct {
	max  uint32
	next uint32
	free []agingNumber // in the order freed
	now  func() time.Time
}

type agingNumber struct {
	n     uint32
	freed time.Time
}

func (n *numbers) alloc() (uint32, bool) {
	if len(n.free) > 0 && (n.next >= n.max || n.now().Sub(n.free[0].freed) > quarantine) {
		got := n.free[0].n
		n.free = n.free[1:]
		return got, true
	}
	if n.next >= n.max {
		return 0, false
	}
	n.next++
	return n.next - 1, true
}

func (n *numbers) put(i uint32) { n.free = append(n.free, agingNumber{i, n.now()}) }

// adopt makes exactly the numbers marked in used the ones handed out.
func (n *numbers) adopt(used []bool) {
	n.free, n.next = nil, 0
	for i := len(used) - 1; i >= 0; i-- {
		if used[i] {
			n.next = uint32(i) + 1
			break
		}
	}
	for i := uint32(0); i < n.next; i++ {
		if !used[i] {
			n.free = append(n.free, agingNumber{n: i})
		}
	}
}
