// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// modules are the files to load for the named modules, each after those it
// needs. What is built into the kernel needs none; a name that is neither is
// an error.
func (in Installed) modules(ctx context.Context, names []string) (paths []string, err error) {
	for _, name := range names {
		cmd := exec.CommandContext(ctx, tool("modprobe"), "--dirname", in.root, "--config", "/dev/null",
			"--set-version", in.Release, "--show-depends", name)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("module %s of kernel %s: %w: %s", name, in.Release, err, bytes.TrimSpace(stderr.Bytes()))
		}
		for line := range strings.Lines(string(out)) { // insmod PATH [options], or builtin NAME
			if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "insmod" && !slices.Contains(paths, fields[1]) {
				paths = append(paths, fields[1])
			}
		}
	}
	return paths, nil
}

// addModule adds a module to the archive, unpacked: not every kernel here can
// unpack its own.
func addModule(ctx context.Context, a *archive, dir, path string) (name string, err error) {
	name = filepath.Base(path)
	if plain, ok := strings.CutSuffix(name, ".xz"); ok {
		var stderr bytes.Buffer
		cmd := exec.CommandContext(ctx, "xz", "-dc", path)
		cmd.Stderr = &stderr
		content, err := cmd.Output()
		if err != nil {
			return "", fmt.Errorf("unpack %s: %w: %s", path, err, stderr.Bytes())
		}
		return plain, a.file(filepath.Join(dir, plain), 0o644, bytes.NewReader(content), int64(len(content)))
	}
	if !strings.HasSuffix(name, ".ko") {
		return "", fmt.Errorf("unpack %s: neither .ko nor .ko.xz", path)
	}
	return name, a.hostFile(filepath.Join(dir, name), path)
}

// tool finds a program of the administrator's where PATH does not have it.
func tool(name string) string {
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path := filepath.Join(dir, name); isProgram(path) {
			return path
		}
	}
	return name
}

func isProgram(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

func runTool(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return nil
}
