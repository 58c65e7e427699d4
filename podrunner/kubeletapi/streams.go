// SPDX-License-Identifier: Apache-2.0

package kubeletapi

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/proxy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// streamIdle is how long a stream may be silent (the kubelet's
// streamingConnectionIdleTimeout).
const streamIdle = 4 * time.Hour

// streams are what a request wants of a command.
type streams struct {
	stdin, stdout, stderr, tty bool
}

// parseStreams reads the parameters as the API server sends them.
func parseStreams(q url.Values) (streams, error) {
	is := func(name string) bool { return q.Get(name) == "1" || q.Get(name) == "true" }
	s := streams{stdin: is("input") || is("stdin"), stdout: is("output") || is("stdout"), stderr: is("error") || is("stderr"), tty: is("tty")}
	if s.tty {
		s.stderr = false // a terminal has one output
	}
	if !s.stdin && !s.stdout && !s.stderr {
		return s, errors.New("you must specify at least 1 of stdin, stdout, stderr")
	}
	return s, nil
}

func (s *Server) exec(w http.ResponseWriter, r *http.Request) {
	s.command(w, r, func(id string, st streams) (string, error) {
		resp, err := s.o.Runtime.Exec(r.Context(), &runtimeapi.ExecRequest{ContainerId: id, Cmd: r.URL.Query()["command"],
			Stdin: st.stdin, Stdout: st.stdout, Stderr: st.stderr, Tty: st.tty})
		return resp.GetUrl(), err
	})
}

func (s *Server) attach(w http.ResponseWriter, r *http.Request) {
	s.command(w, r, func(id string, st streams) (string, error) {
		resp, err := s.o.Runtime.Attach(r.Context(), &runtimeapi.AttachRequest{ContainerId: id,
			Stdin: st.stdin, Stdout: st.stdout, Stderr: st.stderr, Tty: st.tty})
		return resp.GetUrl(), err
	})
}

// command joins a client with the runtime's stream of a container.
func (s *Server) command(w http.ResponseWriter, r *http.Request, open func(id string, st streams) (string, error)) {
	st, err := parseStreams(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	pod := s.pod(w, r)
	if pod == nil {
		return
	}
	id, err := s.runningContainer(r.Context(), pod, r.PathValue("container"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	text, err := open(id, st)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	u, err := streamURL(text)
	switch {
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	case wsstream.IsWebSocketRequestWithStreamCloseProtocol(r):
		// Runtimes do not speak v5.channel.k8s.io, only what comes before it.
		s.translate(w, r, u, st)
	default:
		s.pass(w, r, u)
	}
}

func (s *Server) portForward(w http.ResponseWriter, r *http.Request) {
	tunneled := wsstream.IsWebSocketRequestWithTunnelingProtocol(r)
	var ports []int32
	if wsstream.IsWebSocketRequest(r) && !tunneled {
		var err error
		if ports, err = parsePorts(r.URL.Query()["port"]); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	pod := s.pod(w, r)
	if pod == nil {
		return
	}
	id, err := s.sandbox(r, pod)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	resp, err := s.o.Runtime.PortForward(r.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: id, Port: ports})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	u, err := streamURL(resp.GetUrl())
	switch {
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	case tunneled:
		s.tunnel(w, r, u)
	default:
		s.pass(w, r, u)
	}
}

// sandbox is the ID of the Pod's sandbox that is ready.
func (s *Server) sandbox(r *http.Request, pod *corev1.Pod) (string, error) {
	found, err := s.o.Runtime.ListPodSandbox(r.Context(), &runtimeapi.PodSandboxFilter{
		State:         &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY},
		LabelSelector: map[string]string{labelPodUID: string(pod.UID)},
	})
	if err != nil {
		return "", err
	}
	if len(found) == 0 {
		return "", fmt.Errorf("failed to find sandbox for pod %q", pod.Name)
	}
	return found[0].Id, nil
}

// parsePorts reads the ports of the old WebSocket protocol, which names them
// when it begins.
func parsePorts(texts []string) (ports []int32, err error) {
	if len(texts) == 0 {
		return nil, errors.New("query parameter \"port\" is required")
	}
	for _, t := range texts {
		n, err := strconv.ParseUint(t, 10, 16)
		if err != nil || n == 0 {
			return nil, fmt.Errorf("invalid port %q", t)
		}
		ports = append(ports, int32(n))
	}
	return ports, nil
}

// streamURL checks what the runtime says where its stream is.
func streamURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("the runtime's streaming address: %w", err)
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return nil, fmt.Errorf("the runtime's streaming address %q is no HTTP address", u.Redacted())
	}
	return u, nil
}

// pass hands the connection to the runtime as it is: SPDY, and the WebSocket
// protocols that the runtime speaks.
func (s *Server) pass(w http.ResponseWriter, r *http.Request, u *url.URL) {
	r.Header.Del("Authorization") // is not the runtime's business
	proxy.NewUpgradeAwareHandler(u, nil, false, true, failure{s}).ServeHTTP(w, r)
}

// failure answers what the proxy cannot do.
type failure struct{ s *Server }

// Error implements proxy.ErrorResponder.
func (f failure) Error(w http.ResponseWriter, r *http.Request, err error) {
	f.s.o.Logger.Debug("cannot join a client of the kubelet API with the runtime", "path", r.URL.Path, "err", err)
	http.Error(w, err.Error(), http.StatusInternalServerError)
}
