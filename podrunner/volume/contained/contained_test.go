// SPDX-License-Identifier: Apache-2.0

// Package contained tests what podspec and volume make of a Pod as its
// containers see it, in a real runtime.
package contained

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/ptr"

	"fairlead.dev/podrunner/containerdtest"
	"fairlead.dev/podrunner/objects"
	"fairlead.dev/podrunner/podspec"
	"fairlead.dev/podrunner/volume"
)

func TestMain(m *testing.M) { containerdtest.Main(m) }

// lab runs one Pod by bare CRI calls.
type lab struct {
	t       *testing.T
	ctx     context.Context
	rt      *containerdtest.Runtime
	client  runtimeapi.RuntimeServiceClient
	store   *objects.Static
	volumes *volume.Manager
	facts   *podspec.Facts
	sandbox *runtimeapi.PodSandboxConfig
	id      string
}

func newLab(t *testing.T) *lab {
	rt := containerdtest.Start(t)
	conn, err := rt.Dial()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	t.Cleanup(func() { cancel(); conn.Close() })
	store := new(objects.Static)
	return &lab{
		t: t, ctx: ctx, rt: rt, client: runtimeapi.NewRuntimeServiceClient(conn), store: store,
		volumes: volume.New(rt.Root, store, nil),
		facts: &podspec.Facts{
			NodeName: "node-1", LogRoot: rt.LogRoot, CgroupRoot: rt.CgroupRoot, ClusterDomain: "cluster.test",
			ClusterDNS: []netip.Addr{netip.MustParseAddr("10.96.0.10")}, HostResolvConf: "search corp.example\n",
			HostIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, MemoryCapacity: 1 << 30,
			Allocatable: corev1.ResourceList{"memory": resource.MustParse("1Gi")},
		},
	}
}

func (l *lab) must(what string, err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatalf("%s: %v; %s", what, err, l.rt.Log(2000))
	}
}

// start runs the Pod's sandbox and all its containers, and returns their IDs.
func (l *lab) start(pod *corev1.Pod) []string {
	l.t.Helper()
	if r := podspec.Check(pod, l.facts); r != nil {
		l.t.Fatal(r)
	}
	l.must("set up volumes", l.volumes.SetUp(l.ctx, pod, l.facts))
	var err error
	l.sandbox, err = podspec.Sandbox(pod, 0, l.facts)
	l.must("configure the sandbox", err)
	run, err := l.client.RunPodSandbox(l.ctx, &runtimeapi.RunPodSandboxRequest{Config: l.sandbox})
	l.must("run the sandbox", err)
	l.id = run.PodSandboxId
	status, err := l.client.PodSandboxStatus(l.ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: l.id})
	l.must("sandbox status", err)
	l.facts.PodIPs = []netip.Addr{netip.MustParseAddr(status.Status.Network.Ip)}
	var ids []string
	for i := range pod.Spec.Containers {
		ids = append(ids, l.startContainer(pod, &pod.Spec.Containers[i], 0))
	}
	return ids
}

func (l *lab) startContainer(pod *corev1.Pod, c *corev1.Container, restarts int) string {
	l.t.Helper()
	mounts, err := l.volumes.Mounts(l.ctx, pod, c, restarts, l.facts)
	l.must("mounts", err)
	config, err := podspec.Container(l.ctx, pod, c, podspec.ContainerInput{
		RestartCount: restarts, ImageRef: c.Image, Mounts: mounts, EnvFile: l.volumes.EnvFile(pod),
	}, l.facts, l.store)
	l.must("configure the container", err)
	created, err := l.client.CreateContainer(l.ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: l.id, Config: config, SandboxConfig: l.sandbox})
	l.must("create the container", err)
	_, err = l.client.StartContainer(l.ctx, &runtimeapi.StartContainerRequest{ContainerId: created.ContainerId})
	l.must("start the container", err)
	return created.ContainerId
}

// exec returns what the guest prints, or its error.
func (l *lab) exec(id string, args ...string) string {
	l.t.Helper()
	r, err := l.client.ExecSync(l.ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: append([]string{"/guest"}, args...), Timeout: 20})
	l.must("exec", err)
	return string(r.Stdout) + string(r.Stderr)
}

// sees wants the output of the guest to match a regular expression.
func (l *lab) sees(id, want string, args ...string) {
	l.t.Helper()
	if got := l.exec(id, args...); !regexp.MustCompile(want).MatchString(got) {
		l.t.Errorf("%v printed %q, want %q", args, got, want)
	}
}

func (l *lab) end(pod *corev1.Pod) {
	l.t.Helper()
	_, err := l.client.StopPodSandbox(l.ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: l.id})
	l.must("stop the sandbox", err)
	_, err = l.client.RemovePodSandbox(l.ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: l.id})
	l.must("remove the sandbox", err)
	l.must("tear down", l.volumes.TearDown(l.ctx, pod.UID))
	for _, mount := range containerdtest.CgroupMounts() { // the runner's, elsewhere
		os.Remove(filepath.Join(mount, podspec.CgroupParent(pod, l.facts)))
	}
	if known, err := l.volumes.Known(); err != nil || len(known) != 0 {
		l.t.Errorf("left on disk: %v, %v", known, err)
	}
}

func bigPod(host string) *corev1.Pod {
	local := corev1.LocalObjectReference{Name: "conf"}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "front", Namespace: "web", UID: "0b1c-2d", Labels: map[string]string{"app": "x"}},
		Spec: corev1.PodSpec{
			Subdomain: "sub", HostAliases: []corev1.HostAlias{{IP: "192.0.2.7", Hostnames: []string{"alias"}}},
			SecurityContext: &corev1.PodSecurityContext{
				RunAsUser: ptr.To[int64](1000), RunAsGroup: ptr.To[int64](2000), FSGroup: ptr.To[int64](3000), SupplementalGroups: []int64{4000},
				Sysctls: []corev1.Sysctl{{Name: "net.ipv4.ip_unprivileged_port_start", Value: "80"}},
			},
			Volumes: []corev1.Volume{
				{Name: "conf", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: local}}},
				{Name: "sec", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "cred", DefaultMode: ptr.To[int32](0o400)}}},
				{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
				{Name: "mem", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: ptr.To(resource.MustParse("1Mi"))}}},
				{Name: "info", VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}}}}}},
				{Name: "host", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: host, Type: ptr.To(corev1.HostPathDirectory)}}},
			},
			Containers: []corev1.Container{{
				Name: "main", Image: containerdtest.Image, Args: []string{"sleep"},
				TerminationMessagePath: "/dev/termination-log",
				Env: []corev1.EnvVar{
					{Name: "IP", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.podIP"}}},
					{Name: "KEY", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "cred"}, Key: "key"}}},
					{Name: "BOTH", Value: "$(KEY)+$(mode)"},
				},
				EnvFrom: []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: local}}},
				Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("250m"), "memory": resource.MustParse("32Mi")},
					Limits: corev1.ResourceList{"cpu": resource.MustParse("500m"), "memory": resource.MustParse("64Mi")}},
				SecurityContext: &corev1.SecurityContext{
					ReadOnlyRootFilesystem: ptr.To(true), AllowPrivilegeEscalation: ptr.To(false),
					Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: []corev1.Capability{"NET_BIND_SERVICE"}},
					SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
				},
				VolumeMounts: []corev1.VolumeMount{
					{Name: "conf", MountPath: "/conf"}, {Name: "conf", MountPath: "/one", SubPath: "mode"}, {Name: "sec", MountPath: "/sec"},
					{Name: "data", MountPath: "/data"}, {Name: "data", MountPath: "/conf/cache", SubPathExpr: "by/$(mode)"},
					{Name: "mem", MountPath: "/mem"}, {Name: "info", MountPath: "/info"}, {Name: "host", MountPath: "/host", ReadOnly: true},
				},
			}},
		},
	}
}

func TestAPodIsAsItsSpecSays(t *testing.T) {
	l := newLab(t)
	host := filepath.Join(l.rt.Dir, "host")
	l.must("host directory", os.MkdirAll(host, 0o755))
	l.must("host file", os.WriteFile(filepath.Join(host, "f"), []byte("host data"), 0o644))
	l.store.SetConfigMap(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "web", Name: "conf"}, Data: map[string]string{"mode": "fast"}})
	l.store.SetSecret(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "web", Name: "cred"}, Data: map[string][]byte{"key": []byte("s3cr3t")}})
	pod := bigPod(host)
	id := l.start(pod)[0]
	ip := regexp.QuoteMeta(l.facts.PodIPs[0].String())

	l.sees(id, `^front\n$`, "hostname")
	l.sees(id, `(?m)^IP=`+ip+`$`, "env")
	l.sees(id, `(?m)^BOTH=s3cr3t\+fast$`, "env")
	l.sees(id, `(?m)^mode=fast$`, "env")
	l.sees(id, `(?s)nameserver 10\.96\.0\.10.*`, "cat", "/etc/resolv.conf")
	l.sees(id, `search web\.svc\.cluster\.test svc\.cluster\.test cluster\.test corp\.example`, "cat", "/etc/resolv.conf")
	l.sees(id, `options ndots:5`, "cat", "/etc/resolv.conf")
	l.sees(id, `(?m)^`+ip+`\tfront\.sub\.web\.svc\.cluster\.test\tfront$`, "cat", "/etc/hosts")
	l.sees(id, `(?m)^192\.0\.2\.7\talias$`, "cat", "/etc/hosts")

	l.sees(id, `uid=1000 gid=2000 groups=\[(2000 )?3000 4000\]`, "id")
	l.sees(id, `NoNewPrivs:\t1`, "id")
	l.sees(id, `CapBnd:\t0000000000000400`, "id") // NET_BIND_SERVICE
	l.sees(id, `Seccomp:\t2`, "id")
	l.sees(id, `^80\n$`, "cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start")
	l.sees(id, `read-only file system`, "write", "/f", "x")
	l.sees(id, `^$`, "cat", "/proc/keys") // masked

	l.sees(id, `^fast$`, "cat", "/conf/mode")
	l.sees(id, ` /conf ro,`, "cat", "/proc/self/mountinfo")
	l.sees(id, `^fast$`, "cat", "/one")
	l.sees(id, `^s3cr3t$`, "cat", "/sec/key") // through its group
	l.sees(id, `-r--r----- 0 3000 6 key`, "ls", "/sec/..data")
	l.sees(id, `^$`, "write", "/data/f", "x")
	l.sees(id, `1000 3000 2 f`, "ls", "/data") // the group is the volume's
	l.sees(id, `^$`, "write", "/conf/cache/g", "x")
	l.sees(id, ` g\n`, "ls", "/data/by/fast")
	l.sees(id, `^$`, "write", "/mem/f", "x")
	l.sees(id, `^app="x"$`, "cat", "/info/labels")
	l.sees(id, `^host data$`, "cat", "/host/f")
	l.sees(id, ` /host ro,`, "cat", "/proc/self/mountinfo")
	l.sees(id, ` /data rw,`, "cat", "/proc/self/mountinfo")
	l.sees(id, `^$`, "write", "/dev/termination-log", "bye")
	if b, err := os.ReadFile(l.volumes.TerminationLog(pod.UID, "main", 0)); err != nil || string(b) != "bye\n" {
		t.Errorf("the termination message is %q, %v", b, err)
	}

	// An update is seen; a subPath keeps what the container started with.
	l.store.SetConfigMap(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "web", Name: "conf"}, Data: map[string]string{"mode": "slow"}})
	l.must("refresh", l.volumes.Refresh(l.ctx, pod, l.facts))
	l.sees(id, `^slow$`, "cat", "/conf/mode")
	l.sees(id, `^fast$`, "cat", "/one")
	l.cgroupIs(pod, id)

	// All that must be known after a restart is in the runtime.
	list, err := l.client.ListContainers(l.ctx, &runtimeapi.ListContainersRequest{})
	l.must("list", err)
	info, err := podspec.ParseContainer(list.Containers[0].Labels, list.Containers[0].Annotations)
	if err != nil || info.UID != pod.UID || info.Name != "main" || info.Hash != podspec.ContainerHash(&pod.Spec.Containers[0]) {
		t.Errorf("the runtime says %+v, %v", info, err)
	}
	// A second start of the container, its first one's remains beside it.
	_, err = l.client.StopContainer(l.ctx, &runtimeapi.StopContainerRequest{ContainerId: id})
	l.must("stop", err)
	id = l.startContainer(pod, &pod.Spec.Containers[0], 1)
	l.sees(id, `^slow$`, "cat", "/one")
	l.end(pod)
	if b, err := os.ReadFile(filepath.Join(host, "f")); err != nil || string(b) != "host data" {
		t.Errorf("the host's data became %q, %v", b, err)
	}
}

// cgroupIs wants the values of the limits in the container's cgroup, and the
// OOM score.
func (l *lab) cgroupIs(pod *corev1.Pod, id string) {
	l.t.Helper()
	l.sees(id, `^969\n$`, "cat", "/proc/self/oom_score_adj") // 32 MiB of 1 GiB
	want := map[string]string{
		"memory/memory.limit_in_bytes": "67108864", "memory.max": "67108864",
		"cpu/cpu.shares": "256", "cpu/cpu.cfs_quota_us": "50000", "cpu.max": "50000 100000",
	}
	checked := 0
	for file, value := range want {
		name, controller := filepath.Base(file), strings.TrimSuffix(filepath.Dir(file), ".")
		for _, mount := range containerdtest.CgroupMounts() {
			if controller != "" && !strings.Contains(filepath.Base(mount), controller) {
				continue
			}
			path := filepath.Join(mount, podspec.CgroupParent(pod, l.facts), id, name)
			if b, err := os.ReadFile(path); err == nil {
				checked++
				if got := strings.TrimSpace(string(b)); got != value {
					l.t.Errorf("%s is %s, want %s", path, got, value)
				}
			}
		}
	}
	if checked < 2 {
		l.t.Errorf("only %d files of the container's cgroup were found", checked)
	}
}
