// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"fairlead.dev/podrunner/containerdtest"
	"fairlead.dev/podrunner/cri"
	"fairlead.dev/podrunner/kubeletapi"
	"fairlead.dev/podrunner/kubeletapi/servingcert"
	"fairlead.dev/podrunner/node"
	"fairlead.dev/test/e2e/controlplane"
)

// bed is a node with its API, in which the Pod web runs.
type bed struct {
	*cluster
	rt   *containerdtest.Runtime
	cri  *cri.Client
	pod  *corev1.Pod
	addr string
	port int32

	stopNode func()
}

func newBed(t *testing.T) *bed {
	t.Helper()
	b := &bed{cluster: newCluster(t), rt: containerdtest.Start(t)}
	var err error
	if b.cri, err = cri.Open(t.Context(), b.rt.Socket, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.cri.Close() })
	l, err := net.Listen("tcp4", nodeAddress+":0")
	if err != nil {
		t.Fatal(err)
	}
	b.addr, b.port = l.Addr().String(), int32(l.Addr().(*net.TCPAddr).Port)
	_, b.stopNode = b.run(t, func(o *node.Options) {
		o.Runtime, o.StatusEvery, o.KubeletPort = b.cri.Runtime, 300*time.Millisecond, b.port
	})
	b.ready(t, corev1.ConditionTrue, goodNews)
	b.runPod(t)
	b.serve(t, l)
	return b
}

// serve serves the kubelet's API with a certificate that the cluster signs.
func (b *bed) serve(t *testing.T, l net.Listener) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	roots, err := kubeletapi.CAFile(b.ca.file)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := servingcert.New(servingcert.Options{Requests: b.node.CertificateSigningRequests(), Dir: filepath.Join(t.TempDir(), "pki"),
		NodeName: nodeName, Addresses: []netip.Addr{netip.MustParseAddr(nodeAddress)}})
	if err != nil {
		t.Fatal(err)
	}
	go cert.Run(ctx)
	pods := func() []*corev1.Pod { return []*corev1.Pod{b.pod} }
	stats, err := kubeletapi.NewStats(kubeletapi.StatsOptions{NodeName: nodeName, Pods: pods, Runtime: b.cri.Runtime, LogRoot: b.rt.LogRoot, Root: b.rt.Dir})
	if err != nil {
		t.Fatal(err)
	}
	s, err := kubeletapi.New(kubeletapi.Options{NodeName: nodeName, Pods: pods, Runtime: b.cri.Runtime, LogRoot: b.rt.LogRoot, Certificate: cert.GetCertificate, Stats: stats,
		Authenticate: kubeletapi.NewAuthenticator(roots, b.node).Authenticate, Authorize: kubeletapi.NewAuthorizer(b.node).Authorize})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if _, err := tls.Dial("tcp", b.addr, &tls.Config{InsecureSkipVerify: true}); err == nil {
		t.Error("there is a certificate though nobody signed one")
	}
	b.signServing(t)
	eventually(t, 20*time.Second, func() string {
		if code, body := b.ask(t, nil, "", "GET", "/healthz"); code != http.StatusUnauthorized {
			return fmt.Sprintf("%d %s", code, body)
		}
		return ""
	})
}

// runPod runs the Pod as a runner would, and reports it.
func (b *bed) runPod(t *testing.T) {
	t.Helper()
	b.pod = b.cluster.pod(t, "web", "web", "reader")
	labels := map[string]string{"io.kubernetes.pod.name": "web", "io.kubernetes.pod.namespace": namespace, "io.kubernetes.pod.uid": string(b.pod.UID)}
	sandbox := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: namespace, Uid: string(b.pod.UID)}, Labels: labels,
		LogDirectory: filepath.Join(b.rt.LogRoot, fmt.Sprintf("%s_web_%s", namespace, b.pod.UID)),
		Linux:        &runtimeapi.LinuxPodSandboxConfig{CgroupParent: b.rt.CgroupRoot},
	}
	id, err := b.cri.Runtime.RunPodSandbox(t.Context(), sandbox, "")
	if err != nil {
		t.Fatalf("run the sandbox: %v; %s", err, b.rt.Log(2000))
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		_ = b.cri.Runtime.StopPodSandbox(ctx, id)
		if err := b.cri.Runtime.RemovePodSandbox(ctx, id); err != nil {
			t.Errorf("remove the sandbox: %v", err)
		}
	})
	status := corev1.PodStatus{Phase: corev1.PodRunning, HostIP: nodeAddress, HostIPs: []corev1.HostIP{{IP: nodeAddress}}}
	for name, args := range map[string][]string{"web": {"then", "echo", "I serve", ";", "serve"}, "reader": {"cat", "/dev/stdin"}} {
		c := map[string]string{"io.kubernetes.container.name": name}
		for k, v := range labels {
			c[k] = v
		}
		cid, err := b.cri.Runtime.CreateContainer(t.Context(), id, &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: &runtimeapi.ImageSpec{Image: containerdtest.Image},
			Args: args, Labels: c, LogPath: name + "/0.log", Stdin: name == "reader",
		}, sandbox)
		if err == nil {
			err = b.cri.Runtime.StartContainer(t.Context(), cid)
		}
		if err != nil {
			t.Fatalf("start container %s: %v; %s", name, err, b.rt.Log(2000))
		}
		status.ContainerStatuses = append(status.ContainerStatuses, corev1.ContainerStatus{Name: name, Ready: true, Image: "x", ImageID: "x",
			ContainerID: "containerd://" + cid, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()}}})
	}
	b.pod.Status = status
	b.writer(t).SetPodStatus(types.NamespacedName{Namespace: namespace, Name: "web"}, b.pod.UID, status)
	eventually(t, 10*time.Second, func() string {
		if s := b.status(t, "web"); s.Phase != corev1.PodRunning {
			return fmt.Sprintf("status %+v", s)
		}
		return ""
	})
}

// ask asks the kubelet's API itself, with a certificate or a token.
func (b *bed) ask(t *testing.T, cert *tls.Certificate, token, method, path string) (int, string) {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(b.ca.cert)
	c := &tls.Config{RootCAs: roots}
	if cert != nil {
		c.Certificates = []tls.Certificate{*cert}
	}
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: c}}
	req, err := http.NewRequestWithContext(t.Context(), method, "https://"+b.addr+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(body)
}

func TestTheKubeletsAPI(t *testing.T) {
	b := newBed(t)
	t.Run("lets in those who may", b.testAuth)
	t.Run("works with client-go through the API server", func(t *testing.T) { b.testClients(t, b.as(controlplane.AdminToken)) })
	t.Run("works with kubectl", b.testKubectl)
	t.Run("is there by the node's proxy", func(t *testing.T) {
		got, err := b.admin.CoreV1().RESTClient().Get().Resource("nodes").Name(nodeName).SubResource("proxy").Suffix("metrics/resource").DoRaw(t.Context())
		if err != nil || !strings.Contains(string(got), `container_memory_working_set_bytes{container="web",namespace="default",pod="web"}`) {
			t.Errorf("%v, %.500s", err, got)
		}
	})
	t.Run("works when the API server hands WebSockets on", b.testDeclared)
}

// testDeclared: a node that says that it can gets v5 WebSockets as they come.
func (b *bed) testDeclared(t *testing.T) {
	b.stopNode()
	b.run(t, func(o *node.Options) {
		o.Runtime, o.StatusEvery, o.DeclaredFeatures = b.cri.Runtime, 300*time.Millisecond, []string{"ExtendWebSocketsToKubelet"}
		o.KubeletPort = b.port
	})
	eventually(t, 10*time.Second, func() string {
		n, err := b.getNode()
		if err != nil || len(n.Status.DeclaredFeatures) != 1 {
			return fmt.Sprintf("%v, features %v", err, n.Status.DeclaredFeatures)
		}
		return ""
	})
	b.testClients(t, b.as(controlplane.AdminToken))
}

func (b *bed) testAuth(t *testing.T) {
	allow := func(verb string, resources ...string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{APIGroups: []string{""}, Verbs: []string{verb}, Resources: resources}
	}
	metrics := b.serviceAccount(t, "metrics", allow("get", "nodes/metrics", "nodes/stats"))
	lister := b.serviceAccount(t, "lister", allow("get", "nodes/pods", "nodes/healthz"))
	reader := b.serviceAccount(t, "reader", allow("get", "nodes/proxy"))
	runner := b.serviceAccount(t, "runner", allow("create", "nodes/proxy"))
	other := b.serviceAccount(t, "other", rbacv1.PolicyRule{APIGroups: []string{""}, Verbs: []string{"*"}, Resources: []string{"nodes/proxy"}, ResourceNames: []string{"two"}})
	load := func(name, group string) *tls.Certificate {
		certFile, keyFile := b.ca.issue(t, b.dir, name, group, x509.ExtKeyUsageClientAuth)
		c, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			t.Fatal(err)
		}
		return &c
	}
	apiserver, jane := load("kube-apiserver-kubelet-client", "x"), load("jane", "x")
	for _, c := range []struct {
		who   string
		cert  *tls.Certificate
		token string
		what  string
		code  int
	}{
		{"nobody", nil, "", "GET /pods", 401},
		{"nobody", nil, "", "GET /healthz", 401},
		{"a token that nobody knows", nil, "wrong", "GET /pods", 401},
		{"a user without rights", nil, controlplane.NobodyToken, "GET /pods", 403},
		{"an administrator", nil, controlplane.AdminToken, "GET /pods", 200},
		{"the API server", apiserver, "", "GET /pods", 200},
		{"a certificate without rights", jane, "", "GET /pods", 403},
		{"metrics", nil, metrics, "GET /metrics/resource", 200},
		{"metrics", nil, metrics, "GET /stats/summary", 200},
		{"metrics", nil, metrics, "GET /pods", 403},
		{"lister", nil, lister, "GET /pods", 200},
		{"lister", nil, lister, "GET /healthz", 200},
		{"lister", nil, lister, "GET /containerLogs/default/web/web", 403},
		{"reader", nil, reader, "GET /containerLogs/default/web/web", 200},
		{"reader", nil, reader, "GET /pods", 200},
		{"reader", nil, reader, "POST /run/default/web/web?cmd=/guest+echo+hi", 403},
		{"reader", nil, reader, "GET /exec/default/web/web?command=/guest&output=1", 403},
		{"runner", nil, runner, "POST /run/default/web/web?cmd=/guest+echo+hi", 200},
		{"runner", nil, runner, "GET /pods", 403},
		{"one with rights to another node", nil, other, "GET /pods", 403},
	} {
		method, path, _ := strings.Cut(c.what, " ")
		if code, body := b.ask(t, c.cert, c.token, method, path); code != c.code {
			t.Errorf("%s of %s: %d %.200s, want %d", c.what, c.who, code, body, c.code)
		}
	}
}

// testClients does what kubectl does, with its packages.
func (b *bed) testClients(t *testing.T, config *rest.Config) {
	url := func(sub string, o *corev1.PodExecOptions) *rest.Request {
		r := b.admin.CoreV1().RESTClient().Post().Resource("pods").Namespace(namespace).Name("web").SubResource(sub)
		if o != nil {
			r = r.VersionedParams(o, scheme.ParameterCodec)
		}
		return r
	}
	executors := func(sub string, o *corev1.PodExecOptions) map[string]remotecommand.Executor {
		ws, err := remotecommand.NewWebSocketExecutor(config, http.MethodGet, url(sub, o).URL().String())
		if err != nil {
			t.Fatal(err)
		}
		s, err := remotecommand.NewSPDYExecutor(config, http.MethodPost, url(sub, o).URL())
		if err != nil {
			t.Fatal(err)
		}
		return map[string]remotecommand.Executor{"WebSocket": ws, "SPDY": s}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	// The API server takes the first use of its client certificate for a change
	// of it, and closes the connection that it just made (client-go's
	// transport/cert_rotation.go): its first request to any kubelet fails.
	eventually(t, 10*time.Second, func() string {
		logs, err := b.admin.CoreV1().Pods(namespace).GetLogs("web", &corev1.PodLogOptions{Container: "web", Timestamps: true}).DoRaw(ctx)
		stamp, line, _ := strings.Cut(string(logs), " ")
		if _, stampErr := time.Parse(time.RFC3339Nano, stamp); err != nil || stampErr != nil || line != "I serve\n" {
			return fmt.Sprintf("logs: %v, %v, %q", err, stampErr, logs)
		}
		return ""
	})
	for kind, e := range executors("exec", &corev1.PodExecOptions{Container: "web", Stdin: true, Stdout: true, Stderr: true, Command: []string{"/guest", "cat", "/dev/stdin"}}) {
		var out bytes.Buffer
		if err := e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: strings.NewReader("hello"), Stdout: &out, Stderr: io.Discard}); err != nil || out.String() != "hello" {
			t.Errorf("exec by %s: %v, %q", kind, err, out.String())
		}
	}
	for kind, e := range executors("exec", &corev1.PodExecOptions{Container: "web", Stdout: true, Stderr: true, Command: []string{"/guest", "then", "err", "no", ";", "exit", "7"}}) {
		var errs bytes.Buffer
		err := e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: io.Discard, Stderr: &errs})
		var code utilexec.CodeExitError
		if !errors.As(err, &code) || code.Code != 7 || errs.String() != "no\n" {
			t.Errorf("exec by %s: %v, %q, want exit code 7", kind, err, errs.String())
		}
	}
	for kind, e := range executors("exec", &corev1.PodExecOptions{Container: "web", Stdin: true, Stdout: true, TTY: true, Command: []string{"/guest", "size"}}) {
		var out bytes.Buffer
		in, _ := io.Pipe()
		err := e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: &out, Tty: true, TerminalSizeQueue: &oneSize{}})
		if err != nil || strings.TrimSpace(out.String()) != "123x45" {
			t.Errorf("a terminal by %s: %v, %q", kind, err, out.String())
		}
	}
	for kind, e := range executors("attach", &corev1.PodExecOptions{Container: "reader", Stdin: true, Stdout: true}) {
		actx, leave := context.WithCancel(ctx)
		in, typed := io.Pipe()
		shown, out := io.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = e.StreamWithContext(actx, remotecommand.StreamOptions{Stdin: in, Stdout: out})
			out.Close()
		}()
		want := "by " + kind + "\n"
		if _, err := io.WriteString(typed, want); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		if _, err := io.ReadFull(shown, got); err != nil || string(got) != want {
			t.Errorf("attach by %s: %q, %v", kind, got, err)
		}
		leave()
		go func() { _, _ = io.Copy(io.Discard, shown) }()
		<-done
		typed.Close()
	}
	b.testForward(t, config, url("portforward", nil))
}

// oneSize is a terminal of one size.
type oneSize struct{ sent atomic.Bool }

func (s *oneSize) Next() *remotecommand.TerminalSize {
	if s.sent.Swap(true) {
		return nil
	}
	return &remotecommand.TerminalSize{Width: 123, Height: 45}
}

func (b *bed) testForward(t *testing.T, config *rest.Config, request *rest.Request) {
	t.Helper()
	transport, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		t.Fatal(err)
	}
	tunnel, err := portforward.NewSPDYOverWebsocketDialer(request.URL(), config)
	if err != nil {
		t.Fatal(err)
	}
	plain := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, request.URL())
	run := func(kind string, f *portforward.PortForwarder, err error, ready, stop chan struct{}) {
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- f.ForwardPorts() }()
		select {
		case <-ready:
		case err := <-done:
			t.Errorf("port-forward by %s: %v", kind, err)
			return
		}
		ports, err := f.GetPorts()
		if err != nil {
			t.Fatal(err)
		}
		client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		for range 5 {
			resp, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/status/207", ports[0].Local))
			if err != nil || resp.StatusCode != 207 {
				t.Errorf("port-forward by %s: %v, %v", kind, resp, err)
				break
			}
			resp.Body.Close()
		}
		close(stop)
		<-done
	}
	ready, stop := make(chan struct{}), make(chan struct{})
	f, err := portforward.New(plain, []string{"0:8080"}, stop, ready, io.Discard, io.Discard)
	run("SPDY", f, err, ready, stop)
	ready, stop = make(chan struct{}), make(chan struct{})
	f, err = portforward.New(tunnel, []string{"0:8080"}, stop, ready, io.Discard, io.Discard)
	run("WebSocket", f, err, ready, stop)
}

// testKubectl runs the program, where there is one.
func (b *bed) testKubectl(t *testing.T) {
	path, err := exec.LookPath("kubectl")
	if err != nil {
		t.Skip("SKIPPED: kubectl is not installed; its packages are tested beside this")
	}
	kubectl := func(in string, args ...string) (string, int) {
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		defer cancel()
		cmd := exec.CommandContext(ctx, path, append([]string{"--kubeconfig", b.Kubeconfig, "--cache-dir", t.TempDir()}, args...)...)
		cmd.Env = append(os.Environ(), "HOME="+b.dir)
		cmd.Stdin = strings.NewReader(in)
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatalf("kubectl %q: %v", args, err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	for _, c := range []struct {
		in   string
		args []string
		want string
		code int
	}{
		{"", []string{"exec", "web", "-c", "web", "--", "/guest", "echo", "from inside"}, "from inside\n", 0},
		{"typed", []string{"exec", "-i", "web", "-c", "web", "--", "/guest", "cat", "/dev/stdin"}, "typed", 0},
		{"", []string{"exec", "web", "-c", "web", "--", "/guest", "exit", "3"}, "command terminated with exit code 3\n", 3},
		{"", []string{"logs", "web", "-c", "web", "--tail", "1"}, "I serve\n", 0},
	} {
		out, code := kubectl(c.in, c.args...)
		if out != c.want || code != c.code {
			t.Errorf("kubectl %q: %d %q, want %d %q", c.args, code, out, c.code, c.want)
		}
	}
	if out, code := kubectl("", "get", "nodes"); code != 0 || !strings.Contains(out, "one") || !strings.Contains(out, "Ready") {
		t.Errorf("kubectl get nodes: %d %q", code, out)
	}
}
