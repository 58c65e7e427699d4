// SPDX-License-Identifier: Apache-2.0

package kubeletapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	constants "k8s.io/apimachinery/pkg/util/remotecommand"
	"k8s.io/client-go/tools/remotecommand"
	clientspdy "k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/util/exec"
	"k8s.io/streaming/pkg/httpstream/spdy"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// translate joins a client that speaks v5.channel.k8s.io over a WebSocket with
// the runtime, which speaks SPDY (KEP-4006).
func (s *Server) translate(w http.ResponseWriter, r *http.Request, u *url.URL, st streams) {
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{
		constants.StreamProtocolV5Name: {Binary: true, Channels: channels(st)},
	})
	conn.SetIdleTimeout(streamIdle)
	_, ch, err := conn.Open(w, r)
	if err != nil {
		s.o.Logger.Debug("cannot open a WebSocket", "path", r.URL.Path, "err", err)
		return // the client was told
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	// The client learns by an empty message that the stream is open.
	first := ch[constants.StreamErr]
	if st.stdout {
		first = ch[constants.StreamStdOut]
	} else if st.stderr {
		first = ch[constants.StreamStdErr]
	}
	if _, err := first.Write(nil); err != nil {
		return
	}
	sizes := make(terminalSizes)
	go func() {
		sizes.read(ctx, ch[constants.StreamResize])
		cancel() // it ends with the client
	}()
	status := statusOf(streamSPDY(ctx, u, st, ch, sizes))
	b, err := json.Marshal(status)
	if err != nil {
		return
	}
	conn.SetWriteDeadline(10 * time.Second)
	_, _ = ch[constants.StreamErr].Write(b) // the client may have gone
}

func channels(st streams) []wsstream.ChannelType {
	choose := func(wanted bool, t wsstream.ChannelType) wsstream.ChannelType {
		if wanted {
			return t
		}
		return wsstream.IgnoreChannel
	}
	c := make([]wsstream.ChannelType, 5)
	c[constants.StreamStdIn] = choose(st.stdin, wsstream.ReadChannel)
	c[constants.StreamStdOut] = choose(st.stdout, wsstream.WriteChannel)
	c[constants.StreamStdErr] = choose(st.stderr, wsstream.WriteChannel)
	c[constants.StreamErr] = wsstream.WriteChannel
	c[constants.StreamResize] = wsstream.ReadChannel
	return c
}

// streamSPDY runs the command at the runtime and copies its streams.
func streamSPDY(ctx context.Context, u *url.URL, st streams, ch []io.ReadWriteCloser, sizes terminalSizes) error {
	transport, err := spdy.NewRoundTripperWithConfig(spdy.RoundTripperConfig{PingPeriod: 5 * time.Second})
	if err != nil {
		return err
	}
	e, err := remotecommand.NewSPDYExecutorRejectRedirects(transport, clientspdy.NewUpgraderForStreaming(transport), http.MethodPost, u)
	if err != nil {
		return err
	}
	o := remotecommand.StreamOptions{Tty: st.tty}
	if st.stdin {
		o.Stdin = ch[constants.StreamStdIn]
	}
	if st.stdout {
		o.Stdout = ch[constants.StreamStdOut]
	}
	if st.stderr {
		o.Stderr = ch[constants.StreamStdErr]
	}
	if st.tty {
		o.TerminalSizeQueue = sizes
	}
	return e.StreamWithContext(ctx, o)
}

// terminalSizes are the sizes that the client's terminal gets.
type terminalSizes chan remotecommand.TerminalSize

// Next implements remotecommand.TerminalSizeQueue.
func (t terminalSizes) Next() *remotecommand.TerminalSize {
	if size, ok := <-t; ok {
		return &size
	}
	return nil
}

// read reads them until the client goes or ctx ends.
func (t terminalSizes) read(ctx context.Context, r io.Reader) {
	defer close(t)
	d := json.NewDecoder(r)
	for {
		var size remotecommand.TerminalSize
		if err := d.Decode(&size); err != nil {
			_, _ = io.Copy(io.Discard, r) // what is no size is not heard
			return
		}
		select {
		case t <- size:
		case <-ctx.Done():
			return
		case <-time.After(time.Second): // nobody asks: it has no terminal
		}
	}
}

// statusOf words how a command ended, as a client expects it.
func statusOf(err error) metav1.Status {
	var exit exec.CodeExitError
	var status *apierrors.StatusError
	switch {
	case err == nil:
		return metav1.Status{Status: metav1.StatusSuccess}
	case errors.As(err, &status):
		return status.Status()
	case errors.As(err, &exit):
		return metav1.Status{
			Status: metav1.StatusFailure, Reason: constants.NonZeroExitCodeReason,
			Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: constants.ExitCodeCauseType, Message: strconv.Itoa(exit.ExitStatus())}}},
			Message: fmt.Sprintf("command terminated with non-zero exit code: %v", exit),
		}
	}
	return apierrors.NewInternalError(err).Status()
}
