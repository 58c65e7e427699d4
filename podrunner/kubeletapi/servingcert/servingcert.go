// SPDX-License-Identifier: Apache-2.0

// Package servingcert has the cluster sign the certificate that the kubelet's
// API serves with. It is a package of its own since client-go's certificate
// manager wants the whole clientset (see apiclient), and the agent does not
// request certificates yet.
package servingcert

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/certificate"

	"fairlead.dev/podrunner/kubeletapi"
)

// Request serves with a certificate that the cluster signs
// (kubernetes.io/kubelet-serving), asks for the next one in time, and keeps the
// last in the directory. It runs until ctx ends. Before the request is approved
// there is no certificate, and no connection.
func Request(ctx context.Context, client kubernetes.Interface, dir, node, hostname string, addresses []netip.Addr) (kubeletapi.GetCertificate, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("directory of the serving certificate: %w", err)
	}
	var ips []net.IP
	for _, a := range addresses {
		ips = append(ips, a.AsSlice())
	}
	store, err := certificate.NewFileStore("kubelet-server", dir, dir, "", "")
	if err != nil {
		return nil, fmt.Errorf("store of the serving certificate: %w", err)
	}
	m, err := certificate.NewManager(&certificate.Config{
		ClientsetFn: func(*tls.Certificate) (kubernetes.Interface, error) { return client, nil },
		GetTemplate: func() *x509.CertificateRequest {
			return &x509.CertificateRequest{
				Subject:  pkix.Name{CommonName: "system:node:" + node, Organization: []string{"system:nodes"}},
				DNSNames: []string{hostname}, IPAddresses: ips,
			}
		},
		SignerName:       certificatesv1.KubeletServingSignerName,
		Usages:           []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth},
		CertificateStore: store,
		Ctx:              &ctx,
	})
	if err != nil {
		return nil, fmt.Errorf("request a serving certificate: %w", err)
	}
	m.Start()
	context.AfterFunc(ctx, m.Stop)
	return func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		if c := m.Current(); c != nil {
			return c, nil
		}
		return nil, errors.New("no serving certificate yet: approve the CertificateSigningRequest of this node (kubectl certificate approve)")
	}, nil
}
