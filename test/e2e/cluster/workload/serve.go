// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"
)

// Identity is what a server says about itself and about who asked.
type Identity struct {
	Server string // name of the Pod
	Node   string // where it runs
	Client string // ADDRESS:PORT that it was asked from
}

func identity(client string) Identity {
	name, _ := os.Hostname()
	return Identity{Server: name, Node: os.Getenv("NODE_NAME"), Client: client}
}

// serve answers on port 8080, TCP with HTTP and UDP, and serves the control API
// on port 9000.
//
// /ready is 503 after a POST of /ready?no, until one of /ready?yes.
func serve([]string) error {
	ctx := terminated()
	var unready atomic.Bool
	mux := http.NewServeMux()
	mux.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) { _ = json.NewEncoder(w).Encode(identity(r.RemoteAddr)) })
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) {
		if unready.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("POST /ready", func(_ http.ResponseWriter, r *http.Request) { unready.Store(r.URL.RawQuery == "no") })
	go func() {
		if err := serveUDP(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "workload:", err)
			os.Exit(1)
		}
	}()
	go func() { _ = listen(context.Background(), ":9000", newControl()) }()
	if os.Getenv("TALK") != "" {
		go func() { _ = lines(nil) }()
	}
	fmt.Println("serving")
	return listen(ctx, ":8080", mux)
}

func serveUDP(ctx context.Context) error {
	c, err := net.ListenPacket("udp", ":8080")
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { c.Close() })
	b := make([]byte, 2048)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return nil // the socket was closed
		}
		answer, _ := json.Marshal(identity(from.String()))
		_, _ = c.WriteTo(append(append(answer, '\n'), b[:n]...), from)
	}
}

// probe URL ends with an error unless the answer is 200.
func probe(args []string) error {
	c := http.Client{Timeout: 10 * time.Second}
	r, err := c.Get(args[0])
	if err != nil {
		return err
	}
	defer r.Body.Close()
	if _, err := io.Copy(os.Stdout, r.Body); err != nil {
		return err
	}
	if r.StatusCode != http.StatusOK {
		return fmt.Errorf("%s", r.Status)
	}
	return nil
}
