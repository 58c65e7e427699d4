// SPDX-License-Identifier: Apache-2.0

package source

import (
	"encoding/json"
	"strconv"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

const (
	// maxDepth bounds the nesting of a document; an object of the API nests
	// some 15 deep.
	maxDepth = 100
	// maxObjectBytes is the size of one object as JSON that an API server
	// would still take (its limit of a request body).
	maxObjectBytes = 3 << 20
)

// jsonWriter turns a node into JSON. It follows aliases and merge keys, and refuses
// duplicate keys.
type jsonWriter struct {
	out []byte
	// steps is what is left of the nodes to visit, so that aliases of aliases
	// end.
	steps int
	// marks, where kept, say at which offset of out which line begins.
	marks     []mark
	keepMarks bool
}

type mark struct{ offset, line int }

func (w *jsonWriter) node(n *yaml.Node, depth int) error {
	if w.steps--; w.steps < 0 {
		return faultf(n.Line, "too many values, counting aliases: write them out, or split the file")
	}
	if depth > maxDepth {
		return faultf(n.Line, "nested deeper than %d", maxDepth)
	}
	if len(w.out) > maxObjectBytes {
		return faultf(n.Line, "object larger than %d bytes", maxObjectBytes)
	}
	if w.keepMarks {
		w.marks = append(w.marks, mark{len(w.out), n.Line})
	}
	switch n.Kind {
	case yaml.AliasNode:
		return w.node(n.Alias, depth+1)
	case yaml.MappingNode:
		return w.mapping(n, depth)
	case yaml.SequenceNode:
		w.out = append(w.out, '[')
		for i, item := range n.Content {
			if i > 0 {
				w.out = append(w.out, ',')
			}
			if err := w.node(item, depth+1); err != nil {
				return err
			}
		}
		w.out = append(w.out, ']')
		return nil
	case yaml.ScalarNode:
		return w.scalar(n)
	}
	return faultf(n.Line, "not a value")
}

func (w *jsonWriter) mapping(n *yaml.Node, depth int) error {
	pairs, err := w.pairs(n, depth)
	if err != nil {
		return err
	}
	w.out = append(w.out, '{')
	for i := 0; i < len(pairs); i += 2 {
		if i > 0 {
			w.out = append(w.out, ',')
		}
		w.str(follow(pairs[i]).Value)
		w.out = append(w.out, ':')
		if err := w.node(pairs[i+1], depth+1); err != nil {
			return err
		}
	}
	w.out = append(w.out, '}')
	return nil
}

// pairs gives keys and values of a mapping in turn, those of merge keys
// (yaml.org/type/merge.html) after its own.
func (w *jsonWriter) pairs(n *yaml.Node, depth int) ([]*yaml.Node, error) {
	merged := false
	seen := newSeenKeys(len(n.Content) / 2)
	for i := 0; i < len(n.Content); i += 2 {
		key := follow(n.Content[i])
		if key.Kind != yaml.ScalarNode {
			return nil, faultf(n.Content[i].Line, "a key must be a plain value")
		}
		if key.Tag == "!!merge" {
			merged = true
		} else if !seen.add(key.Value) {
			return nil, faultf(n.Content[i].Line, "duplicate key %q", key.Value)
		}
	}
	if !merged {
		return n.Content, nil
	}
	var own, rest []*yaml.Node
	for i := 0; i < len(n.Content); i += 2 {
		if n.Content[i].Tag != "!!merge" {
			own = append(own, n.Content[i], n.Content[i+1])
			continue
		}
		more, err := w.merge(n.Content[i+1], depth+1)
		if err != nil {
			return nil, err
		}
		rest = append(rest, more...)
	}
	for i := 0; i < len(rest); i += 2 {
		if seen.add(follow(rest[i]).Value) {
			own = append(own, rest[i], rest[i+1])
		}
	}
	return own, nil
}

// merge gives the pairs that the value of a merge key stands for.
func (w *jsonWriter) merge(value *yaml.Node, depth int) ([]*yaml.Node, error) {
	if w.steps--; w.steps < 0 || depth > maxDepth {
		return nil, faultf(value.Line, "merge keys nested too deep")
	}
	target := follow(value)
	switch target.Kind {
	case yaml.MappingNode:
		pairs, err := w.pairs(target, depth)
		w.steps -= len(pairs)
		return pairs, err
	case yaml.SequenceNode:
		var all []*yaml.Node
		for _, item := range target.Content {
			pairs, err := w.merge(item, depth+1)
			if err != nil {
				return nil, err
			}
			all = append(all, pairs...)
		}
		return all, nil
	}
	return nil, faultf(value.Line, "a merge key wants a mapping")
}

func (w *jsonWriter) scalar(n *yaml.Node) error {
	switch n.Tag {
	case "!!str", "!!timestamp", "":
		w.str(n.Value)
		return nil
	case "!!null":
		w.out = append(w.out, "null"...)
		return nil
	case "!!bool":
		var b bool
		if err := n.Decode(&b); err != nil {
			return faultf(n.Line, "%q is not a boolean: write true or false", n.Value)
		}
		w.out = strconv.AppendBool(w.out, b)
		return nil
	case "!!int", "!!float":
		if json.Valid([]byte(n.Value)) {
			w.out = append(w.out, n.Value...)
			return nil
		}
		return w.number(n)
	}
	return faultf(n.Line, "tag %s is not supported", n.Tag)
}

// number takes the forms that YAML has and JSON has not, such as 0x50.
func (w *jsonWriter) number(n *yaml.Node) error {
	var i int64
	if n.Decode(&i) == nil {
		w.out = strconv.AppendInt(w.out, i, 10)
		return nil
	}
	var f float64
	if n.Decode(&f) == nil {
		if b, err := json.Marshal(f); err == nil {
			w.out = append(w.out, b...)
			return nil
		}
	}
	return faultf(n.Line, "%q is not a number that JSON has", n.Value)
}

func (w *jsonWriter) str(s string) {
	plain := utf8.ValidString(s)
	for i := 0; plain && i < len(s); i++ {
		plain = s[i] >= ' ' && s[i] != '"' && s[i] != '\\'
	}
	if plain {
		w.out = append(w.out, '"')
		w.out = append(w.out, s...)
		w.out = append(w.out, '"')
		return
	}
	b, _ := json.Marshal(s) // a string always has a JSON form
	w.out = append(w.out, b...)
}

// lineAt gives the line of the last value that begins before offset.
func (w *jsonWriter) lineAt(offset int64) int {
	line := 0
	for _, m := range w.marks {
		if int64(m.offset) >= offset {
			break
		}
		line = m.line
	}
	return line
}

// seenKeys finds duplicates: small mappings need no map.
type seenKeys struct {
	few  []string
	many map[string]struct{}
}

func newSeenKeys(n int) *seenKeys {
	if n > 16 {
		return &seenKeys{many: make(map[string]struct{}, n)}
	}
	return &seenKeys{few: make([]string, 0, n)}
}

func (k *seenKeys) add(s string) bool {
	if k.many != nil {
		_, there := k.many[s]
		k.many[s] = struct{}{}
		return !there
	}
	for _, have := range k.few {
		if have == s {
			return false
		}
	}
	k.few = append(k.few, s)
	return true
}
