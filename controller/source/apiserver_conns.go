// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"net"
	"sync"
)

type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// conns knows the open connections, to close them when the Source ends:
// http.Transport would keep them for others.
type conns struct {
	mu     sync.Mutex
	open   map[*trackedConn]struct{}
	closed bool
}

func (c *conns) dialWith(dial dialFunc) dialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		t := &trackedConn{Conn: conn, conns: c}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.closed {
			conn.Close()
			return nil, net.ErrClosed
		}
		if c.open == nil {
			c.open = make(map[*trackedConn]struct{})
		}
		c.open[t] = struct{}{}
		return t, nil
	}
}

// close closes what is open and refuses what is being dialed.
func (c *conns) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for t := range c.open {
		t.Conn.Close()
	}
	c.open = nil
}

type trackedConn struct {
	net.Conn
	conns *conns
}

// Close implements net.Conn.
func (t *trackedConn) Close() error {
	t.conns.mu.Lock()
	delete(t.conns.open, t)
	t.conns.mu.Unlock()
	return t.Conn.Close()
}
