// SPDX-License-Identifier: Apache-2.0

// Package cgroup finds and removes the cgroups of tests.
package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Mount finds where cgroup2 is mounted, alone or beside version 1.
func Mount() (string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("find cgroup2: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		before, after, _ := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if strings.HasPrefix(after, "cgroup2 ") && len(fields) > 4 && fields[3] == "/" {
			return fields[4], nil
		}
	}
	return "", errors.New("find cgroup2: it is not mounted; mount -t cgroup2 none /sys/fs/cgroup/unified")
}

// Remove removes a cgroup and those below it. It waits for the processes in
// them, which end by themselves, for as long as patience. One that is not there
// is no error.
func Remove(root string, patience time.Duration) error {
	var dirs []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	deadline := time.Now().Add(patience)
	for _, dir := range slices.Backward(dirs) {
		for {
			err := os.Remove(dir)
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				break
			}
			if time.Now().After(deadline) {
				return err
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	return nil
}
