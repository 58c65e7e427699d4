// SPDX-License-Identifier: Apache-2.0

package podspec

import (
	"strings"
	"testing"
)

func TestEnvFileHasQuotedLiteralValues(t *testing.T) {
	const file = `
# a comment
A='1'
  B='two words # not a comment' # a comment
EMPTY=''
SPACE= 'x'
LINES='first
second $(A)
third'
CRLF='x'` + "\r\n" + `A='again'
`
	for name, want := range map[string]string{
		"A": "1", "B": "two words # not a comment", "EMPTY": "", "SPACE": "",
		"LINES": "first\nsecond $(A)\nthird", "CRLF": "x",
	} {
		if got, found, err := envFileValue([]byte(file), name); err != nil || !found || got != want {
			t.Errorf("%s = %q, %v, %v; want %q", name, got, found, err, want)
		}
	}
	if _, found, err := envFileValue([]byte(file), "NONE"); found || err != nil {
		t.Errorf("NONE: %v, %v", found, err)
	}
}

func TestEnvFileErrorsNameTheLine(t *testing.T) {
	for file, want := range map[string]string{
		"\nA":          "line 2: missing '='",
		"='x'":         "line 1: empty variable name",
		"A ='x'":       "line 1: whitespace before '=' is not allowed",
		"A=x":          "line 1: value must be enclosed in single quotes",
		"A=\"x\"":      "line 1: value must be enclosed in single quotes",
		"A=":           "line 1: value must be enclosed in single quotes",
		"Z='1'\nA='x":  "line 2: unclosed single quote",
		"A='x\ny' z='": "line 2: unexpected content after closing quote",
	} {
		_, _, err := envFileValue([]byte(file), "B")
		if err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%q: %v, want %s", file, err, want)
		}
	}
}

func FuzzEnvFile(f *testing.F) {
	f.Add([]byte("A='x'\nB='y\nz' # c\n"), "A")
	f.Add([]byte("A='"), "A")
	f.Fuzz(func(t *testing.T, file []byte, name string) {
		v, found, err := envFileValue(file, name)
		if (err != nil || !found) && v != "" {
			t.Errorf("value %q with found %v, error %v", v, found, err)
		}
		if strings.Contains(v, "'") {
			t.Errorf("a quote is in the value %q", v)
		}
	})
}
