// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
)

// log is what an agent says on stderr. It is read to its end.
type log struct {
	mu    sync.Mutex
	lines []string
	ended bool
	more  chan struct{} // replaced and closed with each line
}

// logKeep is how many lines are kept for an error.
const logKeep = 30

// logOf is to be called before the command is started.
func logOf(cmd *exec.Cmd) (*log, error) {
	out, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	l := &log{more: make(chan struct{})}
	go l.read(out)
	return l, nil
}

func (l *log) read(out io.Reader) {
	s := bufio.NewScanner(out)
	for s.Scan() {
		l.put(s.Text(), false)
	}
	l.put("(it ended)", true)
}

func (l *log) put(line string, ended bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lines = append(l.lines, line); len(l.lines) > logKeep {
		l.lines = l.lines[1:]
	}
	l.ended = ended
	close(l.more)
	l.more = make(chan struct{})
}

// last are the last lines.
func (l *log) last() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines, "\n")
}

// inLine waits until fairlead, with --log-format json, says that it has
// programmed n Services.
func (l *log) inLine(ctx context.Context, n int) error {
	for {
		l.mu.Lock()
		lines, ended, more := l.lines, l.ended, l.more
		l.mu.Unlock()
		for _, text := range lines {
			var line struct {
				Msg      string
				Services int
			}
			if json.Unmarshal([]byte(text), &line) != nil || line.Msg != "kernel in line with the rule table" {
				continue
			}
			if line.Services != n {
				return fmt.Errorf("it programmed %d Services, not %d; it said:\n%s", line.Services, n, l.last())
			}
			return nil
		}
		if ended {
			return fmt.Errorf("it ended; it said:\n%s", l.last())
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; it said:\n%s", context.Cause(ctx), l.last())
		case <-more:
		}
	}
}
