// SPDX-License-Identifier: Apache-2.0

package kubeletapi

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const someLog = `2024-01-01T00:00:01.000000000Z stdout F one
2024-01-01T00:00:02Z stderr F two
this is no entry
2024-01-01T00:00:03.5+01:00 stdout P thr
2024-01-01T00:00:04Z stdout F ee
2024-01-01T00:00:05Z stdout F:more 

2024-01-01T00:00:06Z stdout F six with  spaces 
`

func logFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "0.log")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func stopped(context.Context) (bool, error) { return false, nil }

func TestWhatIsWantedOfALogIsWritten(t *testing.T) {
	path := logFile(t, someLog)
	whole := "one\ntwo\nthree\n\nsix with  spaces \n"
	for _, c := range []struct {
		name   string
		change func(*LogOptions)
		want   string
	}{
		{"all", func(o *LogOptions) {}, whole},
		{"standard output", func(o *LogOptions) { o.Stderr = false }, "one\nthree\n\nsix with  spaces \n"},
		{"standard error", func(o *LogOptions) { o.Stdout = false }, "two\n"},
		{"the last two entries", func(o *LogOptions) { o.Tail = 2 }, "six with  spaces \n"}, // the other has no form
		{"no entry", func(o *LogOptions) { o.Tail = 0 }, ""},
		{"more entries than there are", func(o *LogOptions) { o.Tail = 99 }, whole},
		{"five bytes", func(o *LogOptions) { o.Limit = 5 }, "one\nt"},
		{"as many bytes as there are", func(o *LogOptions) { o.Limit = int64(len(whole)) }, whole},
		{"since a moment", func(o *LogOptions) { o.Since = time.Date(2024, 1, 1, 0, 0, 5, 0, time.UTC) }, "\nsix with  spaces \n"},
		{"with times", func(o *LogOptions) { o.Timestamps = true }, "2024-01-01T00:00:01.000000000Z one\n2024-01-01T00:00:02.000000000Z two\n" +
			"2024-01-01T00:00:03.500000000+01:00 three\n2024-01-01T00:00:05.000000000Z \n2024-01-01T00:00:06.000000000Z six with  spaces \n"},
		{"followed after its container ended", func(o *LogOptions) { o.Follow = true }, whole},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := AllLogs
			c.change(&o)
			var out strings.Builder
			if err := ReadLog(t.Context(), path, o, &out, func() {}, stopped); err != nil {
				t.Fatal(err)
			}
			if out.String() != c.want {
				t.Errorf("got  %q\nwant %q", out.String(), c.want)
			}
		})
	}
}

func TestTheLastEntriesAreFoundWhereverTheyBegin(t *testing.T) {
	seed := time.Now().UnixNano()
	random := rand.New(rand.NewPCG(uint64(seed), 0))
	for range 300 {
		var b bytes.Buffer
		for range random.IntN(20) {
			b.WriteString(strings.Repeat("x", random.IntN(1<<random.IntN(17))))
			b.WriteByte('\n')
		}
		lines := bytes.SplitAfter(b.Bytes(), []byte("\n"))
		lines = lines[:len(lines)-1]
		b.WriteString(strings.Repeat("y", random.IntN(3))) // an entry without its end
		n := random.IntN(25)
		want := 0
		for _, l := range lines[:max(0, len(lines)-n)] {
			want += len(l)
		}
		if got, err := tailStart(bytes.NewReader(b.Bytes()), int64(n)); err != nil || got != int64(want) {
			t.Fatalf("seed %d: the last %d of %d entries begin at %d (%v), want %d", seed, n, len(lines), got, err, want)
		}
	}
}

func TestALineOfAMegabyteIsWrittenWhole(t *testing.T) {
	line := strings.Repeat("0123456789", 100_000)
	path := logFile(t, "2024-01-01T00:00:01Z stdout F "+line+"\n2024-01-01T00:00:02Z stdout F end\n")
	for _, limit := range []int64{-1, 100_000} {
		o := AllLogs
		o.Limit = limit
		var out strings.Builder
		if err := ReadLog(t.Context(), path, o, &out, func() {}, stopped); err != nil {
			t.Fatal(err)
		}
		want := line + "\nend\n"
		if limit > 0 {
			want = want[:limit]
		}
		if out.String() != want {
			t.Errorf("limit %d: %d bytes, want %d", limit, out.Len(), len(want))
		}
	}
}

// syncBuffer is what a reader of a log wrote so far.
type syncBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *syncBuffer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// shows waits until what was written ends so.
func shows(t *testing.T, out *syncBuffer, want string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !strings.HasSuffix(out.String(), want); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", firstDifference(out.String(), want))
		}
	}
}

// TestNoLineIsLostWhenALogIsRotated writes as the runtime does, entries in
// pieces, and moves the file away as the housekeeper does, while it is followed.
func TestNoLineIsLostWhenALogIsRotated(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "0.log")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	var ended atomic.Bool
	var out syncBuffer
	done := make(chan error, 1)
	o := AllLogs
	o.Follow = true
	go func() {
		done <- ReadLog(t.Context(), path, o, &out, func() {}, func(context.Context) (bool, error) { return !ended.Load(), nil })
	}()
	var want strings.Builder
	for i := range 400 {
		line := fmt.Sprintf("line %d\n", i)
		entry := "2024-01-01T00:00:01Z stdout F " + line
		want.WriteString(line)
		cut := i % len(entry)
		for _, part := range []string{entry[:cut], entry[cut:]} {
			if _, err := f.WriteString(part); err != nil {
				t.Fatal(err)
			}
			if i%7 == 0 {
				time.Sleep(500 * time.Microsecond)
			}
		}
		if i%100 == 99 {
			if err := os.Rename(path, fmt.Sprintf("%s.%d", path, i)); err != nil {
				t.Fatal(err)
			}
			// The runtime writes on to the old file until it is told.
			if _, err := f.WriteString("2024-01-01T00:00:01Z stdout F late\n"); err != nil {
				t.Fatal(err)
			}
			want.WriteString("late\n")
			time.Sleep(time.Duration(i-99) * 100 * time.Microsecond)
			f.Close()
			if f, err = os.Create(path); err != nil {
				t.Fatal(err)
			}
			// Rotations come seconds apart: the reader is not two of them behind.
			shows(t, &out, want.String())
		}
	}
	f.Close()
	ended.Store(true)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if out.String() != want.String() {
		t.Errorf("got %d bytes, want %d: %q", len(out.String()), want.Len(), firstDifference(out.String(), want.String()))
	}
}

func firstDifference(a, b string) string {
	for i := 0; i < min(len(a), len(b)); i++ {
		if a[i] != b[i] {
			return a[max(0, i-40):min(len(a), i+40)] + " <> " + b[max(0, i-40):min(len(b), i+40)]
		}
	}
	return fmt.Sprintf("one ends at %d, the other at %d", len(a), len(b))
}

func TestWhoFollowsALogMayLeave(t *testing.T) {
	path := logFile(t, someLog)
	ctx, cancel := context.WithCancel(t.Context())
	o := AllLogs
	o.Follow = true
	flushed := make(chan struct{}, 100)
	done := make(chan error, 1)
	go func() {
		done <- ReadLog(ctx, path, o, &syncBuffer{}, func() { flushed <- struct{}{} }, func(context.Context) (bool, error) { return true, nil })
	}()
	<-flushed
	cancel()
	select {
	case err := <-done:
		if err == nil {
			t.Error("the log is said to have ended")
		}
	case <-time.After(time.Minute):
		t.Error("it still follows")
	}
}

func TestALogThatWasCutIsReadFromItsStart(t *testing.T) {
	path := logFile(t, someLog)
	var out syncBuffer
	var ended atomic.Bool
	done := make(chan error, 1)
	o := AllLogs
	o.Follow = true
	go func() {
		done <- ReadLog(t.Context(), path, o, &out, func() {}, func(context.Context) (bool, error) { return !ended.Load(), nil })
	}()
	shows(t, &out, "spaces \n")
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * followMost)
	if err := os.WriteFile(path, []byte("2024-01-01T00:00:01Z stdout F again\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ended.Store(true)
	if err := <-done; err != nil || !strings.HasSuffix(out.String(), "spaces \nagain\n") {
		t.Errorf("%v, %q", err, out.String())
	}
}

func FuzzLog(f *testing.F) {
	f.Add([]byte(someLog), int64(3), int64(17), true)
	f.Add([]byte("2024-01-01T00:00:01Z stdout F "), int64(-1), int64(-1), false)
	f.Add([]byte("2024-01-01T00:00:01Z stdout"), int64(0), int64(1), true)
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte, tail, limit int64, stamps bool) {
		path := filepath.Join(dir, fmt.Sprintf("%d.log", os.Getpid()))
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		o := LogOptions{Tail: max(-1, tail), Limit: max(-1, limit), Timestamps: stamps, Stdout: true, Stderr: true}
		var out bytes.Buffer
		if err := ReadLog(t.Context(), path, o, &out, func() {}, stopped); err != nil {
			t.Fatal(err)
		}
		if o.Limit >= 0 && int64(out.Len()) > o.Limit {
			t.Errorf("%d bytes with a limit of %d", out.Len(), o.Limit)
		}
		if !stamps && out.Len() > len(b) {
			t.Errorf("%d bytes out of %d", out.Len(), len(b))
		}
	})
}

func FuzzLogLine(f *testing.F) {
	for l := range strings.Lines(someLog) {
		f.Add([]byte(l))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := parseLogLine(b)
		if err != nil {
			return
		}
		if !bytes.HasSuffix(b, l.content) {
			t.Errorf("content %q is no end of %q", l.content, b)
		}
		stream := "stdout"
		if l.stderr {
			stream = "stderr"
		}
		if !bytes.Contains(b, []byte(" "+stream+" ")) {
			t.Errorf("%q is said to be of %s", b, stream)
		}
	})
}

func BenchmarkReadLog(b *testing.B) {
	path := filepath.Join(b.TempDir(), "0.log")
	content := bytes.Repeat([]byte("2024-01-01T00:00:01.000000000Z stdout F a line of a log as they are, with some words in it\n"), 10_000)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(content)))
	for b.Loop() {
		var out bytes.Buffer
		if err := ReadLog(b.Context(), path, AllLogs, &out, func() {}, stopped); err != nil {
			b.Fatal(err)
		}
	}
}
