// SPDX-License-Identifier: Apache-2.0

// Package debian gets packages of a suite of Debian's by apt, for any of its
// architectures, with sources, lists and a cache of its own: the host's are
// neither used nor touched. It knows no package.
package debian

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

// Archive is one suite for one architecture, as it is now.
type Archive struct {
	dir string
	ctx context.Context
}

// Open gets the lists of a suite ("bookworm") and its security updates for an
// architecture ("amd64"), into a directory that it makes and that may be used
// again. The archive is what $FAIRLEAD_DEBIAN_MIRROR names, what a Debian host
// uses, or Debian's own. Open, and later calls, end with ctx.
func Open(ctx context.Context, dir, suite, arch string) (*Archive, error) {
	a := &Archive{dir: dir, ctx: ctx}
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
		"sources.list": fmt.Sprintf("deb [arch=%[5]s signed-by=%[1]s] %[2]s %[4]s main\ndeb [arch=%[5]s signed-by=%[1]s] %[3]s %[4]s-security main\n",
			keyring, archive, security, suite, arch),
		"status": "",
		"apt.conf": fmt.Sprintf(`Dir::Etc::Parts "%[1]s/parts"; Dir::Etc::Main "/dev/null"; Dir::Etc::SourceParts "/dev/null";
Dir::Etc::SourceList "%[1]s/sources.list"; Dir::State "%[1]s"; Dir::State::Lists "%[1]s/lists"; Dir::State::Status "%[1]s/status";
Dir::Cache "%[1]s"; Dir::Cache::Archives "%[1]s/archives"; Dir::Log "/dev/null";
APT::Architecture "%[2]s"; APT::Architectures "%[2]s"; APT::Sandbox::User "root"; Acquire::Languages "none"; Acquire::Retries "3";
`, dir, arch) + hostSettings(ctx),
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

// Show is what apt-cache says of the newest version of a package.
func (a *Archive) Show(pkg string) (string, error) {
	return a.output("", "apt-cache", "show", "--no-all-versions", pkg)
}

// Download fetches a package into an empty directory, verified by the archive's
// signature.
func (a *Archive) Download(dir, pkg, version string) (path string, err error) {
	if err := a.run(dir, "apt-get", "-qq", "download", pkg+"="+version); err != nil {
		return "", err
	}
	found, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(found) != 1 {
		return "", fmt.Errorf("download %s %s: found %v (%w)", pkg, version, found, err)
	}
	return found[0], nil
}

func (a *Archive) run(dir, name string, args ...string) error {
	_, err := a.output(dir, name, args...)
	return err
}

func (a *Archive) output(dir, name string, args ...string) (string, error) {
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
