// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"fairlead.dev/test/e2e/cluster/traffic"
)

// newControl is the control API: POST /ask, POST /load (which ends the last one
// and begins another) and POST /stop (which ends it and gives the report).
func newControl() http.Handler {
	var mu sync.Mutex
	var running *load
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("POST /ask", func(w http.ResponseWriter, r *http.Request) {
		var q traffic.Question
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		_ = json.NewEncoder(w).Encode(ask(q))
	})
	mux.HandleFunc("POST /load", func(w http.ResponseWriter, r *http.Request) {
		var p traffic.Plan
		if err := json.NewDecoder(r.Body).Decode(&p); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if running != nil {
			running.stop()
		}
		running = startLoad(p)
	})
	mux.HandleFunc("POST /stop", func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if running == nil {
			http.Error(w, "no load runs", http.StatusConflict)
			return
		}
		_ = json.NewEncoder(w).Encode(running.stop())
		running = nil
	})
	return mux
}

// load is a running plan.
type load struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	report traffic.Report
}

func startLoad(p traffic.Plan) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{cancel: cancel, report: traffic.Report{Streams: make([]traffic.StreamReport, len(p.Streams))}}
	for i, s := range p.Streams {
		l.report.Streams[i] = traffic.StreamReport{Stream: s, Servers: map[string]int{}}
		l.wg.Go(func() { l.run(ctx, i, s) })
	}
	return l
}

func (l *load) stop() traffic.Report {
	l.cancel()
	l.wg.Wait()
	return l.report
}

// run asks until ctx ends; a question that has begun is waited for.
func (l *load) run(ctx context.Context, i int, s traffic.Stream) {
	a := &asker{within: s.Within}
	defer a.close()
	for {
		begun := time.Now()
		answer := a.ask(s)
		l.note(i, answer, begun)
		wait := max(s.Every-time.Since(begun), 0)
		if answer.Failure != "" {
			wait = max(wait, 20*time.Millisecond)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// maxFailures are kept with their words; all are counted.
const maxFailures = 50

func (l *load) note(i int, a traffic.Answer, begun time.Time) {
	took := time.Since(begun)
	l.mu.Lock()
	defer l.mu.Unlock()
	r := &l.report.Streams[i]
	r.Asked++
	if a.Moved {
		r.Moved++
	}
	r.Longest = max(r.Longest, took)
	if a.Failure == "" {
		r.Servers[a.Server]++
		if took >= time.Second {
			r.Slow++
		}
		return
	}
	r.Failed++
	if len(r.Failures) < maxFailures {
		r.Failures = append(r.Failures, fmt.Sprintf("%s after %v: %s", begun.Format("15:04:05.000"), took.Round(time.Millisecond), a.Failure))
	}
}

func ask(q traffic.Question) traffic.Answer {
	a := &asker{within: q.Within}
	defer a.close()
	return a.ask(traffic.Stream{Mode: q.Mode, To: q.To})
}

// asker is one stream's sockets.
type asker struct {
	within time.Duration
	held   *heldConn
	udp    net.Conn
}

// heldConn is a connection that all questions of a stream go over.
type heldConn struct {
	net.Conn
	in *bufio.Reader
}

func (a *asker) close() {
	if a.held != nil {
		a.held.Close()
	}
	if a.udp != nil {
		a.udp.Close()
	}
}

func (a *asker) ask(s traffic.Stream) traffic.Answer {
	if a.within == 0 {
		a.within = 10 * time.Second
	}
	var b []byte
	var err error
	moved := false
	switch s.Mode {
	case traffic.UDP, traffic.HeldUDP:
		if a.udp != nil && s.Mode == traffic.UDP {
			a.udp.Close()
			a.udp = nil
		}
		b, err = a.askUDP(s.To)
		if moved = errors.Is(err, syscall.ECONNABORTED) || errors.Is(err, syscall.EDESTADDRREQ); moved {
			b, err = a.askUDP(s.To)
		}
	default:
		b, err = a.askHTTP(s.Mode == traffic.Held, s.To)
	}
	out := traffic.Answer{Moved: moved}
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	if err != nil {
		out = traffic.Answer{Failure: err.Error(), Moved: moved}
	}
	return out
}

// askHTTP asks by a connection of its own, or by the held one. The loss of that
// is a failure, and the next question makes another.
func (a *asker) askHTTP(held bool, to string) ([]byte, error) {
	c := a.held
	if c == nil {
		conn, err := net.DialTimeout("tcp", to, a.within)
		if err != nil {
			return nil, err
		}
		c = &heldConn{conn, bufio.NewReader(conn)}
	}
	b, err := c.ask(to, a.within)
	if held && err == nil {
		a.held = c
		return b, nil
	}
	if t, ok := c.Conn.(*net.TCPConn); ok {
		_ = t.SetLinger(0) // ten thousands of them: no TIME_WAIT
	}
	c.Close()
	if a.held != nil {
		a.held = nil
		err = fmt.Errorf("the held connection from %s was lost: %w", c.LocalAddr(), err)
	}
	return b, err
}

func (c *heldConn) ask(to string, within time.Duration) ([]byte, error) {
	_ = c.SetDeadline(time.Now().Add(within))
	if _, err := fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", to); err != nil {
		return nil, err
	}
	r, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", r.Status, b)
	}
	return b, err
}

// The source ports of UDP: the ephemeral ones of Linux.
const firstPort, ports = 32768, 28000

var nextPort atomic.Uint32

// askUDP sends a datagram and again every 2 s: one may be lost.
func (a *asker) askUDP(to string) ([]byte, error) {
	if a.udp == nil {
		// A port that was not used for long: with one that was, this would be the
		// flow of another question, to a server that may be gone.
		local := &net.UDPAddr{Port: firstPort + int(nextPort.Add(1)%ports)}
		c, err := (&net.Dialer{LocalAddr: local}).Dial("udp", to)
		if errors.Is(err, syscall.EADDRINUSE) {
			c, err = net.Dial("udp", to)
		}
		if err != nil {
			return nil, err
		}
		a.udp = c
	}
	question := fmt.Appendf(nil, "%d", rand.Uint64())
	deadline := time.Now().Add(a.within)
	b := make([]byte, 2048)
	for {
		if _, err := a.udp.Write(question); err != nil {
			return nil, a.lost(err)
		}
		_ = a.udp.SetReadDeadline(earlier(deadline, time.Now().Add(2*time.Second)))
		n, err := a.udp.Read(b)
		if err == nil {
			line, rest, _ := bytes.Cut(b[:n], []byte("\n"))
			if bytes.Equal(rest, question) {
				return line, nil
			}
			continue
		}
		var timeout net.Error
		if !(errors.As(err, &timeout) && timeout.Timeout()) || time.Now().After(deadline) {
			return nil, a.lost(err)
		}
	}
}

// lost makes the next question use another socket.
func (a *asker) lost(err error) error {
	a.udp.Close()
	a.udp = nil
	return err
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
