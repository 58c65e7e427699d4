// SPDX-License-Identifier: Apache-2.0

package kubeletapi

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/gorilla/websocket"
	constants "k8s.io/apimachinery/pkg/util/portforward"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// tunnel joins a client that speaks SPDY in the messages of a WebSocket with
// the runtime, which speaks it on a connection (KEP-4006, port-forward).
func (s *Server) tunnel(w http.ResponseWriter, r *http.Request, u *url.URL) {
	runtime, buffered, resp, err := dialSPDY(r.Context(), u, tunneledProtocols(r))
	if err != nil {
		failure{s}.Error(w, r, err)
		return
	}
	defer runtime.Close()
	if resp.StatusCode != http.StatusSwitchingProtocols {
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, io.LimitReader(resp.Body, 64<<10))
		return
	}
	upgrader := websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }} // it was authorized, not a browser's cookie
	if p := resp.Header.Get(httpstream.HeaderProtocolVersion); p != "" {
		upgrader.Subprotocols = []string{constants.WebsocketsSPDYTunnelingPrefix + p}
	}
	ws, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return // the client was told
	}
	client := portforward.NewTunnelingConnection("server", ws)
	defer client.Close()
	join(r.Context(), client, runtime, buffered)
}

// tunneledProtocols are the SPDY protocols that the client offers to tunnel.
func tunneledProtocols(r *http.Request) (out []string) {
	for _, p := range websocket.Subprotocols(r) {
		if inner, ok := strings.CutPrefix(p, constants.WebsocketsSPDYTunnelingPrefix); ok {
			out = append(out, inner)
		}
	}
	return out
}

// dialSPDY asks the runtime to upgrade a connection to SPDY. What it sent right
// behind its answer is in the reader.
func dialSPDY(ctx context.Context, u *url.URL, protocols []string) (net.Conn, *bufio.Reader, *http.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), nil)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("ask the runtime for a stream: %w", err)
	}
	req.Header.Set(httpstream.HeaderConnection, httpstream.HeaderUpgrade)
	req.Header.Set(httpstream.HeaderUpgrade, spdy.HeaderSpdy31)
	for _, p := range protocols {
		req.Header.Add(httpstream.HeaderProtocolVersion, p)
	}
	var conn net.Conn
	if u.Scheme == "https" {
		conn, err = (&tls.Dialer{}).DialContext(ctx, "tcp", u.Host)
	} else {
		conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", u.Host)
	}
	if err != nil {
		return nil, nil, nil, fmt.Errorf("connect to the runtime's stream: %w", err)
	}
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	if err := req.Write(conn); err != nil {
		conn.Close()
		return nil, nil, nil, fmt.Errorf("ask the runtime for a stream: %w", err)
	}
	reader := bufio.NewReader(conn)
	resp, err := http.ReadResponse(reader, req)
	if err != nil {
		conn.Close()
		return nil, nil, nil, fmt.Errorf("the runtime's answer about a stream: %w", err)
	}
	_ = conn.SetDeadline(time.Time{})
	return conn, reader, resp, nil
}

// join copies between both until one of them ends, or ctx.
func join(ctx context.Context, client, runtime net.Conn, fromRuntime io.Reader) {
	ended := make(chan struct{}, 2)
	go func() { _, _ = io.Copy(runtime, client); ended <- struct{}{} }()
	go func() { _, _ = io.Copy(client, fromRuntime); ended <- struct{}{} }()
	left := 2
	select {
	case <-ended:
		left--
	case <-ctx.Done():
	}
	client.Close()
	runtime.Close()
	for range left {
		<-ended
	}
}
