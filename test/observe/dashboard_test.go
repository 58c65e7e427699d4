// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const dashboardFile = "../../manifests/grafana/fairlead.json"

// panel is what this test reads of a dashboard's.
type panel struct {
	ID          int
	Type, Title string
	Description string
	Targets     []struct{ Expr string }
	Datasource  struct{ UID string }
}

func dashboard(t *testing.T) (panels []panel) {
	t.Helper()
	text, err := os.ReadFile(dashboardFile)
	if err != nil {
		t.Fatal(err)
	}
	var d struct{ Panels []panel }
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	return d.Panels
}

func TestEveryPanelAsksTheChosenPrometheusAndSaysWhatItShows(t *testing.T) {
	ids := map[int]bool{}
	for _, p := range dashboard(t) {
		if ids[p.ID] {
			t.Errorf("panel %q: id %d is taken", p.Title, p.ID)
		}
		ids[p.ID] = true
		if p.Type == "row" {
			continue
		}
		if len(p.Targets) == 0 || p.Datasource.UID != "${datasource}" || p.Description == "" {
			t.Errorf("panel %q: %d queries of %q, description %q", p.Title, len(p.Targets), p.Datasource.UID, p.Description)
		}
		for _, target := range p.Targets {
			if !strings.Contains(target.Expr, `instance=~"$instance"`) {
				t.Errorf("panel %q does not follow the choice of nodes: %s", p.Title, target.Expr)
			}
		}
	}
}

const prometheusConfig = `
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [%s]
scrape_configs:
  - job_name: fairlead
    static_configs: [{targets: ["127.0.0.1:10249"]}]
`

const prometheusAddress = "127.0.0.1:9090"

func (b *bed) fillsTheDashboard(t *testing.T) {
	path, err := exec.LookPath("prometheus")
	if err != nil {
		t.Skip("SKIPPED: prometheus is not installed: apt-get install prometheus")
	}
	rules, err := filepath.Abs("../../manifests/prometheus/rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	config := b.path("prometheus.yml")
	if err := os.WriteFile(config, fmt.Appendf(nil, prometheusConfig, rules), 0o644); err != nil {
		t.Fatal(err)
	}
	_, said := b.start(path, "--config.file", config, "--storage.tsdb.path", b.path("tsdb"), "--web.listen-address", prometheusAddress, "--log.level", "warn")
	eventually(t, "Prometheus is ready", func() (bool, string) {
		code, body := b.get("http://" + prometheusAddress + "/-/ready")
		return code == http.StatusOK, body + said.String()
	})
	queries := 0
	for _, p := range dashboard(t) {
		for _, target := range p.Targets {
			queries++
			// Grafana's rate interval is at least four scrapes.
			expr := strings.NewReplacer("$__rate_interval", "8s", "$instance", ".*").Replace(target.Expr)
			eventually(t, "panel "+p.Title+" shows something", func() (bool, string) {
				values, err := b.query(expr)
				return err == nil && len(values) > 0, fmt.Sprintf("%v, %v for %s", values, err, expr)
			})
		}
	}
	if queries < 25 {
		t.Errorf("only %d queries were tried", queries)
	}
	b.checkRules(t)
}

// query gives the values of an instant query, as Grafana asks it. NaN is a
// panel that shows nothing.
func (b *bed) query(expr string) (values []float64, err error) {
	code, body := b.get("http://" + prometheusAddress + "/api/v1/query?query=" + url.QueryEscape(expr))
	var answer struct {
		Status, Error string
		Data          struct{ Result []struct{ Value [2]any } }
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil || answer.Status != "success" {
		return nil, fmt.Errorf("%d %s %w", code, body, err)
	}
	for _, r := range answer.Data.Result {
		text, _ := r.Value[1].(string)
		if v, err := strconv.ParseFloat(text, 64); err == nil && v == v {
			values = append(values, v)
		}
	}
	return values, nil
}

// checkRules: the alerts are evaluated without an error, and a healthy agent
// raises none.
func (b *bed) checkRules(t *testing.T) {
	type group struct {
		Rules []struct{ Name, Health, LastError, State string }
	}
	eventually(t, "all alerts are evaluated", func() (bool, string) {
		_, body := b.get("http://" + prometheusAddress + "/api/v1/rules")
		var answer struct{ Data struct{ Groups []group } }
		if err := json.Unmarshal([]byte(body), &answer); err != nil {
			return false, err.Error()
		}
		n := 0
		for _, g := range answer.Data.Groups {
			for _, r := range g.Rules {
				if r.Health != "ok" {
					return false, body
				}
				if r.State == "firing" {
					t.Errorf("alert %s of a healthy agent", r.Name)
				}
				n++
			}
		}
		return n >= 8, fmt.Sprintf("%d rules in %s", n, body)
	})
}
