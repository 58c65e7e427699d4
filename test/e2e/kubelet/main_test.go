// SPDX-License-Identifier: Apache-2.0

// Package kubelet tests the node's side of a cluster, packages
// podrunner/node and podrunner/kubeletapi, against a real API server with the
// credentials and rights of a node, and a real containerd.
package kubelet

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"fairlead.dev/podrunner/apiclient"
	"fairlead.dev/podrunner/containerdtest"
	"fairlead.dev/test/e2e/controlplane"
)

func TestMain(m *testing.M) { containerdtest.Main(m) }

// nodeName and nodeAddress are this node's. The API server does not proxy to
// loopback addresses.
const (
	nodeName    = "one"
	nodeAddress = "10.99.0.1"
	namespace   = "default"
)

// cluster is an API server that authorizes nodes as a cluster does.
type cluster struct {
	*controlplane.ControlPlane
	admin kubernetes.Interface
	// node is what the node may: its certificate is that of system:node:one.
	node *apiclient.Client
	ca   *authority
	dir  string
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	addNodeAddress(t)
	c := &cluster{ca: newAuthority(t), dir: t.TempDir()}
	var err error
	clientCert, clientKey := c.ca.issue(t, c.dir, "kube-apiserver-kubelet-client", "system:nobody", x509.ExtKeyUsageClientAuth)
	started := time.Now()
	c.ControlPlane, err = controlplane.New(context.Background(), controlplane.Options{APIServerArgs: []string{
		"--client-ca-file", c.ca.file,
		"--authorization-mode", "Node", // beside RBAC
		"--enable-admission-plugins", "NodeRestriction",
		"--kubelet-client-certificate", clientCert,
		"--kubelet-client-key", clientKey,
		"--kubelet-certificate-authority", c.ca.file,
		"--kubelet-preferred-address-types", "InternalIP,Hostname",
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	t.Logf("control plane ready after %v", time.Since(started).Round(time.Millisecond))
	if c.admin, err = c.Client(); err != nil {
		t.Fatal(err)
	}
	cert, key := c.ca.issue(t, c.dir, "system:node:"+nodeName, "system:nodes", x509.ExtKeyUsageClientAuth)
	config := c.RESTConfig("")
	config.CertFile, config.KeyFile = cert, key
	if c.node, err = apiclient.New(config); err != nil {
		t.Fatal(err)
	}
	c.allow(t, "kubelet-api-admin", "system:kubelet-api-admin", rbacv1.Subject{Kind: "User", Name: "kube-apiserver-kubelet-client"})
	return c
}

func addNodeAddress(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root, for a network namespace and containerd")
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if a, _ := netlink.ParseAddr(nodeAddress + "/32"); netlink.AddrReplace(lo, a) != nil {
		t.Fatal("cannot add the node's address to lo")
	}
}

// allow binds a role to a subject.
func (c *cluster) allow(t *testing.T, name, role string, who rbacv1.Subject) {
	t.Helper()
	if who.Kind == "User" {
		who.APIGroup = rbacv1.GroupName
	}
	b := &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name}, Subjects: []rbacv1.Subject{who},
		RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role}}
	// Bootstrap roles come a moment after the server is ready.
	eventually(t, 20*time.Second, func() string {
		if _, err := c.admin.RbacV1().ClusterRoles().Get(t.Context(), role, metav1.GetOptions{}); err != nil {
			return err.Error()
		}
		return ""
	})
	if _, err := c.admin.RbacV1().ClusterRoleBindings().Create(t.Context(), b, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// serviceAccount creates one that may do what the rules say, and gives a token.
func (c *cluster) serviceAccount(t *testing.T, name string, rules ...rbacv1.PolicyRule) string {
	t.Helper()
	api := c.admin.CoreV1().ServiceAccounts(namespace)
	if _, err := api.Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: rules}
	if _, err := c.admin.RbacV1().ClusterRoles().Create(t.Context(), role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.allow(t, name, name, rbacv1.Subject{Kind: "ServiceAccount", Name: name, Namespace: namespace})
	token, err := api.CreateToken(t.Context(), name, tokenRequest(), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return token.Status.Token
}

// pod creates a Pod that is bound to the node.
func (c *cluster) pod(t *testing.T, name string, containers ...string) *corev1.Pod {
	t.Helper()
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{NodeName: nodeName,
		TerminationGracePeriodSeconds: new(int64(30)), ReadinessGates: []corev1.PodReadinessGate{{ConditionType: "example.com/gate"}}}}
	for _, n := range containers {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: n, Image: containerdtest.Image})
	}
	p, err := c.admin.CoreV1().Pods(namespace).Create(t.Context(), p, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// as is a configuration for a token.
func (c *cluster) as(token string) *rest.Config { return c.RESTConfig(token) }

// authority signs what the test needs signed.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{file: filepath.Join(t.TempDir(), "ca.crt")}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test-ca"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	writePEM(t, a.file, "CERTIFICATE", der)
	return a
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// issue writes a certificate and its key.
func (a *authority) issue(t *testing.T, dir, name, group string, usage x509.ExtKeyUsage) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := a.sign(&key.PublicKey, &x509.Certificate{Subject: pkix.Name{CommonName: name, Organization: []string{group}}, ExtKeyUsage: []x509.ExtKeyUsage{usage}})
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	writePEM(t, certFile, "CERTIFICATE", der)
	writePEM(t, keyFile, "EC PRIVATE KEY", keyDER)
	return certFile, keyFile
}

func (a *authority) sign(public any, template *x509.Certificate) ([]byte, error) {
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	return x509.CreateCertificate(rand.Reader, template, a.cert, public, a.key)
}

// eventually waits until the condition holds, and fails the test with what the
// condition says is missing.
func eventually(t *testing.T, within time.Duration, condition func() (missing string)) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		missing := condition()
		if missing == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v: %s", within, missing)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
