// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"syscall"
	"time"
)

// bindPatience is how long an address in use is waited for: an agent that is
// being replaced may still hold it.
const bindPatience = 5 * time.Second

// server is one HTTP listener of the controller.
type server struct {
	flag    string // the option that names the address, for errors
	address string
	handler http.Handler
	tls     *tls.Config // nil: none
	log     *slog.Logger
	// slow: some answers take minutes (profiles).
	slow bool
	// bound is the address it listens on, once it does.
	bound atomic.Pointer[net.TCPAddr]
}

// run serves until ctx ends. An address that cannot be bound is an error.
func (s *server) run(ctx context.Context) error {
	l, err := s.listen(ctx)
	if err != nil || l == nil {
		return err
	}
	if a, ok := l.Addr().(*net.TCPAddr); ok {
		s.bound.Store(a)
	}
	srv := newHTTPServer(s.handler, s.log)
	if s.slow {
		srv.WriteTimeout = 5 * time.Minute
	}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	s.log.Info("listening", "for", s.flag, "address", l.Addr().String(), "tls", s.tls != nil)
	if s.tls != nil {
		l = tls.NewListener(l, s.tls)
	}
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", s.address, err)
	}
	return nil
}

// listen gives nil, nil where ctx ended first.
func (s *server) listen(ctx context.Context) (net.Listener, error) {
	deadline := time.Now().Add(bindPatience)
	for {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.address)
		switch {
		case err == nil:
			return l, nil
		case ctx.Err() != nil:
			return nil, nil
		case !errors.Is(err, syscall.EADDRINUSE) || time.Now().After(deadline):
			return nil, fmt.Errorf("%w: stop what holds the address, or set %s to another one", err, s.flag)
		}
		select {
		case <-ctx.Done():
			return nil, nil
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// newHTTPServer bounds what one client can hold: the requests have no body and
// small headers.
func newHTTPServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           readOnly(h),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       5 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       60 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// readOnly refuses every method but GET and HEAD.
func readOnly(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
			return
		}
		h.ServeHTTP(w, r)
	})
}
