// SPDX-License-Identifier: Apache-2.0

// Package controlplane runs a real etcd and kube-apiserver on loopback for
// tests, and builds them first, once per version. It knows nothing of fairlead.
package controlplane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Versions that are built; the go.mod files beside this file pin the same.
const (
	KubernetesVersion    = "v1.37.2"
	EtcdVersion          = "v3.7.3"
	MetricsServerVersion = "v0.9.0"
	CoreDNSVersion       = "v1.15.0"
)

// Binary is a program of the control plane.
type Binary string

// The programs that Build can build.
const (
	Etcd              Binary = "etcd"
	APIServer         Binary = "kube-apiserver"
	ControllerManager Binary = "kube-controller-manager"
	Scheduler         Binary = "kube-scheduler"
	KubeProxy         Binary = "kube-proxy"
	Kubectl           Binary = "kubectl"
	Kubelet           Binary = "kubelet"
	MetricsServer     Binary = "metrics-server"
	CoreDNS           Binary = "coredns"
	// Conformance is Kubernetes' own end-to-end tests; the others run in their Pods.
	Conformance Binary = "e2e.test"
	Agnhost     Binary = "agnhost"
	NoNewPrivs  Binary = "nonewprivs"
)

// Needed are the programs that the tests run.
var Needed = []Binary{Etcd, APIServer, ControllerManager, Scheduler, KubeProxy, Kubectl, Kubelet, MetricsServer, CoreDNS}

// source says where a program comes from: its module's directory here, its
// version and its package.
func (b Binary) source() (dir, version, pkg string, err error) {
	switch b {
	case Etcd:
		return "etcd", EtcdVersion, "go.etcd.io/etcd/server/v3", nil
	case APIServer, ControllerManager, Scheduler, KubeProxy, Kubectl, Kubelet:
		return "kubernetes", KubernetesVersion, "k8s.io/kubernetes/cmd/" + string(b), nil
	case Agnhost, NoNewPrivs:
		return "kubernetes", KubernetesVersion, "k8s.io/kubernetes/test/images/" + string(b), nil
	case Conformance:
		return "kubernetes", KubernetesVersion, "./conformance", nil
	case CoreDNS:
		return "coredns", CoreDNSVersion, ".", nil
	case MetricsServer:
		return "metrics-server", MetricsServerVersion, metricsServerModule + "/cmd/metrics-server", nil
	}
	return "", "", "", fmt.Errorf("no program %q here; there are %q", b, Needed)
}

// CacheDir holds the built programs, a directory for each version:
// $FAIRLEAD_CACHE, or fairlead in the user's cache directory.
func CacheDir() (string, error) {
	if dir := os.Getenv("FAIRLEAD_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("cache of built programs: %w; set FAIRLEAD_CACHE", err)
	}
	return filepath.Join(dir, "fairlead"), nil
}

// Path is where the built program is, or will be.
func (b Binary) Path() (string, error) {
	_, version, _, err := b.source()
	if err != nil {
		return "", err
	}
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(cache, version, string(b)), nil
}

// Build builds what is not in the cache yet and says on log what it does. It
// must run with the working directory inside the e2e module. Builds wait for
// one another.
func Build(ctx context.Context, log io.Writer, programs ...Binary) error {
	for _, b := range programs {
		path, err := b.Path()
		if err != nil {
			return err
		}
		if err := b.build(ctx, log, path); err != nil {
			return fmt.Errorf("build %s: %w", b, err)
		}
	}
	return nil
}

func (b Binary) build(ctx context.Context, log io.Writer, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	unlock, err := lock(path + ".lock")
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := os.Stat(path); err == nil {
		fmt.Fprintf(log, "%s: built already\n", path)
		return nil
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}

	module, version, pkg, err := b.source()
	if err != nil {
		return err
	}
	dir, err := moduleDir(ctx, module)
	if err != nil {
		return err
	}
	ldflags := "-s -w"
	switch module {
	case "kubernetes":
		ldflags += " -X k8s.io/component-base/version.gitVersion=" + version
	case "metrics-server":
		ldflags += " -X k8s.io/client-go/pkg/version.gitVersion=" + version
	}
	fmt.Fprintf(log, "%s: building %s %s; the first time takes minutes\n", path, pkg, version)
	started := time.Now()
	// The finished file appears at once or not at all.
	building := path + ".building"
	how := []string{"build"}
	if b == Conformance {
		how = []string{"test", "-c", "-vet=off"} // vet would read all of Kubernetes
	}
	cmd := exec.CommandContext(ctx, "go", append(how, "-trimpath", "-ldflags", ldflags, "-o", building, pkg)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOOS="+runtime.GOOS, "GOARCH="+runtime.GOARCH)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Run(); err != nil {
		return err
	}
	if b == MetricsServer {
		if err := copyManifests(ctx, dir, path); err != nil {
			return err
		}
	}
	if err := os.Rename(building, path); err != nil {
		return err
	}
	fmt.Fprintf(log, "%s: built in %v\n", path, time.Since(started).Round(time.Second))
	return nil
}

// moduleDir finds the directory of a module beside this file, by way of the
// e2e module that surrounds the working directory.
func moduleDir(ctx context.Context, name string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "fairlead.dev/test/e2e")
	cmd.Env = append(os.Environ(), "GOWORK=off")
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("find module fairlead.dev/test/e2e: %w; run this in its directory", err)
	}
	return filepath.Join(strings.TrimSpace(string(out)), "controlplane", name), nil
}

// lock takes the file's lock; the kernel gives it back when the process ends.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}
