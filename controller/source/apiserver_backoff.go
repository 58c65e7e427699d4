// SPDX-License-Identifier: Apache-2.0

package source

import (
	"math/rand/v2"
	"time"
)

// backoff spaces attempts to reconnect: exponentially from min to max, with
// jitter, so that the agents of a cluster do not return in one instant.
type backoff struct {
	min, max time.Duration
	attempt  int
}

// next returns the pause after a connection that lasted lived. failed is false
// where the server ended it in good order, as it does every few minutes. A
// connection that lasted longer than max starts the sequence anew.
func (b *backoff) next(lived time.Duration, failed bool) time.Duration {
	if lived > b.max {
		b.attempt = 0
		if !failed {
			return 0
		}
	}
	d := b.min << min(b.attempt, 20)
	if d <= 0 || d >= b.max {
		d = b.max
	} else {
		b.attempt++
	}
	return d/2 + rand.N(d/2+1)
}
