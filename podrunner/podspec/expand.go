// SPDX-License-Identifier: Apache-2.0

package podspec

import (
	"slices"
	"strings"
)

// Expand replaces $(NAME) by what lookup returns for NAME. A reference that
// lookup does not know stays as it is; $$ is a $ that begins no reference.
// (kubernetes.io/docs: "Define Dependent Environment Variables".)
func Expand(s string, lookup func(name string) (string, bool)) string {
	var b strings.Builder
	for {
		i := strings.IndexByte(s, '$')
		if i < 0 || i+1 == len(s) {
			b.WriteString(s)
			return b.String()
		}
		b.WriteString(s[:i])
		s = s[i:]
		end := strings.IndexByte(s, ')')
		switch {
		case s[1] == '$':
			b.WriteByte('$')
			s = s[2:]
		case s[1] == '(' && end > 0:
			if v, ok := lookup(s[2:end]); ok {
				b.WriteString(v)
			} else {
				b.WriteString(s[:end+1])
			}
			s = s[end+1:]
		default:
			b.WriteByte('$')
			s = s[1:]
		}
	}
}

func lookupIn(vars ...map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		for _, m := range vars {
			if v, ok := m[name]; ok {
				return v, true
			}
		}
		return "", false
	}
}

// ExpandSubPath returns a mount's subPathExpr with the variables of env. A
// variable that is not there or empty is an error: a directory must not be
// named after a typo.
func ExpandSubPath(expr string, env []EnvVar) (string, error) {
	vars := asMap(env)
	var missing []string
	s := Expand(expr, func(name string) (string, bool) {
		v := vars[name]
		if v == "" && !slices.Contains(missing, name) {
			missing = append(missing, name)
		}
		return v, true
	})
	if missing != nil {
		slices.Sort(missing)
		return "", &Refused{Reason: ReasonContainerConfig, Message: "missing value for " + strings.Join(missing, ", ")}
	}
	return s, nil
}

func asMap(env []EnvVar) map[string]string {
	m := make(map[string]string, len(env))
	for _, v := range env {
		m[v.Name] = v.Value
	}
	return m
}
