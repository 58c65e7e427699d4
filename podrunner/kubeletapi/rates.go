// SPDX-License-Identifier: Apache-2.0

package kubeletapi

import (
	"sync"
	"time"
)

// rateLeast is the shortest time over which CPU is averaged, and rateForget
// after what time without a question a sample is dropped.
const (
	rateLeast  = time.Second
	rateForget = 10 * time.Minute
)

// rates makes the present use of CPU out of what was used in all, between two
// questions.
type rates struct {
	mu   sync.Mutex
	last map[string]cpuSample
}

type cpuSample struct {
	used  uint64 // nanoseconds of a core, in all
	at    time.Time
	rate  uint64 // nanoseconds of a core in a second
	known bool
}

// of is the rate of one id; nil at the first question, since nothing is known
// yet.
func (r *rates) of(id string, used uint64, at time.Time) *uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	old, ok := r.last[id]
	switch passed := at.Sub(old.at); {
	case !ok || used < old.used:
		r.last[id] = cpuSample{used: used, at: at}
		return nil
	case passed >= rateLeast:
		old = cpuSample{used: used, at: at, known: true,
			rate: uint64(float64(used-old.used) / passed.Seconds())}
		r.last[id] = old
	}
	if !old.known {
		return nil
	}
	return &old.rate
}

func (r *rates) prune() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, s := range r.last {
		if time.Since(s.at) > rateForget {
			delete(r.last, id)
		}
	}
}
