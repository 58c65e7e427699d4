// SPDX-License-Identifier: Apache-2.0

package source

import (
	"fmt"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// fault is something in a file that cannot be taken as written.
type fault struct {
	// line counts from 1; 0 is the file as a whole.
	line int
	text string
}

func (f *fault) Error() string { return f.text }

func faultf(line int, format string, args ...any) *fault {
	return &fault{line: line, text: fmt.Sprintf(format, args...)}
}

// follow gives what an alias stands for.
func follow(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// child gives key and value under a name, nil where there is none.
func child(n *yaml.Node, name string) (key, value *yaml.Node) {
	if n = follow(n); n.Kind != yaml.MappingNode {
		return nil, nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == name {
			return n.Content[i], n.Content[i+1]
		}
	}
	return nil, nil
}

// lineOf finds the line of a field path such as spec.ports[0].port, or of the
// nearest parent that exists.
func lineOf(root *yaml.Node, path string) int {
	line, n := root.Line, root
	for path != "" {
		var step string
		if strings.HasPrefix(path, "[") {
			step, path, _ = strings.Cut(path[1:], "]")
		} else {
			path = strings.TrimPrefix(path, ".")
			end := strings.IndexAny(path, ".[")
			if end < 0 {
				end = len(path)
			}
			step, path = path[:end], path[end:]
		}
		if n = follow(n); n.Kind == yaml.SequenceNode {
			i, err := strconv.Atoi(step)
			if err != nil || i < 0 || i >= len(n.Content) {
				return line
			}
			n = n.Content[i]
			line = n.Line
			continue
		}
		key, value := child(n, step)
		if key == nil {
			return line
		}
		line, n = key.Line, value
	}
	return line
}
