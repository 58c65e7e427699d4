// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding"
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"
)

// writeYAMLItem writes one element of a list: a struct with json tags, in the
// order of its fields. It knows just what rows are made of: strings, numbers,
// booleans, what has a MarshalText, and lists of such structs. A general
// encoder goes through a tree of maps and took too long for a large node.
func writeYAMLItem(w *bufio.Writer, row any, indent string) {
	v := reflect.Indirect(reflect.ValueOf(row))
	t := v.Type()
	lead := indent + "- "
	for i := range t.NumField() {
		name, options, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		f := v.Field(i)
		if options == "omitempty" && f.IsZero() {
			continue
		}
		w.WriteString(lead)
		lead = indent + "  "
		w.WriteString(name)
		w.WriteByte(':')
		if f.Kind() != reflect.Slice {
			w.WriteByte(' ')
			w.WriteString(yamlScalar(f))
			w.WriteByte('\n')
			continue
		}
		if f.Len() == 0 {
			w.WriteString(" []\n")
			continue
		}
		w.WriteByte('\n')
		for j := range f.Len() {
			writeYAMLItem(w, f.Index(j).Addr().Interface(), indent+"  ")
		}
	}
}

func yamlScalar(v reflect.Value) string {
	if m, ok := v.Interface().(encoding.TextMarshaler); ok {
		text, err := m.MarshalText()
		if err != nil {
			return `""`
		}
		return yamlString(string(text))
	}
	switch {
	case v.Kind() == reflect.String:
		return yamlString(v.String())
	case v.Kind() == reflect.Bool:
		return strconv.FormatBool(v.Bool())
	case v.CanUint():
		return strconv.FormatUint(v.Uint(), 10)
	case v.CanInt():
		return strconv.FormatInt(v.Int(), 10)
	}
	panic(fmt.Sprintf("a row has a field of type %s, which writeYAMLItem does not know", v.Type()))
}

// plain is what YAML 1.1 and 1.2 read as a string without quotes, the words
// below aside. It begins with a letter, so it is no number, time or IPv6 address.
var plain = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_./-]*$`)

func yamlString(s string) string {
	switch strings.ToLower(s) {
	case "true", "false", "yes", "no", "on", "off", "y", "n", "null":
		return strconv.Quote(s)
	}
	if plain.MatchString(s) {
		return s
	}
	// A double-quoted YAML scalar knows all escapes that Go uses.
	return strconv.QuoteToASCII(strings.ToValidUTF8(s, "\ufffd"))
}
