// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// podSocket is where the agent tells root on this node about its Pods, and what
// happened to them: what is ready is known to nobody else. It is in the state directory, which one agent
// has at a time.
const podSocket = "pods.sock"

// maxPodList bounds what is read from the socket.
const maxPodList = 64 << 20

// serveSocket serves the list of Pods on a unix socket for root.
func (p *pods) serveSocket(ctx context.Context) error {
	path := filepath.Join(p.c.StateDir, podSocket)
	if err := os.MkdirAll(p.c.StateDir, 0o750); err != nil {
		return fmt.Errorf("--state-dir: %w", err)
	}
	// A killed agent left it.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove old socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("serve the list of Pods: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return fmt.Errorf("serve the list of Pods: %w", err)
	}
	mux := http.NewServeMux()
	answer := func(path string, list func() any) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(list()) // the client may go
		})
	}
	answer("/pods", func() any { return p.runner.Pods() })
	answer("/events", func() any { return p.events.list.Events() })
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the list of Pods: %w", err)
	}
	return nil
}

// askAgent asks the agent of this state directory for "pods" or "events".
func askAgent[T any](ctx context.Context, stateDir, what string) ([]T, error) {
	path := filepath.Join(stateDir, podSocket)
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
	}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://fairlead/"+what, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask the agent at %s: %w: is `fairlead run --pods cri` running with this --state-dir?", path, errors.Unwrap(err))
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask the agent at %s: %s", path, resp.Status)
	}
	var list []T
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxPodList)).Decode(&list); err != nil {
		return nil, fmt.Errorf("read the list of %s: %w", what, err)
	}
	return list, nil
}
