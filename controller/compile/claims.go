// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"cmp"
	"slices"

	"fairlead.dev/dataplane"
)

// claims says who has each FrontendKey. Of several owners that want one, the
// oldest has it, and among those of one age the first by namespace and name:
// a function of the owners, not of the order in which they came.
type claims struct {
	winner map[dataplane.FrontendKey]*owner
	// contested has all claimants of the keys that more than one wants.
	contested map[dataplane.FrontendKey][]*owner
}

func newClaims() claims {
	return claims{winner: map[dataplane.FrontendKey]*owner{}, contested: map[dataplane.FrontendKey][]*owner{}}
}

func compareOwners(a, b *owner) int {
	return cmp.Or(cmp.Compare(a.rank, b.rank), a.name.Compare(b.name))
}

// update moves o's claims from the keys it had to those it wants, both sorted.
// reranked says that o's age changed. touch is called for each other owner that
// won or lost a key, or lost it to someone else than before.
func (c *claims) update(o *owner, had []dataplane.FrontendKey, ws []want, reranked bool, touch func(*owner)) {
	i, j := 0, 0
	for i < len(had) || j < len(ws) {
		order := 0
		switch {
		case i == len(had):
			order = 1
		case j == len(ws):
			order = -1
		default:
			order = had[i].Compare(ws[j].FrontendKey)
		}
		switch {
		case order < 0:
			c.release(o, had[i], touch)
			i++
		case order > 0:
			c.claim(o, ws[j].FrontendKey, touch)
			j++
		default:
			if reranked {
				c.elect(had[i], touch)
			}
			i++
			j++
		}
	}
}

func (c *claims) claim(o *owner, k dataplane.FrontendKey, touch func(*owner)) {
	holder := c.winner[k]
	if holder == nil {
		c.winner[k] = o
		return
	}
	if c.contested[k] == nil {
		c.contested[k] = []*owner{holder}
	}
	c.contested[k] = append(c.contested[k], o)
	if compareOwners(o, holder) < 0 {
		c.crown(o, k, touch)
	}
}

func (c *claims) release(o *owner, k dataplane.FrontendKey, touch func(*owner)) {
	rivals := c.contested[k]
	if rivals == nil {
		delete(c.winner, k)
		return
	}
	rivals = slices.DeleteFunc(rivals, func(x *owner) bool { return x == o })
	c.contested[k] = rivals
	if c.winner[k] == o {
		c.crown(slices.MinFunc(rivals, compareOwners), k, touch)
	}
	if len(rivals) == 1 {
		delete(c.contested, k)
	}
}

// elect settles a key anew after a claimant's age changed.
func (c *claims) elect(k dataplane.FrontendKey, touch func(*owner)) {
	if rivals := c.contested[k]; rivals != nil {
		if best := slices.MinFunc(rivals, compareOwners); best != c.winner[k] {
			c.crown(best, k, touch)
		}
	}
}

// crown makes o the winner. Every rival is touched: it wins, loses, or has
// another winner to name in its Problem.
func (c *claims) crown(o *owner, k dataplane.FrontendKey, touch func(*owner)) {
	c.winner[k] = o
	for _, rival := range c.contested[k] {
		touch(rival)
	}
}
