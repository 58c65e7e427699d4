// SPDX-License-Identifier: Apache-2.0

package probe

import "container/heap"

// queue orders entries by when they are due.
type queue struct{ h entryHeap }

// push says whether the entry is the first one now.
func (q *queue) push(e *entry) bool {
	if e.index < 0 {
		heap.Push(&q.h, e)
	}
	return e.index == 0
}

func (q *queue) remove(e *entry) {
	if e.index >= 0 {
		heap.Remove(&q.h, e.index)
	}
}

func (q *queue) first() *entry {
	if len(q.h) == 0 {
		return nil
	}
	return q.h[0]
}

type entryHeap []*entry

func (h entryHeap) Len() int           { return len(h) }
func (h entryHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h entryHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *entryHeap) Push(x any) {
	e := x.(*entry)
	e.index = len(*h)
	*h = append(*h, e)
}

func (h *entryHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	e.index = -1
	return e
}
