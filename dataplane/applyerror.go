// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"maps"
	"slices"
)

// Error names the first failed Service in order and counts the others.
func (e *ApplyError) Error() string {
	names := slices.SortedFunc(maps.Keys(e.Failed), ServiceName.Compare)
	if len(names) == 0 {
		return "no Service failed"
	}
	msg := fmt.Sprintf("program Service %s: %v", names[0], e.Failed[names[0]])
	if len(names) > 1 {
		msg += fmt.Sprintf(" (and %d more Services)", len(names)-1)
	}
	return msg
}

// Unwrap gives the causes to errors.Is and errors.As.
func (e *ApplyError) Unwrap() []error { return slices.Collect(maps.Values(e.Failed)) }
