// SPDX-License-Identifier: Apache-2.0

package podspec

import (
	"fmt"
	"strings"
)

// envFileValue returns the value of one variable of an environment file as
// KEP-3721 restricts it: NAME='value', the value always in single quotes and
// literal, over several lines if need be, a comment after it or on lines of
// their own. found is false where no line sets it.
func envFileValue(file []byte, name string) (value string, found bool, err error) {
	rest, line := string(file), 0
	for rest != "" {
		var l string
		l, rest, _ = strings.Cut(rest, "\n")
		line++
		l = strings.TrimLeft(l, " \t")
		if l = strings.TrimSuffix(l, "\r"); l == "" || l[0] == '#' {
			continue
		}
		key, v, ok := strings.Cut(l, "=")
		switch {
		case !ok:
			return "", false, envFileError(line, "missing '='")
		case key == "":
			return "", false, envFileError(line, "empty variable name")
		case strings.ContainsAny(key, " \t"):
			return "", false, envFileError(line, "whitespace before '=' is not allowed")
		}
		if v != "" && (v[0] == ' ' || v[0] == '\t') { // as a shell: NAME= 'x' sets nothing
			if key == name {
				return "", true, nil
			}
			continue
		}
		if v == "" || v[0] != '\'' {
			return "", false, envFileError(line, "value must be enclosed in single quotes")
		}
		v = v[1:]
		start := line
		for !strings.Contains(v, "'") {
			if rest == "" {
				return "", false, envFileError(start, "unclosed single quote")
			}
			var more string
			more, rest, _ = strings.Cut(rest, "\n")
			v, line = v+"\n"+more, line+1
		}
		v, after, _ := strings.Cut(v, "'")
		if after = strings.TrimSpace(after); after != "" && after[0] != '#' {
			return "", false, envFileError(line, "unexpected content after closing quote")
		}
		if key == name {
			return v, true, nil
		}
	}
	return "", false, nil
}

func envFileError(line int, what string) error {
	return fmt.Errorf("invalid environment variable format at line %d: %s", line, what)
}
