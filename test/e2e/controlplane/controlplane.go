// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Tokens that the API server accepts. Admin may do everything; Nobody is user
// "nobody", and Agent user "fairlead", without any rights that a test does not
// give them.
const (
	AdminToken  = "fairlead-test-admin"
	NobodyToken = "fairlead-test-nobody"
	AgentToken  = "fairlead-test-agent"
)

// startTimeout is ten times what a start takes on two idle cores.
const startTimeout = 60 * time.Second

// Options for a ControlPlane. The zero value is fine.
type Options struct {
	// APIServerArgs are further flags of kube-apiserver.
	APIServerArgs []string
	// Address is the IPv4 address that the API server listens on; default
	// 127.0.0.1.
	Address string
	// Controllers makes it the control plane of a whole cluster: with
	// kube-controller-manager, which gives nodes ranges of PodCIDRs, with
	// kube-scheduler, with ServiceAccounts, and with certificates for kubelets.
	// Its authority signs CertificateSigningRequests that are approved.
	Controllers bool
}

// PodCIDRs are where nodes get their ranges from, with Controllers.
const PodCIDRs = "10.244.0.0/16,fd00:10:244::/48"

// ServiceCIDRs are the ranges of ClusterIPs.
const ServiceCIDRs = "10.96.0.0/16,fd00:96::/112"

// ControlPlane is an etcd and a kube-apiserver with RBAC. Without Controllers
// nothing happens in it that a test does not do.
type ControlPlane struct {
	// Dir holds all its files; they are removed with it.
	Dir string
	// Addr is the API server's address, the same after a restart.
	Addr string
	// Kubeconfig is the path of an admin's kubeconfig.
	Kubeconfig string

	authority   *authority
	options     Options
	etcdURL     string
	etcd        *process
	apiserver   *process
	controllers []*controller
}

// Start starts a ControlPlane that ends with the test.
func Start(t testing.TB) *ControlPlane {
	t.Helper()
	c, err := New(t.Context(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// New starts a ControlPlane and returns when it is ready. Close it.
func New(ctx context.Context, o Options) (_ *ControlPlane, err error) {
	needed := []Binary{Etcd, APIServer}
	if o.Controllers {
		needed = append(needed, ControllerManager, Scheduler)
	}
	if o.Address == "" {
		o.Address = "127.0.0.1"
	}
	for _, b := range needed {
		path, err := b.Path()
		if err != nil {
			return nil, err
		}
		if _, err := os.Stat(path); err != nil {
			return nil, fmt.Errorf("control plane: %w; run `go run ./cmd/build-controlplane` in test/e2e once", err)
		}
	}
	dir, err := os.MkdirTemp("", fmt.Sprintf("fairlead-controlplane-%d-", os.Getpid()))
	if err != nil {
		return nil, err
	}
	c := &ControlPlane{Dir: dir, options: o}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	if c.authority, err = writeCertificates(dir, o.Address); err != nil {
		return nil, err
	}
	tokens := fmt.Sprintf("%s,admin,1,system:masters\n%s,nobody,2\n%s,fairlead,3\n", AdminToken, NobodyToken, AgentToken)
	if err := os.WriteFile(c.file("tokens.csv"), []byte(tokens), 0o600); err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	c.Addr = fmt.Sprintf("%s:%d", o.Address, port)
	c.Kubeconfig = c.file("admin.kubeconfig")
	if err := c.WriteKubeconfig(c.Kubeconfig, c.Addr, AdminToken); err != nil {
		return nil, err
	}
	if err := c.startEtcd(ctx); err != nil {
		return nil, err
	}
	if err := c.StartAPIServer(ctx); err != nil || !o.Controllers {
		return c, err
	}
	return c, c.startControllers()
}

// Close ends the processes and removes the files.
func (c *ControlPlane) Close() {
	for _, k := range c.controllers {
		k.stop()
	}
	c.controllers = nil
	c.KillAPIServer()
	if c.etcd != nil {
		c.etcd.stop(syscall.SIGKILL, time.Second) // its data goes too
		c.etcd = nil
	}
	os.RemoveAll(c.Dir)
}

func (c *ControlPlane) file(name string) string { return filepath.Join(c.Dir, name) }

// RESTConfig reaches the API server with the token.
func (c *ControlPlane) RESTConfig(token string) *rest.Config {
	return &rest.Config{
		Host:            "https://" + c.Addr,
		BearerToken:     token,
		TLSClientConfig: rest.TLSClientConfig{CAData: c.authority.pem},
		QPS:             -1,
	}
}

// Client is an admin's client.
func (c *ControlPlane) Client() (kubernetes.Interface, error) {
	return kubernetes.NewForConfig(c.RESTConfig(AdminToken))
}

// WriteKubeconfig writes a kubeconfig for the token, by way of addr: c.Addr, or
// a Proxy's.
func (c *ControlPlane) WriteKubeconfig(path, addr, token string) error {
	return c.writeKubeconfig(path, addr, &clientcmdapi.AuthInfo{Token: token})
}

func (c *ControlPlane) writeKubeconfig(path, addr string, as *clientcmdapi.AuthInfo) error {
	k := clientcmdapi.NewConfig()
	k.Clusters["test"] = &clientcmdapi.Cluster{Server: "https://" + addr, CertificateAuthorityData: c.authority.pem}
	k.AuthInfos["test"] = as
	k.Contexts["test"] = &clientcmdapi.Context{Cluster: "test", AuthInfo: "test"}
	k.CurrentContext = "test"
	return clientcmd.WriteToFile(*k, path)
}

func (c *ControlPlane) startEtcd(ctx context.Context) error {
	path, err := Etcd.Path()
	if err != nil {
		return err
	}
	client, err := freePort()
	if err != nil {
		return err
	}
	peer, err := freePort()
	if err != nil {
		return err
	}
	c.etcdURL = fmt.Sprintf("http://127.0.0.1:%d", client)
	peerURL := fmt.Sprintf("http://127.0.0.1:%d", peer)
	c.etcd, err = start(c.file("etcd.log"), path,
		"--data-dir", c.file("etcd"),
		"--listen-client-urls", c.etcdURL,
		"--advertise-client-urls", c.etcdURL,
		"--listen-peer-urls", peerURL,
		"--initial-advertise-peer-urls", peerURL,
		"--initial-cluster", "default="+peerURL,
		"--unsafe-no-fsync",
		"--log-level", "warn",
	)
	if err != nil {
		return err
	}
	return waitReady(ctx, c.etcd, http.DefaultTransport, c.etcdURL+"/readyz", "")
}

// StartAPIServer starts the API server, for the first time or again, and
// returns when it is ready.
func (c *ControlPlane) StartAPIServer(ctx context.Context) error {
	if c.apiserver != nil {
		return errors.New("the API server runs already")
	}
	path, err := APIServer.Path()
	if err != nil {
		return err
	}
	host, port, _ := strings.Cut(c.Addr, ":")
	args := []string{
		"--etcd-servers", c.etcdURL,
		"--bind-address", host,
		"--advertise-address", host,
		"--secure-port", port,
		"--cert-dir", c.Dir,
		"--tls-cert-file", c.file("apiserver.crt"),
		"--tls-private-key-file", c.file("apiserver.key"),
		"--service-cluster-ip-range", ServiceCIDRs,
		"--token-auth-file", c.file("tokens.csv"),
		"--authorization-mode", "RBAC",
		"--service-account-issuer", "https://fairlead.test",
		"--service-account-key-file", c.file("service-account.key"),
		"--service-account-signing-key-file", c.file("service-account.key"),
		"--profiling=false",
		"--delete-collection-workers", "8",
	}
	if c.options.Controllers {
		args = append(args, c.clusterArgs()...)
	} else {
		// There would be no service account to mount.
		args = append(args, "--endpoint-reconciler-type", "none", "--disable-admission-plugins", "ServiceAccount")
	}
	c.apiserver, err = start(c.file("kube-apiserver.log"), path, append(args, c.options.APIServerArgs...)...)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(c.authority.pem)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	defer transport.CloseIdleConnections()
	return waitReady(ctx, c.apiserver, transport, "https://"+c.Addr+"/readyz", AdminToken)
}

// KillAPIServer ends the API server at once, as a crash does; etcd goes on.
func (c *ControlPlane) KillAPIServer() {
	if c.apiserver != nil {
		c.apiserver.stop(syscall.SIGKILL, time.Second)
		c.apiserver = nil
	}
}

// StopAPIServer ends the API server in good order; etcd goes on.
func (c *ControlPlane) StopAPIServer() {
	if c.apiserver != nil {
		c.apiserver.stop(syscall.SIGTERM, 20*time.Second)
		c.apiserver = nil
	}
}

// waitReady asks the URL until it answers 200 OK, or the process has ended.
func waitReady(ctx context.Context, p *process, transport http.RoundTripper, url, token string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	client := &http.Client{Transport: transport, Timeout: 5 * time.Second}
	last := errors.New("not asked yet")
	for {
		if err := p.ended(); err != nil {
			return err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := client.Do(req)
		switch {
		case err != nil:
			last = err
		case resp.StatusCode == http.StatusOK:
			resp.Body.Close()
			return nil
		default:
			resp.Body.Close()
			last = errors.New(resp.Status)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready after %v: %w; its last words:\n%s", p.name, startTimeout, last, tail(p.log, 2000))
		case <-time.After(50 * time.Millisecond):
		}
	}
}
