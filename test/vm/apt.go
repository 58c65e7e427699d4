// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
)

const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// apt is a package manager with sources, lists and a cache of its own, for one
// suite of Debian's. The host's are neither used nor touched.
type apt struct {
	dir string
	ctx context.Context
}

func newAPT(ctx context.Context, dir, suite string) (*apt, error) {
	a := &apt{dir: dir, ctx: ctx}
	if _, err := os.Stat(keyring); err != nil {
		return nil, fmt.Errorf("no keys to verify Debian's packages with: install debian-archive-keyring: %w", err)
	}
	for _, d := range []string{"lists/partial", "archives/partial", "parts"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	archive, security := mirror(ctx)
	files := map[string]string{
		"sources.list": fmt.Sprintf("deb [arch=amd64 signed-by=%[1]s] %[2]s %[4]s main\ndeb [arch=amd64 signed-by=%[1]s] %[3]s %[4]s-security main\n",
			keyring, archive, security, suite),
		"status": "",
		"apt.conf": fmt.Sprintf(`Dir::Etc::Parts "%[1]s/parts"; Dir::Etc::Main "/dev/null"; Dir::Etc::SourceParts "/dev/null";
Dir::Etc::SourceList "%[1]s/sources.list"; Dir::State "%[1]s"; Dir::State::Lists "%[1]s/lists"; Dir::State::Status "%[1]s/status";
Dir::Cache "%[1]s"; Dir::Cache::Archives "%[1]s/archives"; Dir::Log "/dev/null";
APT::Architecture "amd64"; APT::Architectures "amd64"; APT::Sandbox::User "root"; Acquire::Languages "none"; Acquire::Retries "3";
`, dir) + hostSettings(ctx),
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			return nil, err
		}
	}
	return a, a.run("", "apt-get", "-qq", "update")
}

// mirror is where Debian's packages come from: what FAIRLEAD_DEBIAN_MIRROR
// names, what a Debian host uses, or Debian's own.
func mirror(ctx context.Context) (archive, security string) {
	if m := strings.TrimSuffix(os.Getenv("FAIRLEAD_DEBIAN_MIRROR"), "/"); m != "" {
		return m, m + "-security"
	}
	archive, security = "http://deb.debian.org/debian", "http://deb.debian.org/debian-security"
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(REPO_URI)").Output()
	if err != nil {
		return archive, security
	}
	for uri := range strings.FieldsSeq(string(out)) {
		uri = strings.TrimSuffix(uri, "/")
		switch {
		case !strings.HasPrefix(uri, "http"):
		case path.Base(uri) == "debian":
			archive = uri
		case path.Base(uri) == "debian-security":
			security = uri
		}
	}
	return archive, security
}

// hostSettings are how the host reaches a mirror: proxies, and whether its
// clock is to be trusted.
func hostSettings(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "apt-config", "dump").Output()
	if err != nil {
		return ""
	}
	var b strings.Builder
	for line := range strings.Lines(string(out)) {
		for _, prefix := range []string{"Acquire::http", "Acquire::Check-"} {
			if strings.HasPrefix(line, prefix) {
				b.WriteString(line)
			}
		}
	}
	return b.String()
}

// kernel is the name and the version of the suite's newest kernel package.
func (a *apt) kernel() (pkg, version string, err error) {
	out, err := a.output("", "apt-cache", "show", "--no-all-versions", "linux-image-amd64")
	if err != nil {
		return "", "", err
	}
	for line := range strings.Lines(out) {
		// Depends: linux-image-6.1.0-50-amd64 (= 6.1.192-2)
		deps, ok := strings.CutPrefix(line, "Depends: ")
		if !ok {
			continue
		}
		for dep := range strings.SplitSeq(deps, ",") {
			var p, v string
			if n, _ := fmt.Sscanf(dep, "%s (= %s", &p, &v); n == 2 && strings.HasPrefix(p, "linux-image-") {
				return p, strings.TrimSuffix(v, ")"), nil
			}
		}
	}
	return "", "", fmt.Errorf("linux-image-amd64 names no kernel package:\n%s", out)
}

// download fetches a package into dir, verified.
func (a *apt) download(dir, pkg, version string) (path string, err error) {
	if err := a.run(dir, "apt-get", "-qq", "download", pkg+"="+version); err != nil {
		return "", err
	}
	found, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(found) != 1 {
		return "", fmt.Errorf("download %s %s: found %v (%w)", pkg, version, found, err)
	}
	return found[0], nil
}

func (a *apt) run(dir, name string, args ...string) error {
	_, err := a.output(dir, name, args...)
	return err
}

func (a *apt) output(dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(a.ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "APT_CONFIG="+filepath.Join(a.dir, "apt.conf"), "LC_ALL=C")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, stderr.Bytes())
	}
	return string(out), nil
}
