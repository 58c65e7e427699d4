// SPDX-License-Identifier: Apache-2.0

package source

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	sjson "sigs.k8s.io/json"
)

const (
	// maxFaults is how many faults of one file are reported.
	maxFaults = 10
	// maxTokens bounds what separates the values of a file, and so the memory
	// that its parser takes: some 200 bytes a value.
	maxTokens = 4 << 20
)

// objectKey names an object of a directory.
type objectKey struct {
	kind manifestKind
	types.NamespacedName
}

// String gives "Service default/web", "Node node1".
func (k objectKey) String() string {
	if k.Namespace == "" {
		return k.kind.String() + " " + k.Name
	}
	return k.kind.String() + " " + k.NamespacedName.String()
}

// object is one object of a file: validated, and with the defaults that the
// API server would have given it.
type object struct {
	key objectKey
	// line is where it begins.
	line  int
	value metav1.Object
}

// decoder collects the objects and faults of one file.
type decoder struct {
	objects []object
	faults  []*fault
	lines   map[objectKey]int
	// maxObjects: more are a fault.
	maxObjects int
	w          jsonWriter
}

// decodeFile reads all documents of a file, JSON by its name's ending and YAML
// otherwise. It is strict: a field that does not exist, a duplicate key or a
// kind that is not served here is a fault. Where there are faults, the objects
// are not to be used.
func decodeFile(name string, data []byte, maxObjects int) (objects []object, faults []*fault) {
	d := &decoder{lines: map[objectKey]int{}, maxObjects: maxObjects}
	d.w.steps = maxTokens
	// The parser is not ours; a panic of it is not to take the agent along.
	defer func() {
		if p := recover(); p != nil {
			objects, faults = nil, []*fault{faultf(0, "panic while parsing: %v", p)}
		}
	}()
	if n := tokens(data); n > maxTokens {
		return nil, []*fault{faultf(0, "some %d values are more than %d: split the file", n, maxTokens)}
	}
	next := yamlDocuments(data)
	if strings.HasSuffix(name, ".json") {
		next = newJSONReader(data).next
	}
	for len(d.faults) < maxFaults {
		root, err := next()
		if err == io.EOF {
			break
		}
		if err != nil {
			d.fault(err)
			break
		}
		d.document(root)
	}
	return d.objects, d.faults
}

// tokens counts what can separate two values, in YAML or JSON.
func tokens(data []byte) int {
	n := 0
	for _, sep := range []string{"\n", ",", ":", "[", "{", "- "} {
		n += bytes.Count(data, []byte(sep))
	}
	return n
}

// yamlDocuments gives the root of each document in turn, and then io.EOF.
func yamlDocuments(data []byte) func() (*yaml.Node, error) {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	last := 1
	return func() (*yaml.Node, error) {
		var doc yaml.Node
		err := dec.Decode(&doc)
		if err == io.EOF {
			return nil, io.EOF
		}
		if err != nil {
			return nil, yamlFault(err, last)
		}
		if len(doc.Content) == 0 {
			return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null"}, nil
		}
		last = doc.Content[0].Line
		return doc.Content[0], nil
	}
}

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

// yamlFault takes the line out of a parser's message; near is the last known
// one.
func yamlFault(err error, near int) *fault {
	m := yamlLine.FindStringSubmatch(err.Error())
	if m == nil {
		return faultf(near, "not YAML: %v", err)
	}
	line := near
	if m[1] != "" {
		line, _ = strconv.Atoi(m[1])
	}
	return faultf(line, "not YAML: %s", err.Error()[len(m[0]):])
}

func (d *decoder) fault(err error) {
	if len(d.faults) == maxFaults {
		return
	}
	var f *fault
	if !errors.As(err, &f) {
		f = faultf(0, "%v", err)
	}
	d.faults = append(d.faults, f)
}

// header is apiVersion and kind of an object, with the line of kind.
type header struct {
	apiVersion, kind string
	line             int
}

func headerOf(n *yaml.Node) header {
	h := header{line: n.Line}
	if _, v := child(n, "apiVersion"); v != nil {
		h.apiVersion = follow(v).Value
	}
	if k, v := child(n, "kind"); v != nil {
		h.kind, h.line = follow(v).Value, k.Line
	}
	return h
}

func (d *decoder) document(root *yaml.Node) {
	if root = follow(root); root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return // nothing between two separators
	}
	if root.Kind != yaml.MappingNode {
		d.fault(faultf(root.Line, "not an object: want apiVersion, kind and metadata"))
		return
	}
	h := headerOf(root)
	item, isList := listItem(h)
	if !isList {
		d.object(root, h)
		return
	}
	d.list(root, item)
}

// list expands a List; item is what an item is that does not say.
func (d *decoder) list(root *yaml.Node, item header) {
	if _, err := d.w.pairs(root, 0); err != nil {
		d.fault(err)
		return
	}
	for i := 0; i < len(root.Content); i += 2 {
		switch key := root.Content[i]; key.Value {
		case "apiVersion", "kind", "metadata", "items":
		default:
			d.fault(faultf(key.Line, "unknown field %q", key.Value))
		}
	}
	_, items := child(root, "items")
	if items == nil || follow(items).Tag == "!!null" {
		return
	}
	if items = follow(items); items.Kind != yaml.SequenceNode {
		d.fault(faultf(items.Line, "items: want a list"))
		return
	}
	for _, n := range items.Content {
		if len(d.faults) == maxFaults {
			return
		}
		if n = follow(n); n.Kind != yaml.MappingNode {
			d.fault(faultf(n.Line, "not an object: want apiVersion, kind and metadata"))
			continue
		}
		h := headerOf(n)
		if h.kind == "" && h.apiVersion == "" {
			h.kind, h.apiVersion = item.kind, item.apiVersion
		}
		d.object(n, h)
	}
}

func (d *decoder) object(n *yaml.Node, h header) {
	m, err := manifestFor(h)
	if err != nil {
		d.fault(err)
		return
	}
	value := m.make()
	if !d.strict(n, value) {
		return
	}
	if m.namespaced && value.GetNamespace() == "" {
		value.SetNamespace(metav1.NamespaceDefault)
	}
	key := objectKey{m.kind, types.NamespacedName{Namespace: value.GetNamespace(), Name: value.GetName()}}
	if errs := m.check(value); len(errs) > 0 {
		for _, e := range errs {
			d.fault(faultf(lineOf(n, e.Field), "%s: %v", key, e))
		}
		return
	}
	if first, twice := d.lines[key]; twice {
		d.fault(faultf(n.Line, "%s: also on line %d", key, first))
		return
	}
	if len(d.objects) == d.maxObjects {
		d.fault(faultf(n.Line, "%s: with it there are more objects than the limit leaves room for (%d in this file)", key, d.maxObjects))
		return
	}
	d.lines[key] = n.Line
	d.objects = append(d.objects, object{key: key, line: n.Line, value: value})
}

// strict fills value from n and reports whether all of n has a place in it.
func (d *decoder) strict(n *yaml.Node, value metav1.Object) bool {
	d.w.out = d.w.out[:0]
	if err := d.w.node(n, 0); err != nil {
		d.fault(err)
		return false
	}
	unknown, err := sjson.UnmarshalStrict(d.w.out, value)
	if err != nil {
		d.fault(typeFault(n, err))
		return false
	}
	for _, u := range unknown {
		line := n.Line
		var field sjson.FieldError
		if errors.As(u, &field) {
			line = lineOf(n, field.FieldPath())
		}
		d.fault(faultf(line, "%v", u))
	}
	return len(unknown) == 0
}

// typeFault finds the line of a value of the wrong type by writing n once more.
func typeFault(n *yaml.Node, err error) *fault {
	line, text := n.Line, strings.TrimPrefix(err.Error(), "json: ")
	var typeErr *json.UnmarshalTypeError
	if errors.As(err, &typeErr) {
		w := jsonWriter{keepMarks: true, steps: maxTokens}
		if w.node(n, 0) == nil {
			line = max(line, w.lineAt(typeErr.Offset))
		}
		text = fmt.Sprintf("%s: a %s where %s belongs", typeErr.Field, typeErr.Value, typeErr.Type)
	}
	return faultf(line, "%s", text)
}
