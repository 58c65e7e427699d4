// SPDX-License-Identifier: Apache-2.0

package podspec

import (
	"errors"
	"strings"
	"testing"
)

func TestExpandReplacesKnownReferencesAndLeavesTheRest(t *testing.T) {
	vars := lookupIn(map[string]string{"A": "1", "B": "$(A)", "EMPTY": "", "A B": "odd"})
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"plain", "plain"},
		{"$(A)", "1"},
		{"x$(A)y$(A)z", "x1y1z"},
		{"$(B)", "$(A)"}, // once, not again
		{"$(MISSING)", "$(MISSING)"},
		{"$(EMPTY)|", "|"},
		{"$$(A)", "$(A)"},
		{"$$$(A)", "$1"},
		{"$$$$(A)", "$$(A)"},
		{"$A ${A} $", "$A ${A} $"},
		{"$(A", "$(A"},
		{"$(A $(A)", "$(A $(A)"}, // the name is "A $(A"
		{"$()", "$()"},
		{"$(A B)", "odd"},
		{"é$(A)ü$é", "é1ü$é"},
		{"100%$$", "100%$"},
	} {
		if got := Expand(c.in, vars); got != c.want {
			t.Errorf("Expand(%q) = %q, want %q", c.in, got, c.want)
		}
	}
}

func TestExpandSubPathNeedsEveryVariable(t *testing.T) {
	env := []EnvVar{{"POD", "web-0"}, {"EMPTY", ""}}
	if got, err := ExpandSubPath("logs/$(POD)", env); err != nil || got != "logs/web-0" {
		t.Errorf("got %q, %v", got, err)
	}
	_, err := ExpandSubPath("$(NONE)/$(POD)/$(EMPTY)", env)
	var r *Refused
	if !errors.As(err, &r) || r.Reason != ReasonContainerConfig || r.Message != "missing value for EMPTY, NONE" {
		t.Errorf("got %#v", err)
	}
}

func FuzzExpandKeepsWhatIsNoReference(f *testing.F) {
	for _, s := range []string{"", "$", "$$", "$(A)", "$($(A))", "a$(b", "$$(A)", "é$("} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		none := func(string) (string, bool) { return "", false }
		got := Expand(s, none)
		// With nothing known only $$ changes.
		if !strings.Contains(s, "$$") && got != s {
			t.Errorf("Expand(%q) = %q", s, got)
		}
		if len(got) > len(s) {
			t.Errorf("Expand(%q) = %q is longer", s, got)
		}
		if doubled := strings.ReplaceAll(s, "$", "$$"); Expand(doubled, none) != s {
			t.Errorf("Expand(%q) = %q, want %q", doubled, Expand(doubled, none), s)
		}
	})
}
