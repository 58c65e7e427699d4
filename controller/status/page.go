// SPDX-License-Identifier: Apache-2.0

package status

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"html/template"
	"net/http"
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

var page = template.Must(template.New("status").Funcs(template.FuncMap{
	"style": func() template.CSS { return style }, "seconds": seconds, "ago": ago, "orNone": orNone,
}).Parse(`<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="refresh" content="10">
<title>fairlead on {{.Node}}</title>
<style>{{style}}</style>
</head>
<body>
<h1>fairlead on {{.Node}}</h1>
<p>{{.Now.Format "2006-01-02 15:04:05 MST"}}, every 10 s</p>
{{with .Status.Agent}}
<table>
<tr><th>Dataplane</th><td>{{$.Status.Dataplane}}</td></tr>
<tr><th>Version</th><td>{{.Version}}</td></tr>
<tr><th>Source</th><td>{{.Source}}: {{if .SourceConnected}}connected{{else}}<span class="bad">not connected, the last state is kept</span>{{end}}</td></tr>
<tr><th>In force</th><td>{{$.Status.Services}} Services, {{$.Status.Frontends}} Frontends, {{$.Status.Backends}} Backends</td></tr>
<tr><th>Not in force</th><td>{{.Pending}} changes pending, <span{{if .FailedServices}} class="bad"{{end}}>{{.FailedServices}} Services failed</span>, {{.Problems}} problems of objects, {{.SourceProblems}} of the source</td></tr>
<tr><th>Last change</th><td>in force after {{seconds .LastChangeSeconds}}; kernel last brought in line {{ago .LastSync $.Now}}</td></tr>
<tr><th>Programming, p99</th><td>{{with .ProgrammingP99Seconds}}{{seconds .}}{{else}}-{{end}}</td></tr>
<tr><th>Drift repaired</th><td><span{{if .DriftRepaired}} class="bad"{{end}}>{{.DriftRepaired}} Frontends</span></td></tr>
</table>
<h2>Kernel maps</h2>
<table>
<tr><th>Map</th><th class="n">Entries</th><th class="n">Of</th><th>Fill</th></tr>
{{range .Maps}}<tr><td>{{.Name}}</td><td class="n">{{.Entries}}</td><td class="n">{{.Max}}</td><td><meter min="0" max="100" high="90" value="{{printf "%.1f" .Percent}}"></meter> {{printf "%.1f" .Percent}} %</td></tr>
{{else}}<tr><td colspan="4">this dataplane has none</td></tr>
{{end}}</table>
{{end}}
<h2>Refused and dropped</h2>
<table>
<tr><th>Reason</th><th class="n">Count</th></tr>
{{range .Status.Drops}}<tr><td>{{.Reason}}</td><td class="n">{{.Count}}</td></tr>
{{else}}<tr><td colspan="2">nothing</td></tr>
{{end}}</table>
<h2>Services with traffic</h2>
<table>
<tr><th>Service</th><th>Port</th><th class="n">Connections</th><th class="n">Packets</th><th class="n">Bytes</th></tr>
{{range .Traffic}}<tr><td>{{.Service}}</td><td>{{orNone .PortName}}</td><td class="n">{{.Connections}}</td><td class="n">{{.Packets}}</td><td class="n">{{.Bytes}}</td></tr>
{{else}}<tr><td colspan="5">none yet</td></tr>
{{end}}</table>
{{if .More}}<p>and {{.More}} more: fairlead dump counters</p>{{end}}
</body>
</html>
`))

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
	shown := s.Traffic[:min(len(s.Traffic), pageTraffic)]
	var b bytes.Buffer
	if err := page.Execute(&b, struct {
		Node    string
		Now     time.Time
		Status  *Status
		Traffic []Traffic
		More    int
	}{p.Node, now().UTC(), s, shown, len(s.Traffic) - len(shown)}); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	h.Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write(b.Bytes()) // the client may go
}
