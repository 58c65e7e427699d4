// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"fairlead.dev/controller/status"
)

// agentSocket is an abstract socket (unix(7)): its namespace's, it leaves no
// file and ends with the process. It is the lock of the network namespace, and
// where root may ask the agent how it is.
const agentSocket = "@fairlead-agent"

const (
	// statusPatience is how long either side may take.
	statusPatience = 5 * time.Second
	// maxStatus bounds what is read: 100,000 Service ports with traffic.
	maxStatus = 32 << 20
)

// answer tells root the status, one after another, until ctx ends. Nothing is
// read from who asks.
func (l locks) answer(ctx context.Context, read func() (*status.Status, error), log *slog.Logger) error {
	for _, c := range l {
		if listener, ok := c.(*net.UnixListener); ok {
			return answerStatus(ctx, listener, read, log)
		}
	}
	return nil
}

func answerStatus(ctx context.Context, l *net.UnixListener, read func() (*status.Status, error), log *slog.Logger) error {
	// The listener is the lock, and stays until the process has ended.
	stop := context.AfterFunc(ctx, func() { _ = l.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		c, err := l.AcceptUnix()
		if ctx.Err() != nil {
			if err == nil {
				c.Close()
			}
			return nil
		}
		if err != nil {
			log.Warn("accept a question for the status", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second): // out of file descriptors, perhaps
			}
			continue
		}
		if err := tellStatus(c, read); err != nil {
			log.Debug("answer a question for the status", "error", err)
		}
		c.Close()
	}
}

func tellStatus(c *net.UnixConn, read func() (*status.Status, error)) error {
	if err := checkRoot(c); err != nil {
		return err
	}
	if err := c.SetDeadline(time.Now().Add(statusPatience)); err != nil {
		return err
	}
	s, err := read()
	if err != nil {
		return err
	}
	return json.NewEncoder(c).Encode(s)
}

// checkRoot: the other end of the socket is root's.
func checkRoot(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	var perr error
	if err := raw.Control(func(fd uintptr) { peer, perr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return err
	}
	if perr != nil {
		return fmt.Errorf("ask whose the other end of the socket is: %w", perr)
	}
	if peer.Uid != 0 {
		return fmt.Errorf("the other end of the socket is user %d's (process %d), not root's", peer.Uid, peer.Pid)
	}
	return nil
}

// errNoAgent: nobody has the socket.
var errNoAgent = errors.New("none runs in this network namespace")

// askForStatus asks the agent of this process's network namespace.
func askForStatus(ctx context.Context, socket string) (*status.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, statusPatience)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if errors.Is(err, unix.ECONNREFUSED) {
		return nil, errNoAgent
	}
	if err != nil {
		return nil, fmt.Errorf("ask the agent: %w", err)
	}
	defer conn.Close()
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, fmt.Errorf("ask the agent: %T is no unix socket", conn)
	}
	if err := checkRoot(c); err != nil {
		return nil, fmt.Errorf("not asked: %w", err)
	}
	if err := c.SetDeadline(time.Now().Add(statusPatience)); err != nil {
		return nil, err
	}
	s := &status.Status{}
	err = json.NewDecoder(io.LimitReader(c, maxStatus)).Decode(s)
	var timeout net.Error
	switch {
	case errors.As(err, &timeout) && timeout.Timeout():
		return nil, errors.New("one has the socket and does not answer: it is starting, or of an older version")
	case errors.Is(err, io.EOF):
		return nil, errors.New("it refuses: it tells root only")
	case err != nil:
		return nil, fmt.Errorf("read what the agent says: %w", err)
	}
	return s, nil
}
