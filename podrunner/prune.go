// SPDX-License-Identifier: Apache-2.0

package podrunner

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
)

// kept is how many containers of a name are kept: the newest and the one before
// it, whose end and log are asked for.
const kept = 2

// prune removes containers that nobody asks for any more, with their logs, and
// sandboxes that have none left. So the runtime's lists stay short, however
// often a container ends.
func (w *worker) prune(ctx context.Context) {
	seen := map[string]int{}
	used := map[string]bool{}
	for _, c := range w.observed.Containers { // newest first
		seen[c.Name]++
		if seen[c.Name] <= kept {
			used[c.SandboxID] = true
			continue
		}
		if err := w.r.client.RemoveContainer(ctx, c.ID); err != nil {
			w.r.log.Debug("remove an old container", "pod", w.key, "container", c.Name, "error", err)
			used[c.SandboxID] = true
			continue
		}
		w.forgetContainer(c.ID)
		removeLogs(c.LogPath)
		if err := w.r.volumes.ForgetTerminationLog(w.uid, c.Name, c.RestartCount); err != nil {
			w.r.log.Debug("remove an old termination log", "pod", w.key, "container", c.Name, "error", err)
		}
	}
	if len(w.observed.Sandboxes) < 2 {
		return
	}
	for _, s := range w.observed.Sandboxes[1:] {
		if used[s.ID] || s.Ready {
			continue
		}
		if err := w.r.client.RemoveSandbox(ctx, s.ID); err != nil {
			w.r.log.Debug("remove an old sandbox", "pod", w.key, "error", err)
		}
		w.lookAgain()
	}
}

// removeLogs removes a log and what was rotated away of it.
func removeLogs(path string) {
	if path == "" {
		return
	}
	_ = os.Remove(path)
	rotated, _ := filepath.Glob(path + ".*")
	for _, r := range rotated {
		_ = os.Remove(r)
	}
}

var logName = regexp.MustCompile(`^(\d+)\.log(\..*)?$`)

// restartsByLogs counts the restarts of a container that the runtime does not
// know any more by the logs that are left of it, in their directory.
func restartsByLogs(dir string) (restarts int) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0
	}
	for _, e := range entries {
		if m := logName.FindStringSubmatch(e.Name()); m != nil && !e.IsDir() {
			if n, err := strconv.Atoi(m[1]); err == nil {
				restarts = max(restarts, n+1)
			}
		}
	}
	return restarts
}
