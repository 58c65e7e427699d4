// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"strings"
)

// The formats of dump.
var dumpFormats = []string{"table", "wide", "json", "yaml"}

// section is one list of a dump.
type section interface {
	// key is the name of the list in JSON and YAML.
	key() string
	len() int
	// row is what JSON and YAML show of row i: a struct.
	row(i int) any
	// head and cells are what the table shows.
	head(wide bool) []string
	cells(i int, wide bool) []string
}

// column is one column of a table.
type column[T any] struct {
	head string
	wide bool // shown with -o wide only
	cell func(*T) string
}

// listing is a section of rows of one type.
type listing[T any] struct {
	name    string
	rows    []T
	columns []column[T]
}

func (l listing[T]) key() string   { return l.name }
func (l listing[T]) len() int      { return len(l.rows) }
func (l listing[T]) row(i int) any { return &l.rows[i] }

func (l listing[T]) head(wide bool) []string {
	var head []string
	for _, c := range l.columns {
		if wide || !c.wide {
			head = append(head, c.head)
		}
	}
	return head
}

func (l listing[T]) cells(i int, wide bool) []string {
	cells := make([]string, 0, len(l.columns))
	for _, c := range l.columns {
		if wide || !c.wide {
			cells = append(cells, c.cell(&l.rows[i]))
		}
	}
	return cells
}

// writeDump writes the sections row by row, in one of dumpFormats.
func writeDump(w io.Writer, format, dataplane string, sections ...section) error {
	b := bufio.NewWriterSize(w, 1<<16)
	var err error
	switch format {
	case "json":
		err = writeJSON(b, dataplane, sections)
	case "yaml":
		writeYAML(b, dataplane, sections)
	case "table", "wide":
		for i, s := range sections {
			if i > 0 {
				b.WriteByte('\n')
			}
			writeTable(b, s, format == "wide")
		}
	default:
		return fmt.Errorf("no format %q", format)
	}
	if err != nil {
		return err
	}
	return b.Flush()
}

// writeJSON writes one row a line. Errors of w stay in it until Flush.
func writeJSON(w *bufio.Writer, dataplane string, sections []section) error {
	name, err := json.Marshal(dataplane)
	if err != nil {
		return err
	}
	w.WriteString(`{"dataplane":`)
	w.Write(name)
	for _, s := range sections {
		fmt.Fprintf(w, ",%q:[", s.key())
		for i := range s.len() {
			if i > 0 {
				w.WriteByte(',')
			}
			row, err := json.Marshal(s.row(i))
			if err != nil {
				return fmt.Errorf("%s, row %d: %w", s.key(), i, err)
			}
			w.WriteByte('\n')
			w.Write(row)
		}
		w.WriteByte(']')
	}
	w.WriteString("}\n")
	return nil
}

func writeYAML(w *bufio.Writer, dataplane string, sections []section) {
	y := yamlWriter{w: w, keys: map[reflect.Type][]string{}}
	w.WriteString("dataplane: ")
	w.WriteString(yamlString(dataplane))
	w.WriteByte('\n')
	for _, s := range sections {
		w.WriteString(s.key())
		if s.len() == 0 {
			w.WriteString(": []\n")
			continue
		}
		w.WriteString(":\n")
		for i := range s.len() {
			y.item(s.row(i), "")
		}
	}
}

// gap is what stands between two columns at least.
const gap = "   "

// writeTable goes through the rows twice, for the widths and to write, and so
// holds none of the text.
func writeTable(w *bufio.Writer, s section, wide bool) {
	head := s.head(wide)
	widths := make([]int, len(head))
	widen := func(cells []string) {
		for i, c := range cells {
			widths[i] = max(widths[i], len(c))
		}
	}
	write := func(cells []string) {
		for i, c := range cells {
			if c == "" {
				c = "-"
			}
			w.WriteString(c)
			if i < len(cells)-1 {
				for range max(widths[i], 1) - len(c) {
					w.WriteByte(' ')
				}
				w.WriteString(gap)
			}
		}
		w.WriteByte('\n')
	}
	widen(head)
	for i := range s.len() {
		widen(s.cells(i, wide))
	}
	write(head)
	for i := range s.len() {
		write(s.cells(i, wide))
	}
}

// list joins the first n of the strings and says how many more there are.
func list(all []string, n int) string {
	if len(all) <= n {
		return strings.Join(all, ",")
	}
	return fmt.Sprintf("%s + %d more", strings.Join(all[:n], ","), len(all)-n)
}
