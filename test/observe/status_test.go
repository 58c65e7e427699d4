// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"bytes"
	"encoding/json"
	"image/png"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"fairlead.dev/controller/status"
	"fairlead.dev/test/internal/output"
)

func (b *bed) hasAStatus(t *testing.T) {
	text, err := b.run(b.binary, "status", "--bpffs", b.node.BPFFS)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("fairlead status:\n%s", text)
	for _, want := range []string{"dataplane         ebpf", "3 Services", "connected", "no_backends", "default/web", "conntrack"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
	if n := strings.Count(text, "\n"); n > 40 {
		t.Errorf("%d lines are more than a screen", n)
	}
	var s status.Status
	if out, err := b.run(b.binary, "status", "-o", "json", "--bpffs", b.node.BPFFS); err != nil || json.Unmarshal([]byte(out), &s) != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	if s.Agent == nil || s.Services != 3 || len(s.Traffic) == 0 || s.Agent.ProgrammingP99Seconds == nil || s.Agent.LastChangeSeconds <= 0 || len(s.Agent.Maps) == 0 {
		t.Errorf("%+v, agent %+v", s, s.Agent)
	}
	// What the kernel holds and what the agent counts are the same.
	code, metrics := b.get("http://127.0.0.1:10249/metrics")
	for name, n := range map[string]int{"fairlead_services": s.Services, "fairlead_frontends": s.Frontends} {
		if line := name + " " + jsonNumber(n) + "\n"; code != http.StatusOK || !strings.Contains(metrics, "\n"+line) {
			t.Errorf("the kernel has %d, the metrics do not say %q", n, line)
		}
	}
}

func (b *bed) hasAStatusWhenDead(t *testing.T) {
	if err := b.agent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the status says that there is no agent", func() (bool, string) {
		var s status.Status
		out, err := b.run(b.binary, "status", "-o", "json", "--bpffs", b.node.BPFFS)
		if err != nil || json.Unmarshal([]byte(out), &s) != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if s.Services != 3 || len(s.Traffic) == 0 {
			t.Errorf("what the kernel holds is gone with the agent:\n%s", out)
		}
		return s.Agent == nil && strings.Contains(s.AgentError, "none runs"), out
	})
}

func jsonNumber(n int) string {
	b, _ := json.Marshal(n)
	return string(b)
}

const statusURL = "http://127.0.0.1:10249/status"

func (b *bed) hasAPage(t *testing.T) {
	code, body := b.get(statusURL)
	if code != http.StatusOK || !strings.Contains(body, "default/web") {
		t.Fatalf("%d %s", code, body)
	}
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("SKIPPED: chromium is not installed: apt-get install chromium")
	}
	picture := b.path("status.png")
	// As root, in a namespace without a way out; it would not start a sandbox.
	args := []string{"--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--user-data-dir=" + b.path("chromium"), "--window-size=1000,1200", "--enable-logging=stderr", "--virtual-time-budget=2000"}
	run := func(more ...string) (string, string) {
		cmd := exec.Command(chromium, append(args, more...)...)
		cmd.Env = append(os.Environ(), "HOME="+b.path("home"), "XDG_CONFIG_HOME="+b.path("home"), "XDG_CACHE_HOME="+b.path("home"))
		var out, said output.Buffer
		cmd.Stdout, cmd.Stderr = &out, &said
		if err := b.thread.Start(cmd, b.host.CgroupDir); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Fatalf("chromium: %v: %s", err, said.String())
		}
		return out.String(), said.String()
	}
	dom, console := run("--dump-dom", statusURL)
	for _, want := range []string{"<h1>fairlead on " + b.node.Name + "</h1>", "default/web", "no_backends", "connected"} {
		if !strings.Contains(dom, want) {
			t.Errorf("the browser does not have %q in:\n%s", want, dom)
		}
	}
	if strings.Contains(console, "Content Security Policy") || strings.Contains(console, "Refused to") {
		t.Errorf("the page breaks its own policy:\n%s", console)
	}
	run("--screenshot="+picture, statusURL)
	content, err := os.ReadFile(picture)
	if err != nil {
		t.Fatal(err)
	}
	if keep := os.Getenv("FAIRLEAD_SCREENSHOT_DIR"); keep != "" {
		if err := os.WriteFile(filepath.Join(keep, "status.png"), content, 0o644); err != nil {
			t.Error(err)
		}
	}
	image, err := png.Decode(bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	colours, bounds := map[[3]uint32]int{}, image.Bounds()
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			r, g, b, _ := image.At(x, y).RGBA()
			colours[[3]uint32{r >> 8, g >> 8, b >> 8}]++
		}
	}
	// The colour of headings is the style's own: without it they would be black.
	if colours[[3]uint32{0x51, 0x60, 0x6f}] < 50 {
		t.Errorf("a picture of %v with %d colours, and none of the style's", bounds, len(colours))
	}
}
