// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"

	"fairlead.dev/podrunner/containerdtest"
	"fairlead.dev/podrunner/cri"
	"fairlead.dev/podrunner/objects"
	"fairlead.dev/podrunner/podspec"
)

// One Service without endpoints: enough to see that the kernel was programmed.
const served = `apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {type: NodePort, clusterIP: 10.96.0.10, ports: [{name: http, port: 80, nodePort: 30080, protocol: TCP}]}
`

// The image, under a real runtime, as the overlays' DaemonSets have it: their
// capabilities, a read-only root, the runtime's seccomp profile. It programs the
// network of its Pod only.
func TestTheImageServesUnderContainerdAsItsDaemonSet(t *testing.T) {
	rt := containerdtest.Start(t)
	atRoot(t)
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	if err := rt.Import(builtImage(ctx, t)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		overlay string
		// asks are commands in the container, with a part of what they print.
		asks [][2]string
	}{
		{"ebpf", [][2]string{{"fairlead check --dataplane ebpf --cgroup-root /host/cgroup", "dataplane"}, {"fairlead version", "image-test"}}},
		{"nftables", [][2]string{{"fairlead check --dataplane nftables", "dataplane"}}},
		{"iptables", [][2]string{
			{"iptables --version", "nf_tables"}, {"iptables-legacy --version", "legacy"}, {"ip6tables --version", "nf_tables"},
			// Not check: what it tries there takes a network namespace of its own.
			{"iptables-nft-save -t nat", "FAIRLEAD"},
		}},
	} {
		t.Run(c.overlay, func(t *testing.T) {
			p := startPod(ctx, t, rt, c.overlay)
			p.await("fairlead dump services -o json", `"10.96.0.10"`)
			for _, a := range c.asks {
				if out, err := p.exec(a[0]); err != nil || !strings.Contains(out, a[1]) {
					t.Errorf("%s: %v, want %q in:\n%s", a[0], err, a[1], out)
				}
			}
			if out, err := p.exec("fairlead cleanup"); err == nil {
				t.Errorf("cleanup beside a running agent: %s", out)
			}
		})
	}
}

// pod is one agent in a sandbox.
type pod struct {
	t         *testing.T
	ctx       context.Context
	client    *cri.Client
	container string
	log       string
}

func startPod(ctx context.Context, t *testing.T, rt *containerdtest.Runtime, overlay string) *pod {
	t.Helper()
	client, err := cri.Open(ctx, rt.Socket, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	ctx = cri.Quiet(ctx)
	sandbox := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: overlay, Namespace: "kube-system", Uid: overlay},
		LogDirectory: filepath.Join(rt.LogRoot, overlay), Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: rt.CgroupRoot},
	}
	id, err := client.Runtime.RunPodSandbox(ctx, sandbox, "")
	if err != nil {
		t.Fatalf("run the sandbox: %v; %s", err, rt.Log(2000))
	}
	t.Cleanup(func() {
		ended := cri.Quiet(context.WithoutCancel(ctx))
		if err := client.Runtime.StopPodSandbox(ended, id); err != nil {
			t.Error(err)
		}
		if err := client.Runtime.RemovePodSandbox(ended, id); err != nil {
			t.Error(err)
		}
	})
	status, err := client.Runtime.PodSandboxStatus(ctx, id, false)
	if err != nil {
		t.Fatal(err)
	}
	config := containerOf(ctx, t, rt, overlay, status.Status.Network.Ip)
	p := &pod{t: t, ctx: ctx, client: client, log: filepath.Join(sandbox.LogDirectory, config.LogPath)}
	if p.container, err = client.Runtime.CreateContainer(ctx, id, config, sandbox); err != nil {
		t.Fatalf("create the container: %v", err)
	}
	if err := client.Runtime.StartContainer(ctx, p.container); err != nil {
		t.Fatalf("start the container: %v; %s", err, rt.Log(2000))
	}
	return p
}

// containerOf is the container of an overlay's DaemonSet, as a node's runner of
// Pods gives it to the runtime, but for what it reads and mounts.
func containerOf(ctx context.Context, t *testing.T, rt *containerdtest.Runtime, overlay, podIP string) *runtimeapi.ContainerConfig {
	t.Helper()
	set := daemonSetOf(t, overlay)
	object := &corev1.Pod{ObjectMeta: set.Spec.Template.ObjectMeta, Spec: set.Spec.Template.Spec}
	object.Namespace, object.Name = "kube-system", overlay
	object.Spec.HostNetwork = false
	c := object.Spec.Containers[0]
	c.Env, c.VolumeMounts = nil, nil
	c.Args = append([]string{"run", "--manifests=/manifests", "--state-dir=/state", "--node-name=n", "--bind-address=" + podIP,
		"--dataplane=ebpf", "--cgroup-root=/host/cgroup"}, c.Args[3:]...)
	dir := t.TempDir()
	for _, d := range []string{"manifests", "state", "bpf"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "manifests", "web.yaml"), []byte(served), 0o644); err != nil {
		t.Fatal(err)
	}
	bpffs := filepath.Join(dir, "bpf")
	if err := unix.Mount("bpf", bpffs, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(bpffs, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	in := podspec.ContainerInput{ImageRef: "docker.io/library/" + c.Image, Mounts: []*runtimeapi.Mount{
		{HostPath: filepath.Join(dir, "manifests"), ContainerPath: "/manifests", Readonly: true},
		{HostPath: filepath.Join(dir, "state"), ContainerPath: "/state"},
		{HostPath: bpffs, ContainerPath: "/sys/fs/bpf"},
	}}
	if overlay == "ebpf" {
		in.Mounts = append(in.Mounts, &runtimeapi.Mount{HostPath: cgroup2Of(t, rt), ContainerPath: "/host/cgroup", Readonly: true})
	}
	config, err := podspec.Container(ctx, object, &c, in, &podspec.Facts{NodeName: "n"}, &objects.Static{})
	if err != nil {
		t.Fatal(err)
	}
	security := config.Linux.SecurityContext
	if !security.ReadonlyRootfs || !security.NoNewPrivs || security.Privileged || security.Seccomp.GetProfileType() != runtimeapi.SecurityProfile_RuntimeDefault {
		t.Errorf("this is not the DaemonSet's container: %v", security)
	}
	return config
}

func daemonSetOf(t *testing.T, overlay string) (set appsv1.DaemonSet) {
	t.Helper()
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), "manifests/overlays/"+overlay)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range resources.Resources() {
		if r.GetKind() == "DaemonSet" {
			if err := yaml.UnmarshalStrict([]byte(r.MustYaml()), &set); err != nil {
				t.Fatal(err)
			}
		}
	}
	return set
}

// cgroup2Of is the runtime's cgroup in the cgroup2 hierarchy: only its
// processes get socket hooks.
func cgroup2Of(t *testing.T, rt *containerdtest.Runtime) string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if before, after, ok := strings.Cut(line, " - "); ok && strings.HasPrefix(after, "cgroup2 ") {
			return filepath.Join(strings.Fields(before)[4], rt.CgroupRoot)
		}
	}
	t.Fatal("no cgroup2 is mounted")
	return ""
}

func (p *pod) exec(command string) (string, error) {
	out, complaints, err := p.client.Runtime.ExecSync(p.ctx, p.container, strings.Fields(command), time.Minute)
	if err != nil {
		return string(out), fmt.Errorf("%w: %s", err, complaints)
	}
	return string(out), nil
}

// await runs a command until it prints something.
func (p *pod) await(command, want string) {
	p.t.Helper()
	var out string
	var err error
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if out, err = p.exec(command); err == nil && strings.Contains(out, want) {
			if command != "" && strings.Contains(command, "json") && !json.Valid([]byte(out)) {
				p.t.Errorf("%s printed no JSON:\n%s", command, out)
			}
			return
		}
	}
	log, _ := os.ReadFile(p.log)
	p.t.Fatalf("%s: %v, want %q in:\n%s\nthe agent said:\n%s", command, err, want, out, bytes.TrimSpace(log))
}
