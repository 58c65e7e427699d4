// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"os"
)

// share is the part of a table that this process plays, so that machines which
// are slow can share it: FAIRLEAD_CONFORMANCE_SHARE is "2/3" for the second of
// three parts, or "one" for one variant of each case. The cases of a table take
// turns in which of their variants that is, so that all clients, protocols and
// families come up. What is in no share of this process's is not counted.
type share struct {
	one      bool
	part, of int
	seen     int
}

func shareOfThisProcess() (*share, error) {
	text := os.Getenv("FAIRLEAD_CONFORMANCE_SHARE")
	s := &share{part: 1, of: 1}
	switch text {
	case "":
		return s, nil
	case "one":
		s.one = true
		return s, nil
	}
	if n, err := fmt.Sscanf(text, "%d/%d", &s.part, &s.of); n != 2 || err != nil || s.part < 1 || s.part > s.of {
		return nil, fmt.Errorf(`FAIRLEAD_CONFORMANCE_SHARE=%q: want "one", or "PART/PARTS" such as "2/3"`, text)
	}
	return s, nil
}

// of a case's variants, those to play.
func (s *share) variants(caseNumber int, all []variant) []variant {
	if s.one {
		i := caseNumber % len(all)
		return all[i : i+1]
	}
	var mine []variant
	for _, v := range all {
		if s.seen++; s.seen%s.of == s.part-1 {
			mine = append(mine, v)
		}
	}
	return mine
}
