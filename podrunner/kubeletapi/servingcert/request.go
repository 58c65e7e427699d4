// SPDX-License-Identifier: Apache-2.0

package servingcert

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	certutil "k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"
)

// refusedError is a request that was denied, or cannot be signed.
type refusedError struct{ name, how, reason, message string }

func (e *refusedError) Error() string {
	return fmt.Sprintf("the cluster refused a CertificateSigningRequest: %s: %s: %s", e.how, e.reason, e.message)
}

// errGone is a request that nobody answered: the cluster removes it after a day.
var errGone = errors.New("the CertificateSigningRequest was removed before it was answered")

// errEnded is the end of a watch in good order.
var errEnded = errors.New("the watch ended")

func newKey() (key *ecdsa.PrivateKey, keyPEM []byte, err error) {
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, nil, err
	}
	keyPEM, err = keyutil.MarshalPrivateKeyToPEM(key)
	return key, keyPEM, err
}

// request asks for a certificate for the key and waits until it is signed, for
// as long as the request is there.
func (m *Manager) request(ctx context.Context, key *ecdsa.PrivateKey) (certPEM []byte, err error) {
	var ips []net.IP
	for _, a := range m.o.Addresses {
		ips = append(ips, a.AsSlice())
	}
	// What the signer wants, word for word (kubernetes.io/kubelet-serving).
	csr, err := certutil.MakeCSR(key, &pkix.Name{CommonName: m.userName(), Organization: []string{"system:nodes"}}, []string{m.o.NodeName}, ips)
	if err != nil {
		return nil, fmt.Errorf("make a CertificateSigningRequest: %w", err)
	}
	got, err := m.o.Requests.Create(ctx, &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "csr-"},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request: csr, SignerName: certificatesv1.KubeletServingSignerName,
			Usages: []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("create a CertificateSigningRequest: %w", err)
	}
	m.o.Logger.Info("asked the cluster to sign a serving certificate for the kubelet's API", "request", got.Name,
		"serving", m.current.Load() != nil, "remedy", "kubectl certificate approve "+got.Name)
	return m.await(ctx, got.Name)
}

// await outlasts the API server.
func (m *Manager) await(ctx context.Context, name string) ([]byte, error) {
	backoff := newBackoff()
	for {
		began := m.o.Clock.Now()
		certPEM, err := m.follow(ctx, name)
		var refused *refusedError
		switch {
		case err == nil:
			return certPEM, nil
		case errors.Is(err, errGone), errors.As(err, &refused):
			return nil, err
		}
		if m.o.Clock.Since(began) > time.Minute {
			backoff = newBackoff()
		}
		pause := backoff.Step()
		if !errors.Is(err, errEnded) {
			m.say(ctx, slog.LevelWarn, err, "next", pause)
		}
		if !m.sleep(ctx, pause) {
			return nil, ctx.Err()
		}
	}
}

// follow waits for the answer to a request until a watch of it ends.
func (m *Manager) follow(ctx context.Context, name string) ([]byte, error) {
	opts := metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", name).String()}
	list, err := m.o.Requests.List(ctx, opts)
	if err != nil {
		return nil, fmt.Errorf("look for the CertificateSigningRequest %s: %w", name, err)
	}
	if len(list.Items) == 0 {
		return nil, errGone
	}
	if certPEM, err := answer(&list.Items[0]); certPEM != nil || err != nil {
		return certPEM, err
	}
	opts.ResourceVersion = list.ResourceVersion
	w, err := m.o.Requests.Watch(ctx, opts)
	if err != nil {
		return nil, fmt.Errorf("watch the CertificateSigningRequest %s: %w", name, err)
	}
	defer w.Stop()
	for event := range w.ResultChan() {
		csr, ok := event.Object.(*certificatesv1.CertificateSigningRequest)
		switch {
		case event.Type == watch.Deleted:
			return nil, errGone
		case !ok:
			return nil, fmt.Errorf("watch the CertificateSigningRequest %s: %w", name, apierrors.FromObject(event.Object))
		}
		if certPEM, err := answer(csr); certPEM != nil || err != nil {
			return certPEM, err
		}
	}
	return nil, errEnded
}

// answer is nil for as long as there is none.
func answer(csr *certificatesv1.CertificateSigningRequest) (certPEM []byte, err error) {
	for _, c := range csr.Status.Conditions {
		if (c.Type == certificatesv1.CertificateDenied || c.Type == certificatesv1.CertificateFailed) && c.Status != corev1.ConditionFalse {
			return nil, &refusedError{csr.Name, string(c.Type), c.Reason, c.Message}
		}
	}
	if len(csr.Status.Certificate) == 0 {
		return nil, nil
	}
	return csr.Status.Certificate, nil
}
