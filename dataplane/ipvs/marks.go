// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"errors"

	"fairlead.dev/dataplane"
)

// A mark names a virtual server: the prefix, one bit for UDP, and a number. The
// bit tells an agent that starts which servers hold flows that must not drain.
const (
	markUDP     = 1 << 23
	markNumbers = markUDP - 1
)

// sentinelNumber is of a virtual server without destinations, which is there
// as long as nobody flushes IPVS.
const sentinelNumber = markNumbers

var errNumbers = errors.New("no number is free: the node has 8 million BackendSets or Service ports")

// numbers gives out numbers from 1. One that was given back is not used again
// soon: what still remembers it must not meet another's.
type numbers struct {
	used map[uint32]bool
	last uint32
}

func newNumbers() *numbers { return &numbers{used: map[uint32]bool{}} }

func (n *numbers) take() (uint32, error) {
	for range markNumbers {
		n.last++
		if n.last >= sentinelNumber {
			n.last = 1
		}
		if !n.used[n.last] {
			n.used[n.last] = true
			return n.last, nil
		}
	}
	return 0, errNumbers
}

// claim takes a number that is found in use.
func (n *numbers) claim(number uint32) {
	n.used[number] = true
	n.last = max(n.last, number)
}

func (n *numbers) free(number uint32) { delete(n.used, number) }

// marks make marks of numbers.
type marks struct{ prefix uint32 }

func (o Options) marks() marks { return marks{uint32(o.MarkPrefix) << 24} }

func (m marks) ours(mark uint32) bool { return mark&^0xffffff == m.prefix }

func (m marks) sentinel() uint32 { return m.prefix | sentinelNumber }

func (m marks) of(number uint32, p dataplane.Protocol) uint32 {
	mark := m.prefix | number
	if p == dataplane.UDP {
		mark |= markUDP
	}
	return mark
}

func numberOf(mark uint32) uint32 { return mark & markNumbers }

func isUDP(mark uint32) bool { return mark&markUDP != 0 }
