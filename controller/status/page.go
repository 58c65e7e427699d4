// SPDX-License-Identifier: Apache-2.0

package status

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"html"
	"net/http"
	"strings"
	"time"
)

// style is the whole of the page's looks. Only it may be applied: its hash is
// in the Content-Security-Policy.
const style = `
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#1b2733;background:#fff}
h1{font-size:1.4rem;margin:0}h2{font-size:1.05rem;margin:1.6rem 0 .4rem}p{margin:.2rem 0 1rem;color:#51606f}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #dde3e9;overflow-wrap:anywhere}
th{font-weight:600;color:#51606f}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.bad{color:#b00020;font-weight:600}meter{width:8rem;vertical-align:middle}
@media(prefers-color-scheme:dark){body{color:#dfe6ed;background:#15191e}th,p{color:#93a1af}th,td{border-color:#2c343d}.bad{color:#ff7b7b}}
`

// policy lets the page do nothing but look like this.
var policy = func() string {
	h := sha256.Sum256([]byte(style))
	return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(h[:]) + "'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}()

// hypertext is a page being written. html/template would be shorter, but it
// calls methods by name, which makes the linker keep every method of every type:
// the binary, and the agent's memory, would be twice as large.
type hypertext struct{ bytes.Buffer }

// raw writes markup, text what is none.
func (h *hypertext) raw(markup string) { h.WriteString(markup) }
func (h *hypertext) text(s string)     { h.WriteString(html.EscapeString(s)) }

// row writes a row of a table: its header and what it says.
func (h *hypertext) row(header string, parts ...part) {
	h.raw("<tr><th>")
	h.text(header)
	h.raw("</th><td>")
	for _, p := range parts {
		if p.bad {
			h.raw(`<span class="bad">`)
		}
		h.text(p.text)
		if p.bad {
			h.raw("</span>")
		}
	}
	h.raw("</td></tr>\n")
}

// part of a cell; bad is what an operator is to see.
type part struct {
	text string
	bad  bool
}

func says(format string, args ...any) part { return part{text: fmt.Sprintf(format, args...)} }

// table begins a table under a heading. A column whose name begins with # is of
// numbers.
func (h *hypertext) table(heading string, columns ...string) {
	h.raw("<h2>" + heading + "</h2>\n<table>\n")
	h.cells("th", columns, columns)
}

// line writes a row of cells, each below its column.
func (h *hypertext) line(columns []string, cells ...string) { h.cells("td", columns, cells) }

func (h *hypertext) cells(tag string, columns, cells []string) {
	h.raw("<tr>")
	for i, c := range cells {
		class := ""
		if strings.HasPrefix(columns[i], "#") {
			class = ` class="n"`
		}
		h.raw("<" + tag + class + ">")
		h.text(strings.TrimPrefix(c, "#"))
		h.raw("</" + tag + ">")
	}
	h.raw("</tr>\n")
}

// none says that a table is empty.
func (h *hypertext) none(columns []string, why string) {
	fmt.Fprintf(h, "<tr><td colspan=\"%d\">", len(columns))
	h.text(why)
	h.raw("</td></tr>\n")
}

func (h *hypertext) begin(node string, now time.Time) {
	h.raw("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n" +
		"<meta http-equiv=\"refresh\" content=\"10\">\n<title>fairlead on ")
	h.text(node)
	h.raw("</title>\n<style>" + style + "</style>\n</head>\n<body>\n<h1>fairlead on ")
	h.text(node)
	h.raw("</h1>\n<p>")
	h.text(now.Format("2006-01-02 15:04:05 MST") + ", every 10 s")
	h.raw("</p>\n")
}

func (h *hypertext) agent(s *Status, now time.Time) {
	a := s.Agent
	if a == nil {
		return
	}
	connected := part{text: "connected"}
	if !a.SourceConnected {
		connected = part{"not connected, the last state is kept", true}
	}
	p99 := "-"
	if a.ProgrammingP99Seconds != nil {
		p99 = seconds(*a.ProgrammingP99Seconds)
	}
	h.raw("<table>\n")
	h.row("Dataplane", says("%s", s.Dataplane))
	h.row("Version", says("%s", a.Version))
	h.row("Source", says("%s: ", a.Source), connected)
	h.row("In force", says("%d Services, %d Frontends, %d Backends", s.Services, s.Frontends, s.Backends))
	h.row("Not in force", says("%v changes pending, ", a.Pending), part{fmt.Sprintf("%v Services failed", a.FailedServices), a.FailedServices > 0},
		says(", %v problems of objects, %v of the source", a.Problems, a.SourceProblems))
	h.row("Last change", says("in force after %s; kernel last brought in line %s", seconds(a.LastChangeSeconds), ago(a.LastSync, now)))
	h.row("Programming, p99", says("%s", p99))
	h.row("Drift repaired", part{fmt.Sprintf("%v Frontends", a.DriftRepaired), a.DriftRepaired > 0})
	h.raw("</table>\n")
	columns := []string{"Map", "#Entries", "#Of", "Fill"}
	h.table("Kernel maps", columns...)
	for _, m := range a.Maps {
		percent := fmt.Sprintf("%.1f", m.Percent())
		h.raw("<tr><td>")
		h.text(m.Name)
		fmt.Fprintf(h, "</td><td class=\"n\">%v</td><td class=\"n\">%v</td><td><meter min=\"0\" max=\"100\" high=\"90\" value=\"%s\"></meter> %s %%</td></tr>\n",
			m.Entries, m.Max, percent, percent)
	}
	if len(a.Maps) == 0 {
		h.none(columns, "this dataplane has none")
	}
	h.raw("</table>\n")
}

func (h *hypertext) traffic(s *Status) {
	columns := []string{"Reason", "#Count"}
	h.table("Refused and dropped", columns...)
	for _, d := range s.Drops {
		h.line(columns, d.Reason, fmt.Sprint(d.Count))
	}
	if len(s.Drops) == 0 {
		h.none(columns, "nothing")
	}
	h.raw("</table>\n")
	columns = []string{"Service", "Port", "#Connections", "#Packets", "#Bytes"}
	h.table("Services with traffic", columns...)
	shown := s.Traffic[:min(len(s.Traffic), pageTraffic)]
	for _, t := range shown {
		h.line(columns, t.Service, orNone(t.PortName), fmt.Sprint(t.Connections), fmt.Sprint(t.Packets), fmt.Sprint(t.Bytes))
	}
	if len(shown) == 0 {
		h.none(columns, "none yet")
	}
	h.raw("</table>\n")
	if more := len(s.Traffic) - len(shown); more > 0 {
		fmt.Fprintf(h, "<p>and %d more: fairlead dump counters</p>\n", more)
	}
}

// pageTraffic bounds the page on a node with thousands of Services.
const pageTraffic = 200

// Page serves a node's status, made anew for each request.
type Page struct {
	Node string
	Read func() (*Status, error)
	// Now is the clock. nil: time.Now.
	Now func() time.Time
}

// ServeHTTP implements http.Handler. It serves one page, without scripts and
// without anything from elsewhere.
func (p *Page) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	s, err := p.Read()
	if err != nil {
		http.Error(w, fmt.Sprintf("cannot read the agent's metrics: %v", err), http.StatusInternalServerError)
		return
	}
	now := time.Now
	if p.Now != nil {
		now = p.Now
	}
	var b hypertext
	b.begin(p.Node, now().UTC())
	b.agent(s, now().UTC())
	b.traffic(s)
	b.raw("</body>\n</html>\n")
	h.Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write(b.Bytes()) // the client may go
}
