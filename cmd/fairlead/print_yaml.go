// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding"
	"fmt"
	"reflect"
	"strconv"
	"strings"
)

// yamlWriter writes elements of lists: structs with json tags, in the order of
// their fields. It knows just what rows are made of: strings, numbers, booleans,
// what has a MarshalText, and lists of such structs. A general encoder goes
// through a tree of maps, which takes too long for a large node.
type yamlWriter struct {
	w    *bufio.Writer
	keys map[reflect.Type][]string
}

func (y *yamlWriter) item(row any, indent string) {
	y.value(reflect.Indirect(reflect.ValueOf(row)), indent)
}

func (y *yamlWriter) value(v reflect.Value, indent string) {
	lead := "- "
	for i, key := range y.keysOf(v.Type()) {
		f := v.Field(i)
		y.w.WriteString(indent)
		y.w.WriteString(lead)
		lead = "  "
		y.w.WriteString(key)
		if f.Kind() != reflect.Slice {
			y.w.WriteByte(' ')
			y.w.WriteString(yamlScalar(f))
			y.w.WriteByte('\n')
			continue
		}
		if f.Len() == 0 {
			y.w.WriteString(" []\n")
			continue
		}
		y.w.WriteByte('\n')
		for j := range f.Len() {
			y.value(f.Index(j), indent+"  ")
		}
	}
}

// keysOf gives the keys of a struct, each with its colon.
func (y *yamlWriter) keysOf(t reflect.Type) []string {
	keys, ok := y.keys[t]
	if !ok {
		for i := range t.NumField() {
			keys = append(keys, t.Field(i).Tag.Get("json")+":")
		}
		y.keys[t] = keys
	}
	return keys
}

func yamlScalar(v reflect.Value) string {
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
	if m, ok := v.Interface().(encoding.TextMarshaler); ok {
		text, err := m.MarshalText()
		if err != nil {
			return `""`
		}
		return yamlString(string(text))
	}
	panic(fmt.Sprintf("a row has a field of type %s, which yamlScalar does not know", v.Type()))
}

// plain reports whether YAML 1.1 and 1.2 read s as a string without quotes, the
// words of yamlString aside: it begins with a letter, so it is no number, time
// or IPv6 address.
func plain(s string) bool {
	for i := range len(s) {
		c := s[i]
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (i == 0 || !strings.ContainsRune("0123456789_./-", rune(c))) {
			return false
		}
	}
	return s != ""
}

func yamlString(s string) string {
	switch strings.ToLower(s) {
	case "true", "false", "yes", "no", "on", "off", "y", "n", "null":
		return strconv.Quote(s)
	}
	if plain(s) {
		return s
	}
	// A double-quoted YAML scalar knows all escapes that Go uses.
	return strconv.QuoteToASCII(strings.ToValidUTF8(s, "\ufffd"))
}
