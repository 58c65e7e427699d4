// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"os"
)

// share is the part of a table that this process plays, so that machines which
// are slow can share it: FAIRLEAD_CONFORMANCE_SHARE is "2/3" for the second of
// three parts, or "one" for one variant of each case: the one whose client came
// up least so far, so that all clients, protocols and families do. What is in no
// share of this process's is not counted.
type share struct {
	one      bool
	part, of int
	seen     int
	met      map[string]int // how often a client, protocol or family came up
}

func shareOfThisProcess() (*share, error) {
	text := os.Getenv("FAIRLEAD_CONFORMANCE_SHARE")
	s := &share{part: 1, of: 1, met: map[string]int{}}
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
		return []variant{s.rarest(caseNumber, all)}
	}
	var mine []variant
	for _, v := range all {
		if s.seen++; s.seen%s.of == s.part-1 {
			mine = append(mine, v)
		}
	}
	return mine
}

// rarest gives the variant that is most unlike those before. Among equals the
// cases take turns.
func (s *share) rarest(caseNumber int, all []variant) variant {
	least := all[caseNumber%len(all)]
	for _, v := range all {
		if s.rank(v) < s.rank(least) {
			least = v
		}
	}
	s.met[least.client]++
	s.met[least.protocol]++
	s.met[string(least.family)]++
	return least
}

// rank orders by client, then by protocol and family.
func (s *share) rank(v variant) int {
	return s.met[v.client]<<20 + s.met[v.protocol] + s.met[string(v.family)]
}
