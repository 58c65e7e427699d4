// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clocktesting "k8s.io/utils/clock/testing"

	"fairlead.dev/podrunner/apiclient"
	"fairlead.dev/podrunner/containerdtest"
	"fairlead.dev/podrunner/kubeletapi/servingcert"
	"fairlead.dev/test/e2e/controlplane"
	"fairlead.dev/test/internal/output"
)

// signingCluster is a cluster whose controllers sign what was approved, with
// manifests/overlays/pods.
type signingCluster struct {
	*cluster
	kubectlPath string
	roots       *x509.CertPool
}

func newSigningCluster(t *testing.T) *signingCluster {
	t.Helper()
	addNodeAddress(t)
	c := &signingCluster{cluster: &cluster{dir: t.TempDir()}, roots: x509.NewCertPool()}
	var err error
	if c.kubectlPath, err = controlplane.Kubectl.Path(); err != nil {
		t.Fatal(err)
	}
	if c.ControlPlane, err = controlplane.New(context.Background(), controlplane.Options{Address: nodeAddress, Controllers: true}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	if c.admin, err = c.Client(); err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(c.CAFile())
	if err != nil || !c.roots.AppendCertsFromPEM(ca) {
		t.Fatalf("the cluster's authority: %v", err)
	}
	c.allow(t, "kubelet-api-admin", "system:kubelet-api-admin", rbacv1.Subject{Kind: "User", Name: controlplane.KubeletClient})
	for _, ns := range []string{metav1.NamespaceSystem, corev1.NamespaceNodeLease} {
		eventually(t, 20*time.Second, func() string {
			if _, err := c.admin.CoreV1().Namespaces().Get(t.Context(), ns, metav1.GetOptions{}); err != nil {
				return err.Error()
			}
			return ""
		})
	}
	c.kubectl(t, "apply", "-k", "../../../manifests/overlays/pods")
	return c
}

func (c *signingCluster) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.kubectlPath, append([]string{"--kubeconfig", c.Kubeconfig}, args...)...)
	cmd.Env = append(os.Environ(), "HOME="+c.dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl %q: %v: %s", args, err, out)
	}
	return string(out)
}

// requests are all that were made.
func (c *signingCluster) requests(t *testing.T) []certificatesv1.CertificateSigningRequest {
	t.Helper()
	list, err := c.admin.CertificatesV1().CertificateSigningRequests().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return list.Items
}

// pending waits for a request that nobody has answered.
func (c *signingCluster) pending(t *testing.T) (csr certificatesv1.CertificateSigningRequest) {
	t.Helper()
	eventually(t, 30*time.Second, func() string {
		for _, r := range c.requests(t) {
			if len(r.Status.Conditions) == 0 {
				csr = r
				return ""
			}
		}
		return "no request waits for an answer"
	})
	return csr
}

// agent runs the program until it is stopped.
type agent struct {
	cmd   *exec.Cmd
	ended chan struct{}
}

func startAgent(t *testing.T, log string, args ...string) *agent {
	t.Helper()
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	a := &agent{cmd: exec.Command(args[0], args[1:]...), ended: make(chan struct{})}
	a.cmd.Stdout, a.cmd.Stderr = f, f
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = a.cmd.Wait()
		close(a.ended)
	}()
	return a
}

func (a *agent) stop(t *testing.T) {
	t.Helper()
	_ = a.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-a.ended:
	case <-time.After(20 * time.Second):
		_ = a.cmd.Process.Kill()
		t.Errorf("the agent does not end within 20 s of SIGTERM")
	}
}

// peer is the certificate of the server, verified as metrics-server would.
func (c *signingCluster) peer(addr string) (*x509.Certificate, error) {
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", addr, &tls.Config{RootCAs: c.roots, ServerName: nodeAddress})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0], nil
}

func (c *signingCluster) awaitPeer(t *testing.T, addr string) (cert *x509.Certificate) {
	t.Helper()
	eventually(t, 30*time.Second, func() string {
		var err error
		if cert, err = c.peer(addr); err != nil {
			return err.Error()
		}
		return ""
	})
	return cert
}

func TestTheClusterSignsTheServingCertificate(t *testing.T) {
	c := newSigningCluster(t)
	t.Run("of an agent", c.testAgent)
	t.Run("and the next one in time", c.testRenewal)
	t.Run("or refuses to", c.testRefusal)
}

func (c *signingCluster) testAgent(t *testing.T) {
	rt := containerdtest.Start(t)
	program, log, kubeconfig := filepath.Join(c.dir, "fairlead"), filepath.Join(c.dir, "agent.log"), filepath.Join(c.dir, "node.kubeconfig")
	build := exec.Command("go", "build", "-tags", "grpcnotrace", "-o", program, "./cmd/fairlead")
	build.Dir, build.Env = "../../..", append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := c.WriteNodeKubeconfig(kubeconfig, c.Addr, nodeName); err != nil {
		t.Fatal(err)
	}
	addr := net.JoinHostPort(nodeAddress, "10250")
	begin := func() *agent {
		return startAgent(t, log, program, "run", "--kubeconfig", kubeconfig, "--node-name", nodeName, "--bind-address", nodeAddress,
			"--dataplane", "nftables", "--metrics-bind-address=", "--healthz-bind-address=", "--node-labels", "fairlead.dev/agent=host",
			"--pods", "cri", "--cri-socket", rt.Socket, "--state-dir", rt.Root, "--pod-log-dir", rt.LogRoot, "--pod-cgroup-root", rt.CgroupRoot+"/kubepods",
			"--kubelet-bind-address", addr, "--client-ca-file", c.CAFile(), "--kubelet-rotate-server-certificates")
	}
	a := begin()
	t.Cleanup(func() {
		a.stop(t)
		if b, err := os.ReadFile(log); t.Failed() {
			t.Logf("the agent said: %s %v", b[max(0, len(b)-6000):], err)
		}
		if out, err := exec.Command(program, "cleanup").CombinedOutput(); err != nil {
			t.Errorf("fairlead cleanup: %v: %s", err, out)
		}
	})
	csr := c.pending(t)
	if csr.Spec.SignerName != certificatesv1.KubeletServingSignerName || csr.Spec.Username != "system:node:"+nodeName {
		t.Errorf("request %+v", csr.Spec)
	}
	eventually(t, 20*time.Second, func() string {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			return err.Error()
		}
		conn.Close()
		return ""
	})
	if conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true}); err == nil {
		t.Errorf("before the approval there is a certificate: %v", conn.ConnectionState().PeerCertificates[0].Subject)
	} else if !strings.Contains(err.Error(), "tls: ") {
		t.Errorf("before the approval: %v", err)
	}

	approved := time.Now()
	c.kubectl(t, "certificate", "approve", csr.Name)
	first := c.awaitPeer(t, addr)
	t.Logf("kubectl certificate approve -> first verified connection: %v", time.Since(approved).Round(time.Millisecond))
	if first.Subject.CommonName != "system:node:"+nodeName || first.VerifyHostname(nodeName) != nil {
		t.Errorf("certificate of %v, %v", first.Subject, first.DNSNames)
	}
	// The API server verifies it too: --kubelet-certificate-authority. Its first
	// use of its own certificate fails, see testClients.
	eventually(t, 20*time.Second, func() string {
		got, err := c.admin.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes", nodeName, "proxy/healthz").DoRaw(t.Context())
		if err != nil {
			return fmt.Sprintf("%v: %s", err, got)
		}
		return ""
	})
	keptByRoot(t, filepath.Join(rt.Root, "pki"))

	a.stop(t)
	a = begin()
	again := c.awaitPeer(t, addr)
	time.Sleep(time.Second) // a request would come before the first connection
	if n := len(c.requests(t)); n != 1 || again.SerialNumber.Cmp(first.SerialNumber) != 0 {
		t.Errorf("after a restart there are %d requests, and the certificate %v, want 1 and %v", n, again.SerialNumber, first.SerialNumber)
	}
	if b, err := os.ReadFile(log); err != nil || bytes.Contains(b, []byte("PRIVATE")) || bytes.Contains(b, []byte("BEGIN")) {
		t.Errorf("the log: %v: %s", err, b)
	}
}

// keptByRoot is a directory with the certificate alone, for root alone.
func keptByRoot(t *testing.T, dir string) {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 || files[0].Name() != "kubelet-server-current.pem" {
		t.Fatalf("in %s: %v, %v", dir, files, err)
	}
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, files[0].Name()): 0o600} {
		if i, err := os.Stat(path); err != nil || i.Mode().Perm() != want {
			t.Errorf("%s: mode %v, want %v; %v", path, i.Mode(), want, err)
		}
	}
}

// manage runs a Manager with a clock, with the rights of the manifests'
// ServiceAccount, until the test ends.
func (c *signingCluster) manage(t *testing.T, dir string) (*servingcert.Manager, *clocktesting.FakeClock, *output.Buffer) {
	t.Helper()
	token, err := c.admin.CoreV1().ServiceAccounts(metav1.NamespaceSystem).CreateToken(t.Context(), "fairlead-pods", tokenRequest(), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	client, err := apiclient.New(c.as(token.Status.Token))
	if err != nil {
		t.Fatal(err)
	}
	clock, log := clocktesting.NewFakeClock(time.Now()), &output.Buffer{}
	m, err := servingcert.New(servingcert.Options{Requests: client.CertificateSigningRequests(), Dir: dir, NodeName: nodeName,
		Addresses: []netip.Addr{netip.MustParseAddr(nodeAddress)}, Clock: clock, Logger: slog.New(slog.NewJSONHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { m.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return m, clock, log
}

// step lets the time pass that a Manager waits for.
func step(t *testing.T, clock *clocktesting.FakeClock, d time.Duration) {
	t.Helper()
	eventually(t, 20*time.Second, func() string {
		if !clock.HasWaiters() {
			return "the Manager waits for no time"
		}
		return ""
	})
	clock.Step(d)
}

func serial(m *servingcert.Manager) string {
	c, err := m.GetCertificate(nil)
	if err != nil {
		return ""
	}
	return c.Leaf.SerialNumber.String()
}

func (c *signingCluster) testRenewal(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	m, clock, _ := c.manage(t, dir)
	c.kubectl(t, "certificate", "approve", c.pending(t).Name)
	eventually(t, 20*time.Second, func() string {
		if serial(m) == "" {
			return "no certificate"
		}
		return ""
	})
	first, asked := serial(m), len(c.requests(t))
	// The signer dates back by five minutes: of 15, 70 % are over 5.5 after the
	// approval, and 90 % after 8.5.
	step(t, clock, 5*time.Minute)
	time.Sleep(300 * time.Millisecond)
	if n := len(c.requests(t)); n != asked {
		t.Errorf("before 70 %% of its life there are %d requests, want %d", n, asked)
	}
	clock.Step(4 * time.Minute)
	next := c.pending(t)
	if serial(m) != first {
		t.Errorf("while the next one is asked for it serves %q, want %q", serial(m), first)
	}
	c.kubectl(t, "certificate", "approve", next.Name)
	eventually(t, 20*time.Second, func() string {
		if s := serial(m); s == first || s == "" {
			return fmt.Sprintf("it serves %q still", s)
		}
		return ""
	})
	keptByRoot(t, dir)
	kept, err := tls.LoadX509KeyPair(filepath.Join(dir, servingcert.FileName), filepath.Join(dir, servingcert.FileName))
	if err != nil || kept.Leaf.SerialNumber.String() != serial(m) {
		t.Errorf("kept is another than served: %v", err)
	}
	// What has expired is nobody's.
	clock.Step(controlplane.SigningDuration)
	if s := serial(m); s != "" {
		t.Errorf("it serves %s, which has expired", s)
	}
	c.kubectl(t, "certificate", "deny", c.pending(t).Name) // for the next test
}

func (c *signingCluster) testRefusal(t *testing.T) {
	m, clock, log := c.manage(t, t.TempDir())
	c.kubectl(t, "delete", "csr", c.pending(t).Name)
	step(t, clock, 3*time.Second)
	for range 2 {
		c.kubectl(t, "certificate", "deny", c.pending(t).Name)
		step(t, clock, 15*time.Minute)
	}
	c.pending(t)
	said := log.String()
	if n := strings.Count(said, "the cluster refused"); n != 1 || !strings.Contains(said, "kubectl certificate approve NAME") || serial(m) != "" {
		t.Errorf("a refusal was said %d times, want 1: %s", n, said)
	}
}

// signServing approves and signs the node's request, as the controller manager
// would.
func (b *bed) signServing(t *testing.T) {
	t.Helper()
	api := b.admin.CertificatesV1().CertificateSigningRequests()
	var csr *certificatesv1.CertificateSigningRequest
	eventually(t, 20*time.Second, func() string {
		list, err := api.List(t.Context(), metav1.ListOptions{})
		if err != nil || len(list.Items) == 0 {
			return fmt.Sprintf("no request: %v", err)
		}
		csr = &list.Items[0]
		return ""
	})
	if csr.Spec.SignerName != "kubernetes.io/kubelet-serving" || csr.Spec.Username != "system:node:one" {
		t.Fatalf("request %+v", csr.Spec)
	}
	block, _ := pem.Decode(csr.Spec.Request)
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	csr.Status.Conditions = append(csr.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "Test", Message: "Test"})
	if csr, err = api.UpdateApproval(t.Context(), csr.Name, csr, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	der, err := b.ca.sign(request.PublicKey, &x509.Certificate{Subject: request.Subject, DNSNames: request.DNSNames, IPAddresses: request.IPAddresses,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	if err != nil {
		t.Fatal(err)
	}
	csr.Status.Certificate = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if _, err := api.UpdateStatus(t.Context(), csr, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}
