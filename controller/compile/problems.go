// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"fairlead.dev/dataplane"
)

// Problem is something that is not in force as written.
type Problem struct {
	// Object names it: "Service default/web", "EndpointSlice default/web-x2x".
	Object string
	// Reason says what is wrong and what was done instead.
	Reason string
}

// maxReasons bounds what one absurd object can say.
const maxReasons = 16

type objectKind string

const (
	kindService objectKind = "Service"
	kindSlice   objectKind = "EndpointSlice"
	kindPod     objectKind = "Pod"
)

type object struct {
	kind objectKind
	name dataplane.ServiceName
}

func (o object) String() string { return string(o.kind) + " " + o.name.String() }

// phase separates what is wrong with an object by itself, which is known when
// it is set, from what is wrong beside others, which is known when it is compiled.
type phase uint8

const (
	parsing phase = iota
	compiling
)

// problems is the current list, kept by object.
type problems struct {
	reasons [2]map[object][]string
	list    []Problem
	changed bool
}

func newProblems() problems {
	return problems{reasons: [2]map[object][]string{{}, {}}}
}

func (p *problems) set(o object, ph phase, reasons []string) {
	old := p.reasons[ph][o]
	if len(old) == 0 && len(reasons) == 0 {
		return
	}
	slices.Sort(reasons)
	reasons = slices.Compact(reasons)
	if more := len(reasons) - maxReasons; more > 0 {
		reasons = append(slices.Clone(reasons[:maxReasons]), fmt.Sprintf("and %d more", more))
	}
	if slices.Equal(old, reasons) {
		return
	}
	p.changed = true
	if len(reasons) == 0 {
		delete(p.reasons[ph], o)
		return
	}
	p.reasons[ph][o] = reasons
}

// current is the whole list, made anew only where something changed.
func (p *problems) current() (list []Problem, changed bool) {
	if !p.changed {
		return p.list, false
	}
	list = make([]Problem, 0, len(p.reasons[parsing])+len(p.reasons[compiling]))
	for _, byObject := range p.reasons {
		for o, reasons := range byObject {
			name := o.String()
			for _, r := range reasons {
				list = append(list, Problem{Object: name, Reason: r})
			}
		}
	}
	slices.SortFunc(list, func(a, b Problem) int {
		return cmp.Or(strings.Compare(a.Object, b.Object), strings.Compare(a.Reason, b.Reason))
	})
	p.list, p.changed = list, false
	return list, true
}
