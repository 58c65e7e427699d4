// SPDX-License-Identifier: Apache-2.0

package housekeeping

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"fairlead.dev/podrunner/cri"
	"fairlead.dev/podrunner/podspec"
)

// Names of rotated logs are the kubelet's: 0.log.20260102-150405, and with .gz
// from the next rotation on. Log collectors and `kubectl logs` expect them.
const (
	stampLayout = "20060102-150405"
	compressed  = ".gz"
	unfinished  = ".tmp"
)

// logFile is the log of one running container.
type logFile struct {
	path string
	told bool // that it cannot be rotated
}

// rotateLogs rotates what has become too large. At rest it costs one stat per
// container.
func (k *Keeper) rotateLogs(ctx context.Context, c *cri.Client, containers []*runtimeapi.Container) {
	if k.o.LogMaxBytes < 0 {
		return
	}
	running := make(map[string]*logFile, len(k.logs))
	for _, r := range containers {
		if r.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			continue
		}
		l := k.logs[r.Id]
		if l == nil {
			l = &logFile{path: k.logPath(r)}
		}
		running[r.Id] = l
		if l.path == "" || ctx.Err() != nil {
			continue
		}
		err := k.checkLog(ctx, l.path, func() error { return c.Runtime.ReopenContainerLog(ctx, r.Id) })
		if err != nil && !l.told && ctx.Err() == nil {
			k.log.Warn("rotate a container's log", "log", l.path, "error", err)
		}
		l.told = err != nil
	}
	k.logs = running
}

// logPath is where a container's log is, "" where it is not one of a Pod.
func (k *Keeper) logPath(c *runtimeapi.Container) string {
	info, _ := podspec.ParseContainer(c.Labels, c.Annotations) // what is unreadable there does not matter here
	if info.UID == "" || info.Name == "" || info.Namespace == "" || info.Pod == "" {
		return ""
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: info.Namespace, Name: info.Pod, UID: info.UID}}
	path := filepath.Join(podspec.LogDir(pod, &podspec.Facts{LogRoot: k.o.LogRoot}), podspec.LogPath(info.Name, info.RestartCount))
	below, err := filepath.Rel(k.o.LogRoot, path)
	if err != nil || strings.Count(below, "/") != 2 || !filepath.IsLocal(below) {
		return "" // labels that no Pod has
	}
	return path
}

// checkLog rotates a log that is too large. One that is not there was moved
// away by an agent that ended before it told the runtime.
func (k *Keeper) checkLog(ctx context.Context, path string, reopen func() error) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return reopen()
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is no regular file", path)
	case info.Size() < k.o.LogMaxBytes:
		return nil
	}
	return k.rotate(ctx, path, reopen)
}

// rotate moves a log away and has the runtime begin the next. What was moved by
// the last rotation is compressed only now: at that time the runtime, and who
// follows the log, may still have had it open.
func (k *Keeper) rotate(ctx context.Context, path string, reopen func() error) error {
	old, err := rotatedLogs(path)
	if err != nil {
		return err
	}
	// The present file, the one that it becomes now, and these.
	for keep := max(k.o.LogMaxFiles-2, 0); len(old) > keep; old = old[1:] {
		if err := os.Remove(old[0]); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the oldest log: %w", err)
		}
	}
	var errs []error
	for _, l := range old {
		if !strings.HasSuffix(l, compressed) {
			// On a full disk it stays as it is: not to rotate would be worse.
			errs = append(errs, compress(ctx, l))
		}
	}
	to := path + "." + nextStamp(k.now(), path, old)
	if err := moveLog(path, to); err != nil {
		return errors.Join(append(errs, err)...)
	}
	if err := reopen(); err != nil {
		errs = append(errs, fmt.Errorf("reopen the log: %w", err))
		// So that it is tried again. The runtime may have begun the next one
		// after all: then both stay.
		if err := moveLog(to, path); err != nil && !errors.Is(err, fs.ErrExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// moveLog never replaces a file: that would lose its lines.
func moveLog(from, to string) error {
	if err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE); err != nil {
		return fmt.Errorf("move a log: %w", &os.LinkError{Op: "rename", Old: from, New: to, Err: err})
	}
	return nil
}

// nextStamp is the time in a rotated log's name: now, unless there is a later
// one already, because the clock was set or the last rotation is no second ago.
// Names sort by age, always.
func nextStamp(now time.Time, path string, old []string) string {
	stamp := now.Format(stampLayout)
	if len(old) == 0 {
		return stamp
	}
	last := strings.TrimSuffix(strings.TrimPrefix(old[len(old)-1], path+"."), compressed)
	if t, err := time.Parse(stampLayout, last); err == nil && stamp <= last {
		stamp = t.Add(time.Second).Format(stampLayout)
	}
	return stamp
}

// rotatedLogs are the files that a log was rotated to, the oldest first. It
// removes what an interrupted compression left.
func rotatedLogs(path string) (logs []string, err error) {
	entries, err := os.ReadDir(filepath.Dir(path)) // sorted
	if err != nil {
		return nil, fmt.Errorf("list rotated logs: %w", err)
	}
	have := map[string]bool{}
	for _, e := range entries {
		have[e.Name()] = true
	}
	prefix := filepath.Base(path) + "."
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), prefix) || !e.Type().IsRegular() {
			continue
		}
		full := filepath.Join(filepath.Dir(path), e.Name())
		if strings.HasSuffix(e.Name(), unfinished) || have[e.Name()+compressed] {
			if err := os.Remove(full); err != nil {
				return nil, fmt.Errorf("remove what an earlier rotation left: %w", err)
			}
			continue
		}
		logs = append(logs, full)
	}
	slices.Sort(logs)
	return logs, nil
}

// compress makes path.gz of path. When it ends early, path is as it was.
func compress(ctx context.Context, path string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("compress %s: %w", path, err)
		}
	}()
	from, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer from.Close()
	info, err := from.Stat()
	if err != nil {
		return err
	}
	temporary := path + unfinished
	to, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, info.Mode().Perm())
	if err != nil {
		return err
	}
	defer os.Remove(temporary) // gone already where all went well
	defer to.Close()
	// The node's CPU is its Pods': the fastest level takes a third of the default's.
	w, err := gzip.NewWriterLevel(to, gzip.BestSpeed)
	if err != nil {
		return err
	}
	if _, err := io.Copy(w, untilDone{ctx, from}); err != nil {
		return err
	}
	if err := errors.Join(w.Close(), to.Close()); err != nil {
		return err
	}
	if err := os.Rename(temporary, path+compressed); err != nil {
		return err
	}
	return os.Remove(path)
}

// untilDone reads until ctx ends.
type untilDone struct {
	ctx context.Context
	io.Reader
}

func (r untilDone) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(b)
}

// removeLog removes a log and what was rotated away of it.
func removeLog(path string) {
	_ = os.Remove(path)
	old, _ := rotatedLogs(path)
	for _, l := range old {
		_ = os.Remove(l)
	}
}
