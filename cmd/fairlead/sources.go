// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"

	"fairlead.dev/controller/config"
	"fairlead.dev/controller/source"
)

// clusterIPFile keeps, in the state directory, the addresses and ports that
// Services of a directory were given.
const clusterIPFile = "clusterips.json"

// openSource makes the Source that the configuration asks for. release is to be
// called when it is not used any more.
func openSource(ctx context.Context, c *config.Configuration, log *slog.Logger) (s source.Source, release func(), err error) {
	if c.Manifests != "" {
		return openDirectory(ctx, c, log)
	}
	rest, err := source.LoadRESTConfig(c.Kubeconfig)
	if err != nil {
		return nil, nil, err
	}
	s, err = source.NewAPIServer(source.APIServerOptions{
		Config: rest, NodeName: c.NodeName, Version: readBuildInfo().Version, Logger: log, WantPods: c.Pods != "off",
	})
	if err != nil {
		return nil, nil, err
	}
	return s, func() {}, nil
}

// openDirectory also locks the state directory: two agents that hand out
// ClusterIPs from one file would give one address away twice.
func openDirectory(ctx context.Context, c *config.Configuration, log *slog.Logger) (source.Source, func(), error) {
	if info, err := os.Stat(c.Manifests); err != nil {
		return nil, nil, fmt.Errorf("--manifests: %w", err)
	} else if !info.IsDir() {
		return nil, nil, fmt.Errorf("--manifests %s: not a directory", c.Manifests)
	}
	if err := os.MkdirAll(c.StateDir, 0o750); err != nil {
		return nil, nil, fmt.Errorf("--state-dir: %w", err)
	}
	lock, err := lockDir(ctx, "state-dir", c.StateDir)
	if err != nil {
		return nil, nil, err
	}
	prefixes, err := directoryServiceCIDRs(c)
	if err != nil {
		lock.Close()
		return nil, nil, usageError{err}
	}
	s, err := source.NewDirectory(source.DirectoryOptions{
		Path: c.Manifests, NodeName: c.NodeName, ServiceCIDRs: prefixes,
		StatePath: filepath.Join(c.StateDir, clusterIPFile), Logger: log,
	})
	if err != nil {
		lock.Close()
		return nil, nil, err
	}
	return s, func() { lock.Close() }, nil
}

// Where ClusterIPs come from without --service-cidr: kubeadm's default, and a
// range of unique local addresses (RFC 4193) beside it.
var defaultServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")}

func directoryServiceCIDRs(c *config.Configuration) ([]netip.Prefix, error) {
	prefixes, err := c.ServicePrefixes()
	if err == nil && len(prefixes) == 0 {
		prefixes = defaultServiceCIDRs
	}
	return prefixes, err
}
