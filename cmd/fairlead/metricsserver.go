// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"

	"fairlead.dev/controller/config"
	"fairlead.dev/controller/source"
	"fairlead.dev/podrunner/apiclient"
	"fairlead.dev/podrunner/kubeletapi"
)

// checkMetrics refuses what cannot be served.
func checkMetrics(c *config.Configuration) error {
	if (c.MetricsTLSCertFile == "") != (c.MetricsTLSPrivateKeyFile == "") {
		return usagef("--metrics-tls-cert-file and --metrics-tls-private-key-file belong together: set both or none")
	}
	if c.MetricsAuth == "delegated" && c.Manifests != "" {
		return usagef("--metrics-auth delegated asks an API server, which --manifests has none of: leave it out and keep --metrics-bind-address on loopback")
	}
	return nil
}

// secureMetrics is how the metrics address is served, and who is let in; nil:
// without TLS, and anyone.
func secureMetrics(c *config.Configuration, log *slog.Logger) (*tls.Config, func(http.Handler) http.Handler, error) {
	if c.MetricsBindAddress == "" || c.MetricsAuth == "none" && c.MetricsTLSCertFile == "" {
		return nil, nil, nil
	}
	certificate, err := metricsCertificate(c)
	if err != nil {
		return nil, nil, err
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: certificate, NextProtos: []string{"http/1.1"}}
	if c.MetricsAuth == "none" {
		return t, nil, nil
	}
	// Verified when it is used: a token will do as well.
	t.ClientAuth = tls.RequestClientCert
	rest, err := source.LoadRESTConfig(c.Kubeconfig)
	if err != nil {
		return nil, nil, err
	}
	rest.UserAgent = "fairlead/" + readBuildInfo().Version
	client, err := apiclient.New(rest)
	if err != nil {
		return nil, nil, fmt.Errorf("API client of --metrics-auth: %w", err)
	}
	authenticator := kubeletapi.NewAuthenticator(nil, client)
	if c.ClientCAFile != "" {
		roots, err := kubeletapi.CAFile(c.ClientCAFile)
		if err != nil {
			return nil, nil, fmt.Errorf("--client-ca-file: %w", err)
		}
		authenticator = kubeletapi.NewAuthenticator(roots, client)
	}
	guard := &kubeletapi.PathGuard{Authenticate: authenticator.Authenticate, Authorize: kubeletapi.NewAuthorizer(client).Authorize, Logger: log}
	return t, guard.Wrap, nil
}

func metricsCertificate(c *config.Configuration) (kubeletapi.GetCertificate, error) {
	if c.MetricsTLSCertFile != "" {
		get, err := kubeletapi.CertificateFiles(c.MetricsTLSCertFile, c.MetricsTLSPrivateKeyFile)
		if err != nil {
			return nil, fmt.Errorf("--metrics-tls-cert-file: %w", err)
		}
		return get, nil
	}
	addresses := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	// Validate has seen the address.
	if host, _, _ := net.SplitHostPort(c.MetricsBindAddress); host != "" {
		if a, err := netip.ParseAddr(host); err == nil && !a.IsUnspecified() {
			addresses = append(addresses, a.WithZone(""))
		}
	}
	return kubeletapi.SelfSignedInMemory(c.NodeName, addresses)
}
