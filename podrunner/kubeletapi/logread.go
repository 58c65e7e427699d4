// SPDX-License-Identifier: Apache-2.0

package kubeletapi

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// LogOptions say what of a log is wanted. The zero value wants nothing: see
// AllLogs.
type LogOptions struct {
	// Tail is the number of entries at the end of the present file; -1: all.
	Tail int64
	// Limit is the number of bytes; -1: all.
	Limit int64
	// Since leaves out what is older.
	Since time.Time
	// Follow goes on until the container has ended.
	Follow bool
	// Timestamps are put before each line.
	Timestamps bool
	// Stdout and Stderr are what is wanted of both.
	Stdout, Stderr bool
}

// AllLogs wants the whole log.
var AllLogs = LogOptions{Tail: -1, Limit: -1, Stdout: true, Stderr: true}

// How often a log that is followed is looked at: at first when it said nothing,
// and at last.
const (
	followFirst = 10 * time.Millisecond
	followMost  = 160 * time.Millisecond
	// followEnded is how often the runtime is asked whether the container runs.
	followEnded = time.Second
)

// logStamp is the time before a line.
const logStamp = "2006-01-02T15:04:05.000000000Z07:00"

// ReadLog writes the log of a container to w. A line of any length is written
// with 64 KiB of memory. While it follows it goes on in the next file when the
// log is rotated, without loss; running says whether the container does, and
// what w holds back is flushed whenever there is nothing more to read.
func ReadLog(ctx context.Context, path string, o LogOptions, w io.Writer, flush func(), running func(context.Context) (bool, error)) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open log file: %w", err)
	}
	r := &logReader{path: path, f: f, o: o, w: w, left: o.Limit, lineStart: true}
	defer func() { r.f.Close() }()
	start, err := tailStart(f, o.Tail)
	if err == nil {
		_, err = f.Seek(start, io.SeekStart)
	}
	if err != nil {
		return fmt.Errorf("find the last %d entries of log file %s: %w", o.Tail, path, err)
	}
	r.in = bufio.NewReaderSize(f, 64<<10)
	if o.Limit == 0 {
		return nil
	}
	err = r.copy(ctx, flush, running)
	if errors.Is(err, errLimit) {
		return nil
	}
	return err
}

// errLimit ends the reading when all was written that was wanted.
var errLimit = errors.New("limit reached")

// logReader is at one place of a log.
type logReader struct {
	path string
	f    *os.File
	in   *bufio.Reader
	o    LogOptions
	w    io.Writer
	left int64 // bytes that may still be written; negative: no limit

	line      logLine
	within    bool // what comes is more of the entry line
	skip      bool // it is not wanted
	lineStart bool // what was written last ended with a newline
}

func (r *logReader) copy(ctx context.Context, flush func(), running func(context.Context) (bool, error)) error {
	w := follow{ctx: ctx, running: running, wait: followFirst}
	for {
		chunk, err := r.in.ReadSlice('\n')
		switch {
		case err == nil, errors.Is(err, bufio.ErrBufferFull):
			w.wait = followFirst
			if err := r.take(chunk); err != nil {
				return err
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			continue
		case !errors.Is(err, io.EOF):
			return fmt.Errorf("read log file %s: %w", r.path, err)
		}
		more := false
		if r.o.Follow {
			flush()
			if more, err = w.more(r, int64(len(chunk))); err != nil {
				return err
			}
		}
		if !more {
			// The container was killed within an entry, or its disk is full.
			if err := r.take(chunk); err != nil {
				return err
			}
			flush()
			return nil
		}
	}
}

// take takes a piece of the file: an entry, or a part of a long one.
func (r *logReader) take(chunk []byte) error {
	if len(chunk) == 0 {
		return nil
	}
	content, ended := bytes.CutSuffix(chunk, []byte("\n"))
	first := !r.within
	if first {
		line, err := parseLogLine(content)
		r.line = line
		wanted := r.o.Stdout && !line.stderr || r.o.Stderr && line.stderr
		r.skip = err != nil || !wanted || line.time.Before(r.o.Since)
		content = line.content
	}
	r.within = !ended
	if r.skip {
		return nil
	}
	if ended && !r.line.partial {
		content = chunk[len(chunk)-len(content)-1:]
	}
	if r.o.Timestamps && first && r.lineStart {
		if err := r.write([]byte(r.line.time.Format(logStamp) + " ")); err != nil {
			return err
		}
	}
	if err := r.write(content); err != nil {
		return err
	}
	if len(content) > 0 {
		r.lineStart = content[len(content)-1] == '\n'
	}
	return nil
}

func (r *logReader) write(b []byte) error {
	if r.left >= 0 && int64(len(b)) >= r.left {
		b = b[:r.left]
	}
	n, err := r.w.Write(b)
	if err != nil {
		return fmt.Errorf("write log: %w", err)
	}
	if r.left >= 0 {
		if r.left -= int64(n); r.left == 0 {
			return errLimit
		}
	}
	return nil
}

// follow waits for more of a log.
type follow struct {
	ctx     context.Context
	running func(context.Context) (bool, error)
	wait    time.Duration
	asked   time.Time
	ended   bool // the container has ended: what is there now is the last
	rotated bool // the file was moved away: what is there now is its last
}

// more is called at the end of the file, with the length of an entry that has
// no end yet; it goes back to its start. It waits, and says whether to read on.
func (w *follow) more(r *logReader, unfinished int64) (bool, error) {
	if unfinished > 0 && !w.ended && !w.rotated {
		if _, err := r.f.Seek(-unfinished, io.SeekCurrent); err != nil {
			return false, fmt.Errorf("read log file %s again: %w", r.path, err)
		}
		r.in.Reset(r.f)
	}
	if w.rotated {
		if opened, err := r.reopen(); opened || err != nil {
			w.rotated = false
			return opened, err
		}
		// It was moved, and the runtime did not make the next one yet.
		w.rotated = false
	}
	if w.ended {
		return false, nil
	}
	select {
	case <-w.ctx.Done():
		return false, w.ctx.Err()
	case <-time.After(w.wait):
	}
	w.wait = min(2*w.wait, followMost)
	w.rotated = r.moved()
	if time.Since(w.asked) >= followEnded {
		w.asked = time.Now()
		run, err := w.running(w.ctx)
		// A runtime that does not answer may still have the container.
		w.ended = err == nil && !run
	}
	return true, r.rewind()
}

// moved says whether the path leads to another file now, or to none.
func (r *logReader) moved() bool {
	have, err := r.f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(r.path)
	return err != nil || !os.SameFile(have, there)
}

// reopen goes on with the file that is at the path now.
func (r *logReader) reopen() (bool, error) {
	f, err := os.Open(r.path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open log file: %w", err)
	}
	r.f.Close()
	r.f, r.within = f, false
	r.in.Reset(f)
	return true, nil
}

// rewind begins again with a file that was cut.
func (r *logReader) rewind() error {
	at, err := r.f.Seek(0, io.SeekCurrent)
	if err != nil {
		return fmt.Errorf("place in log file %s: %w", r.path, err)
	}
	i, err := r.f.Stat()
	if err != nil || i.Size() >= at {
		return nil
	}
	if _, err := r.f.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("read log file %s again: %w", r.path, err)
	}
	r.in.Reset(r.f)
	r.within = false
	return nil
}

// tailStart is where the last n entries begin; -1: all. An entry without an end
// is not counted.
func tailStart(f io.ReaderAt, n int64) (int64, error) {
	if n < 0 {
		return 0, nil
	}
	size, err := sizeOf(f)
	if err != nil {
		return 0, err
	}
	buf := make([]byte, 32<<10)
	for end := size; end > 0; {
		start := max(0, end-int64(len(buf)))
		block := buf[:end-start]
		if _, err := f.ReadAt(block, start); err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		for i := len(block) - 1; i >= 0; i-- {
			if block[i] != '\n' {
				continue
			}
			if n == 0 {
				return start + int64(i) + 1, nil
			}
			n--
		}
		end = start
	}
	return 0, nil
}

func sizeOf(f io.ReaderAt) (int64, error) {
	switch f := f.(type) {
	case *os.File:
		i, err := f.Stat()
		if err != nil {
			return 0, err
		}
		return i.Size(), nil
	case *bytes.Reader:
		return f.Size(), nil
	}
	return 0, fmt.Errorf("the size of a %T is not known", f)
}
