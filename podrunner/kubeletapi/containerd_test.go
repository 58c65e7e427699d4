// SPDX-License-Identifier: Apache-2.0

package kubeletapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/util/exec"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"fairlead.dev/podrunner/containerdtest"
	"fairlead.dev/podrunner/cri"
)

// kubelet is a Server in front of a containerd in which one Pod runs.
type kubelet struct {
	rt     *containerdtest.Runtime
	client *cri.Client
	pod    *corev1.Pod
	addr   string
	config *rest.Config
}

// startKubelet runs a Pod with the containers web, which serves HTTP, and
// those that are added.
func startKubelet(t *testing.T, more map[string][]string) *kubelet {
	t.Helper()
	k := &kubelet{rt: containerdtest.Start(t)}
	var err error
	if k.client, err = cri.Open(t.Context(), k.rt.Socket, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.client.Close() })
	k.runPod(t, more)

	cert, err := SelfSigned(t.TempDir(), "localhost", []netip.Addr{netip.MustParseAddr("127.0.0.1")})
	if err != nil {
		t.Fatal(err)
	}
	pods := func() []*corev1.Pod { return []*corev1.Pod{k.pod} }
	stats, err := NewStats(StatsOptions{NodeName: "one", Pods: pods, Runtime: k.client.Runtime, LogRoot: k.rt.LogRoot, Root: k.rt.Dir,
		PodCgroup: func(*corev1.Pod) string { return k.rt.CgroupRoot },
		ImageFs:   k.client.Images.ImageFsInfo})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Options{NodeName: "one", Pods: pods, Runtime: k.client.Runtime, LogRoot: k.rt.LogRoot, Certificate: cert, Stats: stats,
		Authenticate: func(r *http.Request) (User, error) {
			if b, ok := bearer(r); ok && b == "token" {
				return User{Name: "test"}, nil
			}
			return User{}, errNobody
		},
		Authorize: func(context.Context, Access) (bool, error) { return true, nil }})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	k.addr = l.Addr().String()
	k.config = &rest.Config{Host: "https://" + k.addr, BearerToken: "token", TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
	return k
}

func (k *kubelet) runPod(t *testing.T, more map[string][]string) {
	t.Helper()
	k.pod = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default", UID: "u-1"}}
	labels := map[string]string{labelPodName: "web", labelPodNamespace: "default", labelPodUID: "u-1"}
	sandbox := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: "u-1"}, Labels: labels,
		LogDirectory: filepath.Join(k.rt.LogRoot, "default_web_u-1"),
		Linux:        &runtimeapi.LinuxPodSandboxConfig{CgroupParent: k.rt.CgroupRoot},
	}
	id, err := k.client.Runtime.RunPodSandbox(t.Context(), sandbox, "")
	if err != nil {
		t.Fatalf("run the sandbox: %v; %s", err, k.rt.Log(2000))
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		_ = k.client.Runtime.StopPodSandbox(ctx, id)
		if err := k.client.Runtime.RemovePodSandbox(ctx, id); err != nil {
			t.Errorf("remove the sandbox: %v", err)
		}
	})
	containers := map[string][]string{"web": {"serve"}}
	for name, args := range more {
		containers[name] = args
	}
	for name, args := range containers {
		c := map[string]string{labelContainerName: name}
		for key, v := range labels {
			c[key] = v
		}
		id, err := k.client.Runtime.CreateContainer(t.Context(), id, &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: &runtimeapi.ImageSpec{Image: containerdtest.Image},
			Args: args, Labels: c, LogPath: name + "/0.log", Stdin: name == "reader",
		}, sandbox)
		if err == nil {
			err = k.client.Runtime.StartContainer(t.Context(), id)
		}
		if err != nil {
			t.Fatalf("start container %s: %v; %s", name, err, k.rt.Log(2000))
		}
		k.pod.Spec.Containers = append(k.pod.Spec.Containers, corev1.Container{Name: name})
		if name == "web" {
			k.awaitServer(t, id)
		}
		k.pod.Status.ContainerStatuses = append(k.pod.Status.ContainerStatuses, corev1.ContainerStatus{Name: name, ContainerID: "containerd://" + id,
			State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}})
	}
}

// awaitServer waits until the container listens: it runs before it does.
func (k *kubelet) awaitServer(t *testing.T, id string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		output, code, err := k.client.Exec(t.Context(), id, []string{"/guest", "dial", "127.0.0.1:8080"}, time.Minute)
		if err == nil && code == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the server does not listen: %d %v %s", code, err, output)
		}
	}
}

func (k *kubelet) url(path string, q url.Values) *url.URL {
	return &url.URL{Scheme: "https", Host: k.addr, Path: path, RawQuery: q.Encode()}
}

// executors are the ways in which kubectl speaks.
func (k *kubelet) executors(t *testing.T, path string, q url.Values) map[string]remotecommand.Executor {
	t.Helper()
	ws, err := remotecommand.NewWebSocketExecutor(k.config, http.MethodGet, k.url(path, q).String())
	if err != nil {
		t.Fatal(err)
	}
	spdy, err := remotecommand.NewSPDYExecutor(k.config, http.MethodPost, k.url(path, q))
	if err != nil {
		t.Fatal(err)
	}
	return map[string]remotecommand.Executor{"WebSocket": ws, "SPDY": spdy}
}

// command is the query of a command with the named streams.
func command(streams string, args ...string) url.Values {
	q := url.Values{"command": args}
	for name := range strings.FieldsSeq(streams) {
		q.Set(name, "1")
	}
	return q
}

func TestKubectlWorksWithContainers(t *testing.T) {
	k := startKubelet(t, map[string][]string{"reader": {"cat", "/dev/stdin"}, "talker": {"then", "lines", "100000", ";", "sleep"}})
	t.Run("exec", k.testExec)
	t.Run("terminal", k.testTerminal)
	t.Run("leave", k.testLeave)
	t.Run("attach", k.testAttach)
	t.Run("port-forward", k.testPortForward)
	t.Run("run and lists", k.testRunAndLists)
	t.Run("logs", k.testLogs)
	t.Run("stats", k.testStats)
}

func (k *kubelet) testExec(t *testing.T) {
	big := strings.Repeat("0123456789abcdef", 1<<16) // a MiB
	for _, c := range []struct {
		name      string
		q         url.Values
		path      string
		in        string
		out, errs string
		exit      int
		fails     string
	}{
		{name: "output", q: command("output error", "/guest", "echo", "a b"), out: "a b\n"},
		{name: "both outputs and a code", q: command("output error", "/guest", "then", "err", "no", ";", "echo", "yes", ";", "exit", "42"), out: "yes\n", errs: "no\n", exit: 42},
		{name: "input and its end", q: command("input output error", "/guest", "cat", "/dev/stdin"), in: "hello", out: "hello"},
		{name: "a MiB both ways", q: command("input output error", "/guest", "cat", "/dev/stdin"), in: big, out: big},
		{name: "by UID", path: "/exec/default/web/u-1/web", q: command("output", "/guest", "echo", "x"), out: "x\n"},
		{name: "by a wrong UID", path: "/exec/default/web/u-2/web", q: command("output", "/guest", "echo", "x"), fails: "does not exist"},
		{name: "no such container", path: "/exec/default/web/none", q: command("output", "/guest", "echo", "x"), fails: `container not found ("none")`},
		{name: "no such Pod", path: "/exec/default/none/web", q: command("output", "/guest", "echo", "x"), fails: `pod "none" does not exist`},
		{name: "no such program", q: command("output error", "/nothing"), fails: "no such file"},
		{name: "no stream", q: command("", "/guest"), fails: "you must specify at least 1 of stdin, stdout, stderr"},
	} {
		if c.path == "" {
			c.path = "/exec/default/web/web"
		}
		for kind, e := range k.executors(t, c.path, c.q) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			var out, errs bytes.Buffer
			o := remotecommand.StreamOptions{}
			if c.q.Get("output") != "" {
				o.Stdout = &out
			}
			if c.q.Get("error") != "" {
				o.Stderr = &errs
			}
			if c.q.Get("input") != "" {
				o.Stdin = strings.NewReader(c.in)
			}
			if o.Stdout == nil {
				o.Stdout = &out // a client must want something
			}
			err := e.StreamWithContext(ctx, o)
			cancel()
			var code exec.CodeExitError
			switch {
			case c.fails != "":
				if err == nil || !strings.Contains(err.Error(), c.fails) {
					t.Errorf("%s, %s: %v, want %q", c.name, kind, err, c.fails)
				}
				continue
			case c.exit != 0:
				if !errors.As(err, &code) || code.Code != c.exit {
					t.Errorf("%s, %s: %v, want exit code %d", c.name, kind, err, c.exit)
				}
			case err != nil:
				t.Errorf("%s, %s: %v", c.name, kind, err)
			}
			if out.String() != c.out || errs.String() != c.errs {
				t.Errorf("%s, %s: output %.60q (%d bytes), errors %.60q, want %.60q (%d bytes), %.60q", c.name, kind, out.String(), out.Len(), errs.String(), c.out, len(c.out), c.errs)
			}
		}
	}
}

// oneSize is a terminal of one size.
type oneSize struct{ sent bool }

func (s *oneSize) Next() *remotecommand.TerminalSize {
	if s.sent {
		return nil
	}
	s.sent = true
	return &remotecommand.TerminalSize{Width: 123, Height: 45}
}

func (k *kubelet) testTerminal(t *testing.T) {
	for kind, e := range k.executors(t, "/exec/default/web/web", command("input output tty", "/guest", "size")) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		var out bytes.Buffer
		in, w := io.Pipe()
		err := e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: &out, Tty: true, TerminalSizeQueue: &oneSize{}})
		w.Close()
		cancel()
		if err != nil || strings.TrimSpace(out.String()) != "123x45" {
			t.Errorf("%s: %v, %q", kind, err, out.String())
		}
	}
}

// testLeave: a client that goes away ends its stream, and nothing keeps on.
func (k *kubelet) testLeave(t *testing.T) {
	for kind, e := range k.executors(t, "/exec/default/web/web", command("output", "/guest", "sleep", "30")) {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		started := time.Now()
		err := e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: io.Discard})
		cancel()
		if err == nil || time.Since(started) > 10*time.Second {
			t.Errorf("%s: %v after %v", kind, err, time.Since(started))
		}
	}
}

func (k *kubelet) testAttach(t *testing.T) {
	for _, kind := range []string{"WebSocket", "SPDY"} {
		e := k.executors(t, "/attach/default/web/reader", command("input output error"))[kind]
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		in, typed := io.Pipe()
		shown, out := io.Pipe()
		done := make(chan error, 1)
		go func() {
			done <- e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: out, Stderr: io.Discard})
			out.Close()
		}()
		if _, err := io.WriteString(typed, "over "+kind+"\n"); err != nil {
			t.Fatal(err)
		}
		want := "over " + kind + "\n"
		got := make([]byte, len(want))
		if _, err := io.ReadFull(shown, got); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", kind, got, err)
		}
		cancel()
		go func() { _, _ = io.Copy(io.Discard, shown) }()
		<-done
		typed.Close()
	}
}

func (k *kubelet) testPortForward(t *testing.T) {
	u := k.url("/portForward/default/web", nil)
	transport, upgrader, err := spdy.RoundTripperFor(k.config)
	if err != nil {
		t.Fatal(err)
	}
	ws, err := portforward.NewSPDYOverWebsocketDialer(u, k.config)
	if err != nil {
		t.Fatal(err)
	}
	plain := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, u)
	forward := func(kind string, f *portforward.PortForwarder, ready, stop chan struct{}) {
		done := make(chan error, 1)
		go func() { done <- f.ForwardPorts() }()
		select {
		case <-ready:
		case err := <-done:
			t.Fatalf("%s: %v", kind, err)
		}
		ports, err := f.GetPorts()
		if err != nil {
			t.Fatal(err)
		}
		client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
		for range 20 {
			resp, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/status/207", ports[0].Local))
			if err != nil || resp.StatusCode != 207 {
				t.Fatalf("%s: %v, %v", kind, resp, err)
			}
			resp.Body.Close()
		}
		// A port on which nothing listens.
		if _, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/", ports[1].Local)); err == nil {
			t.Errorf("%s: a closed port answers", kind)
		}
		close(stop)
		<-done
	}
	for kind, make1 := range map[string]func(ready, stop chan struct{}) (*portforward.PortForwarder, error){
		"SPDY": func(ready, stop chan struct{}) (*portforward.PortForwarder, error) {
			return portforward.New(plain, []string{"0:8080", "0:9"}, stop, ready, io.Discard, io.Discard)
		},
		"WebSocket": func(ready, stop chan struct{}) (*portforward.PortForwarder, error) {
			return portforward.New(ws, []string{"0:8080", "0:9"}, stop, ready, io.Discard, io.Discard)
		},
	} {
		ready, stop := make(chan struct{}), make(chan struct{})
		f, err := make1(ready, stop)
		if err != nil {
			t.Fatal(err)
		}
		forward(kind, f, ready, stop)
	}
}

// get asks the server.
func (k *kubelet) get(t *testing.T, method, path string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "https://"+k.addr+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer token")
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return resp.StatusCode, string(b)
}

func (k *kubelet) testRunAndLists(t *testing.T) {
	if code, body := k.get(t, "POST", "/run/default/web/web?cmd=/guest+echo+hello"); code != 200 || body != "hello\n" {
		t.Errorf("run: %d %q", code, body)
	}
	if code, body := k.get(t, "POST", "/run/default/web/web?cmd=/guest+exit+3"); code != 500 {
		t.Errorf("run: %d %q", code, body)
	}
	for path, containers := range map[string]int{"/pods": 3, "/runningpods/": 3} {
		code, body := k.get(t, "GET", path)
		var list corev1.PodList
		if err := json.Unmarshal([]byte(body), &list); err != nil || code != 200 || list.Kind != "PodList" || len(list.Items) != 1 ||
			list.Items[0].Name != "web" || list.Items[0].UID != "u-1" || len(list.Items[0].Spec.Containers) != containers {
			t.Errorf("%s: %d %v %s", path, code, err, body)
		}
	}
}

func (k *kubelet) testLogs(t *testing.T) {
	// The log is written while it is followed: stop at its last line.
	code, body := k.get(t, "GET", "/containerLogs/default/web/talker?follow=true&limitBytes=1088890")
	if code != 200 || strings.Count(body, "\n") != 100_000 || !strings.HasSuffix(body, "line 99999\n") {
		t.Errorf("%d, %d bytes, %d lines, ends with %.30q", code, len(body), strings.Count(body, "\n"), body[max(0, len(body)-30):])
	}
	code, body = k.get(t, "GET", "/containerLogs/default/web/talker?tailLines=2")
	if code != 200 || body != "line 99998\nline 99999\n" {
		t.Errorf("%d %q", code, body)
	}
	code, body = k.get(t, "GET", "/containerLogs/default/web/talker?tailLines=1&timestamps=true")
	if code != 200 || !regexp.MustCompile(`^\d{4}-\d\d-\d\dT[0-9:.]{18}(Z|[+-]\d\d:\d\d) line 99999\n$`).MatchString(body) {
		t.Errorf("%d %q", code, body)
	}
	code, body = k.get(t, "GET", "/containerLogs/default/web/none")
	if code != 404 || !strings.Contains(body, `container "none" not found in pod "web"`) {
		t.Errorf("%d %q", code, body)
	}
	code, body = k.get(t, "GET", "/containerLogs/default/web/talker?previous=true")
	if code != 400 || !strings.Contains(body, `previous terminated container "talker" in pod "web" not found`) {
		t.Errorf("%d %q", code, body)
	}
	// The runtime hangs: logs are still there.
	if err := k.rt.Hang(); err != nil {
		t.Fatal(err)
	}
	code, body = k.get(t, "GET", "/containerLogs/default/web/talker?tailLines=1")
	if err := k.rt.Resume(); err != nil {
		t.Fatal(err)
	}
	if code != 200 || body != "line 99999\n" {
		t.Errorf("while the runtime hangs: %d %q", code, body)
	}
}
