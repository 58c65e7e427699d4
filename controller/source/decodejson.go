// SPDX-License-Identifier: Apache-2.0

package source

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strconv"

	"go.yaml.in/yaml/v3"
)

// jsonReader makes nodes of a stream of JSON values, so that JSON needs no
// second way through the decoder. (A YAML parser does not do: it refuses JSON
// that is indented with tabs.)
type jsonReader struct {
	data    []byte
	dec     *json.Decoder
	counted int // offset up to which lines are counted
	line    int
}

func newJSONReader(data []byte) *jsonReader {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	return &jsonReader{data: data, dec: dec, line: 1}
}

// next gives the next document, io.EOF after the last.
func (r *jsonReader) next() (*yaml.Node, error) {
	tok, err := r.dec.Token()
	if err == io.EOF {
		return nil, io.EOF
	}
	if err != nil {
		return nil, r.fault(err)
	}
	return r.value(tok, 0)
}

func (r *jsonReader) fault(err error) error {
	var f *fault
	if errors.As(err, &f) {
		return f
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	offset := r.dec.InputOffset()
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		offset = max(offset, syntax.Offset-1)
	}
	return faultf(r.lineOf(offset), "not JSON: %v", err)
}

func (r *jsonReader) lineOf(offset int64) int {
	end := min(int(offset), len(r.data))
	if end > r.counted {
		r.line += bytes.Count(r.data[r.counted:end], []byte("\n"))
		r.counted = end
	}
	return r.line
}

func (r *jsonReader) value(tok json.Token, depth int) (*yaml.Node, error) {
	n := &yaml.Node{Kind: yaml.ScalarNode, Line: r.lineOf(r.dec.InputOffset())}
	if depth > maxDepth {
		return nil, faultf(n.Line, "nested deeper than %d", maxDepth)
	}
	switch t := tok.(type) {
	case nil:
		n.Tag = "!!null"
	case bool:
		n.Tag, n.Value = "!!bool", strconv.FormatBool(t)
	case string:
		n.Tag, n.Value = "!!str", t
	case json.Number:
		n.Tag, n.Value = "!!float", t.String()
	case json.Delim:
		n.Kind = yaml.SequenceNode
		if t == '{' {
			n.Kind = yaml.MappingNode
		}
		return n, r.items(n, depth)
	}
	return n, nil
}

// items reads the rest of an array or object, keys and values in turn.
func (r *jsonReader) items(n *yaml.Node, depth int) error {
	for {
		tok, err := r.dec.Token()
		if err != nil {
			return r.fault(err)
		}
		if d, ok := tok.(json.Delim); ok && (d == ']' || d == '}') {
			return nil
		}
		item, err := r.value(tok, depth+1)
		if err != nil {
			return err
		}
		n.Content = append(n.Content, item)
	}
}
