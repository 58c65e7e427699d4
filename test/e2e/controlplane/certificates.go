// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// authority signs the certificates of a control plane, valid for a day.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte // its certificate
}

// newAuthority writes its certificate and key to path.crt and path.key.
func newAuthority(path string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "fairlead-test-" + filepath.Base(path)},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	a := &authority{cert: cert, key: key, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
	if err := writeKey(path+".key", key); err != nil {
		return nil, err
	}
	return a, os.WriteFile(path+".crt", a.pem, 0o600)
}

// issue writes a certificate and its key to path.crt and path.key.
func (a *authority) issue(path string, template *x509.Certificate) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62)); err != nil {
		return err
	}
	template.NotBefore, template.NotAfter = a.cert.NotBefore, a.cert.NotAfter
	template.KeyUsage = x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return fmt.Errorf("issue %s: %w", path, err)
	}
	if err := writeKey(path+".key", key); err != nil {
		return err
	}
	return os.WriteFile(path+".crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600)
}

func writeKey(path string, key *ecdsa.PrivateKey) error {
	b, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: b}), 0o600)
}

// writeCertificates writes the files of an API server at the address.
func writeCertificates(dir, address string) (*authority, error) {
	a, err := newAuthority(filepath.Join(dir, "ca"))
	if err != nil {
		return nil, err
	}
	server := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "kube-apiserver"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		// The last is that of the Service "kubernetes".
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback, net.ParseIP(address), net.IPv4(10, 96, 0, 1)},
		DNSNames:    []string{"localhost", "kubernetes.default.svc"},
	}
	if err := a.issue(filepath.Join(dir, "apiserver"), server); err != nil {
		return nil, err
	}
	client := &x509.Certificate{
		Subject:     pkix.Name{CommonName: KubeletClient},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if err := a.issue(filepath.Join(dir, "kubelet-client"), client); err != nil {
		return nil, err
	}
	if err := writeFrontProxy(dir); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return a, writeKey(filepath.Join(dir, "service-account.key"), key)
}

// frontProxy is who the API server is for servers of further APIs, which take
// its word on who asks: so its authority signs for nobody else.
const frontProxy = "front-proxy-client"

func writeFrontProxy(dir string) error {
	a, err := newAuthority(filepath.Join(dir, "front-proxy-ca"))
	if err != nil {
		return err
	}
	return a.issue(filepath.Join(dir, frontProxy), &x509.Certificate{
		Subject: pkix.Name{CommonName: frontProxy}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

// KubeletClient is the user that the API server is for kubelets. It has no
// rights that a test does not give it.
const KubeletClient = "kube-apiserver-kubelet-client"

// IssueServing writes a certificate for a server at the addresses, signed by the
// control plane's authority, and its key, to path.crt and path.key.
func (c *ControlPlane) IssueServing(path, name string, addresses ...net.IP) error {
	return c.authority.issue(path, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, IPAddresses: addresses,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
}

// WriteNodeKubeconfig writes a kubeconfig for the node's own identity, a
// certificate as the kubelet has it, with the certificate beside it.
func (c *ControlPlane) WriteNodeKubeconfig(path, addr, node string) error {
	err := c.authority.issue(path, &x509.Certificate{
		Subject:     pkix.Name{CommonName: "system:node:" + node, Organization: []string{"system:nodes"}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return err
	}
	return c.writeKubeconfig(path, addr, &clientcmdapi.AuthInfo{ClientCertificate: path + ".crt", ClientKey: path + ".key"})
}

// CAFile is the path of the authority's certificate.
func (c *ControlPlane) CAFile() string { return c.file("ca.crt") }
