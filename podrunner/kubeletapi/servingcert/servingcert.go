// SPDX-License-Identifier: Apache-2.0

// Package servingcert has the cluster sign the certificate that the kubelet's
// API serves with, keeps it in a file, and asks for the next one in time. It
// approves nothing: somebody who knows the node does that. It does what
// client-go's util/certificate does, which wants the whole clientset (see
// apiclient).
package servingcert

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/utils/clock"

	"fairlead.dev/podrunner/apiclient"
	"fairlead.dev/podrunner/kubeletapi"
)

// FileName is the certificate's in the directory, with its key: the kubelet's.
const FileName = "kubelet-server-current.pem"

// refusedFor is how long after a refusal the next request is made: as long as
// the kubelet waits for an answer.
const refusedFor = 15 * time.Minute

// Requests are those of certificates, at an API server.
type Requests = apiclient.Listed[*certificatesv1.CertificateSigningRequest, *certificatesv1.CertificateSigningRequestList]

// Options of a Manager. All but Clock and Logger are needed.
type Options struct {
	Requests Requests
	// Dir is where the certificate and its key are kept, made with mode 0700.
	Dir string
	// NodeName is whom the certificate is for, and its DNS name.
	NodeName string
	// Addresses are the node's.
	Addresses []netip.Addr
	Clock     clock.Clock
	Logger    *slog.Logger
}

// Manager has a certificate, or asks for one.
type Manager struct {
	o       Options
	current atomic.Pointer[tls.Certificate]
	renewAt time.Time // of Run alone
	last    string    // what failed last, which is said once
}

// New takes the certificate that is in the directory, if it is good for the
// node's names. Run asks for others.
func New(o Options) (*Manager, error) {
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("directory of the serving certificate: %w", err)
	}
	m := &Manager{o: o}
	path := filepath.Join(o.Dir, FileName)
	c, err := tls.LoadX509KeyPair(path, path)
	if err == nil {
		err = m.check(c.Leaf)
	}
	switch {
	case err == nil:
		m.renewAt = renewal(c.Leaf)
		m.current.Store(&c)
	case !errors.Is(err, fs.ErrNotExist):
		o.Logger.Info("the serving certificate of before is of no use", "file", path, "why", err)
	}
	return m, nil
}

// GetCertificate is for a tls.Config. Without a certificate that is valid there
// is no connection.
func (m *Manager) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c := m.current.Load()
	if c == nil || m.o.Clock.Now().After(c.Leaf.NotAfter) {
		return nil, errors.New("no serving certificate: approve the CertificateSigningRequest of this node (kubectl certificate approve)")
	}
	return c, nil
}

// Run asks for a certificate whenever one is due, until ctx ends.
func (m *Manager) Run(ctx context.Context) {
	backoff := newBackoff()
	for m.sleep(ctx, m.renewAt.Sub(m.o.Clock.Now())) {
		err := m.renew(ctx)
		if ctx.Err() != nil {
			return
		}
		var refused *refusedError
		pause := time.Duration(0)
		switch {
		case err == nil:
			backoff, m.last = newBackoff(), ""
			continue
		case errors.As(err, &refused):
			pause = refusedFor
			m.say(ctx, slog.LevelError, err, "remedy", "approve the next request: kubectl certificate approve NAME", "next", pause)
		default:
			pause = backoff.Step()
			m.say(ctx, slog.LevelWarn, err, "next", pause)
		}
		m.renewAt = m.o.Clock.Now().Add(pause)
	}
}

// newBackoff is that of the kubelet, without an end.
func newBackoff() *wait.Backoff {
	return &wait.Backoff{Duration: 2 * time.Second, Factor: 2, Jitter: 0.1, Steps: 10, Cap: 5 * time.Minute}
}

// say logs what is new, and repeats for who debugs only.
func (m *Manager) say(ctx context.Context, level slog.Level, err error, attrs ...any) {
	if what := err.Error(); what != m.last {
		m.last = what
	} else {
		level = slog.LevelDebug
	}
	if apierrors.IsForbidden(err) {
		attrs = append(attrs, "remedy", "an identity of the node's own (system:node:NAME), or the rights of manifests/overlays/pods")
	}
	m.o.Logger.Log(ctx, level, "no new serving certificate for the kubelet's API", append([]any{"err", err}, attrs...)...)
}

// renew asks for a certificate, and serves with it from then on.
func (m *Manager) renew(ctx context.Context) error {
	key, keyPEM, err := newKey()
	if err != nil {
		return fmt.Errorf("key of the serving certificate: %w", err)
	}
	certPEM, err := m.request(ctx, key)
	if err != nil {
		return err
	}
	c, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return fmt.Errorf("what the cluster signed: %w", err)
	}
	if err := m.check(c.Leaf); err != nil {
		return fmt.Errorf("what the cluster signed: %w", err)
	}
	if err := store(filepath.Join(m.o.Dir, FileName), append(certPEM, keyPEM...)); err != nil {
		m.o.Logger.Warn("cannot keep the serving certificate: the next start needs another", "err", err)
	}
	now := m.o.Clock.Now()
	m.renewAt = renewal(c.Leaf)
	// Signers date back: of a short life most may have gone before it begins.
	if least := now.Add(c.Leaf.NotAfter.Sub(now) / 2); m.renewAt.Before(least) {
		m.renewAt = least
	}
	m.current.Store(&c)
	m.o.Logger.Info("the kubelet's API has a new serving certificate", "until", c.Leaf.NotAfter, "renewal", m.renewAt)
	return nil
}

// renewal is when 70 to 90 % of the certificate's life are over, another moment
// on each node.
func renewal(c *x509.Certificate) time.Time {
	life := float64(c.NotAfter.Sub(c.NotBefore))
	return c.NotBefore.Add(time.Duration(life * (0.7 + 0.2*rand.Float64())))
}

// check says why a certificate is not good for this node.
func (m *Manager) check(c *x509.Certificate) error {
	switch now := m.o.Clock.Now(); {
	case now.Before(c.NotBefore) || now.After(c.NotAfter):
		return fmt.Errorf("it is valid from %v to %v", c.NotBefore, c.NotAfter)
	case c.Subject.CommonName != m.userName():
		return fmt.Errorf("it is for %s, not for %s", c.Subject.CommonName, m.userName())
	case !kubeletapi.Covers(c, m.o.NodeName, m.o.Addresses):
		return fmt.Errorf("it is for %v %v, not for %s %v", c.DNSNames, c.IPAddresses, m.o.NodeName, m.o.Addresses)
	}
	return nil
}

func (m *Manager) userName() string { return "system:node:" + m.o.NodeName }

// store replaces a file that only root may read, whole or not at all.
func store(path string, data []byte) (err error) {
	next := path + ".next"
	f, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	err = f.Chmod(0o600) // of one that was there
	if err == nil {
		_, err = f.Write(data)
	}
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(next))
	}
	return os.Rename(next, path)
}

// sleep reports whether ctx is still there after it.
func (m *Manager) sleep(ctx context.Context, d time.Duration) bool {
	if d > 0 {
		t := m.o.Clock.NewTimer(d)
		defer t.Stop()
		select {
		case <-ctx.Done():
		case <-t.C():
		}
	}
	return ctx.Err() == nil
}
