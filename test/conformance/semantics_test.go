// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"os"
	"strings"
	"testing"
)

const semanticsFile = "../../docs/semantics.md"

// casesNamed gives the IDs in the last column of every table whose last heading
// is "case".
func casesNamed(text string) (ids map[string]bool) {
	ids = map[string]bool{}
	inTable := false
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") {
			inTable = false
			continue
		}
		cells := strings.Split(strings.Trim(line, "| "), " | ")
		last := cells[len(cells)-1]
		switch {
		case last == "case":
			inTable = true
		case inTable && last != "---" && last != "-":
			for id := range strings.SplitSeq(last, ", ") {
				ids[id] = true
			}
		}
	}
	return ids
}

func TestTheSemanticsPageNamesEveryCaseAndNoOther(t *testing.T) {
	text, err := os.ReadFile(semanticsFile)
	if err != nil {
		t.Fatal(err)
	}
	named := casesNamed(string(text))
	for _, c := range Cases() {
		if !named[c.ID] {
			t.Errorf("%s names no clause that case %s proves: %s", semanticsFile, c.ID, c.Clause)
		}
		delete(named, c.ID)
	}
	for id := range named {
		t.Errorf("%s names a case %q that does not exist", semanticsFile, id)
	}
}
