// SPDX-License-Identifier: Apache-2.0

package kubeletapi

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// GetCertificate is what a tls.Config asks.
type GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error)

// fileCheck is how often a file is looked at for a change.
const fileCheck = 10 * time.Second

// watched is what was made of files, made again when they change. A change that
// cannot be read leaves the last state in force.
type watched[T any] struct {
	paths []string
	load  func() (T, error)

	mu      sync.Mutex
	value   T
	seen    []time.Time
	checked time.Time
}

func watch[T any](load func() (T, error), paths ...string) (*watched[T], error) {
	w := &watched[T]{paths: paths, load: load, checked: time.Now()}
	w.seen = w.times()
	var err error
	w.value, err = load()
	return w, err
}

func (w *watched[T]) get() T {
	w.mu.Lock()
	defer w.mu.Unlock()
	if time.Since(w.checked) < fileCheck {
		return w.value
	}
	w.checked = time.Now()
	now := w.times()
	for i := range now {
		if !now[i].Equal(w.seen[i]) {
			if v, err := w.load(); err == nil {
				w.value, w.seen = v, now
			}
			break
		}
	}
	return w.value
}

func (w *watched[T]) times() (out []time.Time) {
	for _, p := range w.paths {
		var at time.Time
		if i, err := os.Stat(p); err == nil {
			at = i.ModTime()
		}
		out = append(out, at)
	}
	return out
}

// CertificateFiles serves with a certificate and its key, in PEM, and follows
// the files.
func CertificateFiles(cert, key string) (GetCertificate, error) {
	w, err := watch(func() (*tls.Certificate, error) {
		c, err := tls.LoadX509KeyPair(cert, key)
		return &c, err
	}, cert, key)
	if err != nil {
		return nil, fmt.Errorf("serving certificate: %w", err)
	}
	return func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return w.get(), nil }, nil
}

// CAFile trusts the authorities of a file, in PEM, and follows it.
func CAFile(path string) (func() *x509.CertPool, error) {
	w, err := watch(func() (*x509.CertPool, error) {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(b) {
			return nil, fmt.Errorf("no certificate in %s", path)
		}
		return pool, nil
	}, path)
	if err != nil {
		return nil, fmt.Errorf("authorities of clients: %w", err)
	}
	return w.get, nil
}

// SelfSigned serves with a certificate of its own, which it keeps in
// kubelet.crt and kubelet.key of the directory and makes anew when it has
// expired or the node has other addresses.
func SelfSigned(dir, hostname string, addresses []netip.Addr) (GetCertificate, error) {
	cert, key := filepath.Join(dir, "kubelet.crt"), filepath.Join(dir, "kubelet.key")
	if c, err := tls.LoadX509KeyPair(cert, key); err != nil || !fits(c.Leaf, hostname, addresses) {
		if err := writeSelfSigned(cert, key, hostname, addresses); err != nil {
			return nil, fmt.Errorf("make a serving certificate: %w", err)
		}
	}
	return CertificateFiles(cert, key)
}

func fits(c *x509.Certificate, hostname string, addresses []netip.Addr) bool {
	return time.Now().Add(30*24*time.Hour).Before(c.NotAfter) && Covers(c, hostname, addresses)
}

// Covers reports whether a certificate is for the name and each of the addresses.
func Covers(c *x509.Certificate, hostname string, addresses []netip.Addr) bool {
	if c.VerifyHostname(hostname) != nil {
		return false
	}
	for _, a := range addresses {
		if c.VerifyHostname(a.String()) != nil {
			return false
		}
	}
	return true
}

// SelfSignedInMemory is SelfSigned for a process that may write nowhere: each
// one has another certificate, good for a year.
func SelfSignedInMemory(hostname string, addresses []netip.Addr) (GetCertificate, error) {
	cert, key, err := selfSigned(hostname, addresses)
	if err != nil {
		return nil, fmt.Errorf("make a serving certificate: %w", err)
	}
	c, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("make a serving certificate: %w", err)
	}
	return func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &c, nil }, nil
}

func writeSelfSigned(certFile, keyFile, hostname string, addresses []netip.Addr) error {
	cert, key, err := selfSigned(hostname, addresses)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(keyFile), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(keyFile, key, 0o600); err != nil {
		return err
	}
	return os.WriteFile(certFile, cert, 0o644)
}

// selfSigned makes a certificate and its key, in PEM.
func selfSigned(hostname string, addresses []netip.Addr) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: hostname},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true, DNSNames: []string{hostname}, IPAddresses: netIPs(addresses),
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}), nil
}

func netIPs(addresses []netip.Addr) (out []net.IP) {
	for _, a := range addresses {
		out = append(out, a.AsSlice())
	}
	return out
}
