// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// e2e is the module of the tests with a control plane, from this directory.
const e2e = "../e2e"

var (
	// kubeProxyModules are those of kube-proxy's ipvs mode: of its ipsets, and of
	// its rules; and those of what replaces it.
	kubeProxyModules = strings.Fields(`ip_set_hash_ip ip_set_hash_ipport ip_set_hash_ipportip ip_set_hash_ipportnet ip_set_hash_net ip_set_bitmap_port
		nft_numgen nft_hash nft_fib_inet nft_redir nft_reject_ipv4 nft_reject_ipv6 nft_limit
		nft_compat xt_set xt_comment xt_mark xt_conntrack xt_addrtype xt_MASQUERADE xt_tcpudp xt_REDIRECT ipt_REJECT ip6t_REJECT`)
	kubeProxyReplaced = regexp.MustCompile(`(?m)^ *--- PASS: TestKubeProxyIsReplacedAndComesBackUnderLoadWithoutALoss/ipvs_by_`)
)

// TestKubeProxysIPVSModeIsReplacedOnDebiansKernel plays what test/e2e/migrate
// plays of the other modes, a machine for each Dataplane that follows.
// FAIRLEAD_KERNEL_MATRIX=kube-proxy asks for eBPF and for nothing else: its load
// wants the processor for itself. FAIRLEAD_KERNEL_MATRIX=whole plays all that follow.
func TestKubeProxysIPVSModeIsReplacedOnDebiansKernel(t *testing.T) {
	var dataplanes []string
	switch os.Getenv("FAIRLEAD_KERNEL_MATRIX") {
	case "kube-proxy":
		dataplanes = []string{"ebpf"}
	case "whole":
		dataplanes = []string{"ebpf", "nftables", "iptables"}
	default:
		t.Skip("FAIRLEAD_KERNEL_MATRIX does not ask for it")
	}
	t.Parallel()
	r := run{"", Debian12, "fairlead.dev/test/e2e/migrate", "", "", slices.Concat(ipvsModules, []string{"sch_ingress", "cls_bpf"}, kubeProxyModules), kubeProxyReplaced}
	dir := t.TempDir()
	payload := filepath.Join(dir, "migrate.test")
	if err := BuildTest(t.Context(), e2e, r.pkg, payload); err != nil {
		t.Fatal(err)
	}
	for _, d := range dataplanes {
		t.Run("by "+d, func(t *testing.T) {
			r := r
			r.tests = "TestKubeProxyIsReplaced/^ipvs_by_" + d + "$"
			m := r.machine(payload)
			withControlPlane(t, t.TempDir(), &m)
			r.play(t, m)
		})
	}
}

// withControlPlane gives a machine the real kube-proxy, an API server with its
// etcd, fairlead, and the programs that they and the test run. All of it is in
// the machine: its clock is not the host's.
func withControlPlane(t *testing.T, dir string, m *Machine) {
	t.Helper()
	m.Memory = 4096
	m.Files = map[string]string{"/fairlead": filepath.Join(dir, "fairlead"), "/etc/protocols": "/etc/protocols"} // ipset reads these
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", m.Files["/fairlead"], "fairlead.dev/cmd/fairlead")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if err := runTool(build); err != nil {
		t.Fatal(err)
	}
	programs, err := controlPlane(t.Context(), "etcd", "kube-apiserver", "kube-proxy")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range programs { // CACHE/VERSION/NAME
		m.Files[filepath.Join("/cache", filepath.Base(filepath.Dir(path)), filepath.Base(path))] = path
	}
	m.Env = append(m.Env, "FAIRLEAD_CACHE=/cache", "FAIRLEAD_PROGRAM=/fairlead")
	m.Programs = []string{"ipset", "nft", "setpriv", "unshare"}
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, does := range []string{"", "-restore", "-save"} {
			m.Programs = append(m.Programs, family+"-nft"+does)
			m.Files["/usr/sbin/"+family+does] = tool(family + "-nft" + does)
		}
	}
	extensions, err := filepath.Glob("/usr/lib/x86_64-linux-gnu/xtables/*.so")
	if err != nil || len(extensions) == 0 {
		t.Fatalf("extensions of iptables: %v, %v", extensions, err)
	}
	for _, path := range extensions {
		m.Files[path] = path
	}
}

// controlPlane gives the paths of programs that test/e2e builds, once per version.
func controlPlane(ctx context.Context, names ...string) (paths []string, err error) {
	cmd := exec.CommandContext(ctx, "go", append([]string{"run", "./cmd/build-controlplane"}, names...)...)
	cmd.Dir, cmd.Stderr = e2e, os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("build %v: %w", names, err)
	}
	for line := range strings.Lines(string(out)) { // PATH: built already
		if path, _, ok := strings.Cut(line, ": built "); ok {
			paths = append(paths, path)
		}
	}
	if len(paths) != len(names) {
		return nil, fmt.Errorf("build %v: built %v", names, paths)
	}
	return paths, nil
}
