// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-client/pkg/logs"

	"fairlead.dev/podrunner/podspec"
)

// Bounds of termination messages, as the kubelet's: of the file in bytes, of
// what is taken from the log in lines and bytes.
const (
	maxMessageBytes    = 4096
	maxLogMessageLines = 80
	maxLogMessageBytes = 2048
)

// terminationMessage is the runtime's message with what the container left in
// its termination log, or wrote last.
func (c *Client) terminationMessage(ctx context.Context, s *runtimeapi.ContainerStatus, info *podspec.ContainerInfo) string {
	fromLog := info.TerminationMessagePolicy == corev1.TerminationMessageFallbackToLogsOnError && s.ExitCode != 0 && s.Reason != "ContainerCannotRun"
	message, err := terminationFile(s, info.TerminationMessagePath)
	switch {
	case err != nil:
		message = fmt.Sprintf("Error on reading termination log %s: %v", info.TerminationMessagePath, err)
	case message == "" && fromLog:
		message = c.lastOfLog(ctx, s.Id, s.LogPath)
	}
	if s.Message == "" || message == "" {
		return s.Message + message
	}
	return s.Message + ": " + message
}

func terminationFile(s *runtimeapi.ContainerStatus, inside string) (string, error) {
	if inside == "" {
		return "", nil
	}
	inside = path.Join("/", inside)
	for _, m := range s.Mounts {
		if m.ContainerPath == inside {
			return tailOf(m.HostPath, maxMessageBytes)
		}
	}
	return "", nil
}

// tailOf reads the last bytes of a regular file: what the container made of it
// is not followed elsewhere.
func tailOf(name string, limit int64) (string, error) {
	info, err := os.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", errors.New("not a regular file")
	}
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if over := info.Size() - limit; over > 0 {
		if _, err := f.Seek(over, io.SeekStart); err != nil {
			return "", err
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, limit))
	return string(b), err
}

func (c *Client) lastOfLog(ctx context.Context, id, logPath string) string {
	if logPath == "" {
		return ""
	}
	lines, limit := int64(maxLogMessageLines), int64(maxLogMessageBytes)
	var b bytes.Buffer
	o := &logs.LogOptions{TailLines: &lines, LimitBytes: &limit}
	if err := logs.ReadLogs(ctx, logPath, id, o, c.Runtime, &b, &b); err != nil {
		return fmt.Sprintf("Error on reading termination message from logs: %v", err)
	}
	return strings.ToValidUTF8(b.String(), "�")
}
