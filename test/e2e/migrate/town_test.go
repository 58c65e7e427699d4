// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairlead.dev/test/conformance"
	"fairlead.dev/test/e2e/controlplane"
	"fairlead.dev/test/internal/namespace"
	"fairlead.dev/test/internal/output"
)

// silence is after what time both proxies forget a UDP flow. fairlead goes when it
// carries none: that is what the way back waits for.
const silence = 5 * time.Second

// bound is the longest that anything may take on a loaded machine.
const bound = time.Minute

// town is one node of the lab with a Service, whose proxy changes.
type town struct {
	t          *testing.T
	lab        *conformance.Lab
	node       *conformance.Node
	thread     *namespace.Thread
	dir        string
	kubeconfig string
	config     string // kube-proxy's, for both
	mode       string
	dataplane  string

	steady   *corev1.Service
	backends []netip.AddrPort
}

func newTown(t *testing.T, mode, dataplane string) *town {
	t.Helper()
	w := &town{t: t, lab: conformance.NewLab(t), dir: t.TempDir(), mode: mode, dataplane: dataplane}
	w.node = w.lab.Node(1)
	var err error
	if w.thread, err = namespace.NewThread(w.node.NetNSPath); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.thread.Close)
	var podCIDRs []string
	for _, p := range w.node.PodCIDRs {
		podCIDRs = append(podCIDRs, p.String())
	}
	if err := describeNode(t.Context(), w.node.Name, podCIDRs, w.node.PrimaryIPv4.String(), w.node.PrimaryIPv6.String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.CoreV1().Nodes().Delete(context.Background(), w.node.Name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	w.connect()
	w.steady = w.expose("steady", "a", "d")
	w.expose("silent") // no endpoints: refused by all
	for _, name := range []string{"a", "d"} {
		m := w.member(name)
		w.backends = append(w.backends, netip.AddrPortFrom(m.IPv4, 8080), netip.AddrPortFrom(m.IPv6, 8080))
	}
	return w
}

// connect leads a wire from the node's loopback to the API server, and writes
// the configuration that kubeadm would, but for what is the machine's.
func (w *town) connect() {
	w.t.Helper()
	var wire *controlplane.Proxy
	err := w.thread.Do(func() (err error) {
		wire, err = controlplane.NewProxy(cluster.Addr)
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(wire.Close)
	w.kubeconfig = filepath.Join(w.dir, "kubeconfig")
	if err := cluster.WriteKubeconfig(w.kubeconfig, wire.Addr(), controlplane.AdminToken); err != nil {
		w.t.Fatal(err)
	}
	w.config = filepath.Join(w.dir, "config.conf")
	text := fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection: {acceptContentTypes: "", burst: 0, contentType: "", kubeconfig: %s, qps: 0}
clusterCIDR: %s
configSyncPeriod: 0s
conntrack: {maxPerCore: 0, min: 0, tcpBeLiberal: false, tcpCloseWaitTimeout: 0s, tcpEstablishedTimeout: 0s, udpStreamTimeout: %s, udpTimeout: %s}
detectLocal: {bridgeInterface: "", interfaceNamePrefix: ""}
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: %s
iptables: {localhostNodePorts: null, masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}
ipvs: {excludeCIDRs: null, minSyncPeriod: 0s, scheduler: "", strictARP: false, syncPeriod: 0s, tcpFinTimeout: 0s, tcpTimeout: 0s, udpTimeout: 0s}
logging: {flushFrequency: 0, options: {json: {infoBufferSize: "0"}, text: {infoBufferSize: "0"}}, verbosity: 0}
metricsBindAddress: ""
mode: %s
nftables: {masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel: {enableDSR: false, forwardHealthCheckVip: false, networkName: "", rootHnsEndpointName: "", sourceVip: ""}
`, w.kubeconfig, cidrs(conformance.ClusterCIDRs), silence, silence, w.node.Name, w.mode)
	if err := os.WriteFile(w.config, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func cidrs(ps []netip.Prefix) string {
	var words []string
	for _, p := range ps {
		words = append(words, p.String())
	}
	return strings.Join(words, ",")
}

func (w *town) member(name string) conformance.Member {
	w.t.Helper()
	return w.lab.Member(w.t, name)
}

// expose makes a dual-stack NodePort Service of TCP and UDP with endpoints. They
// go with the test.
func (w *town) expose(name string, pods ...string) *corev1.Service {
	w.t.Helper()
	ctx := w.t.Context()
	services := client.CoreV1().Services("default")
	policy := corev1.IPFamilyPolicyRequireDualStack
	s, err := services.Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, IPFamilyPolicy: &policy, Ports: []corev1.ServicePort{
			{Name: "tcp", Port: 80, Protocol: corev1.ProtocolTCP}, {Name: "udp", Port: 80, Protocol: corev1.ProtocolUDP},
		}},
	}, metav1.CreateOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	w.endpoints(name, pods...)
	w.t.Cleanup(func() { w.withdraw(name) })
	return s
}

// endpoints makes the EndpointSlices of a Service as the controller would.
func (w *town) endpoints(name string, pods ...string) {
	w.t.Helper()
	ctx, slices := w.t.Context(), client.DiscoveryV1().EndpointSlices("default")
	for _, family := range []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6} {
		e := &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Name: name + "-" + strings.ToLower(string(family)), Labels: map[string]string{discoveryv1.LabelServiceName: name}},
			AddressType: family, Endpoints: []discoveryv1.Endpoint{},
		}
		for port, protocol := range map[string]corev1.Protocol{"tcp": corev1.ProtocolTCP, "udp": corev1.ProtocolUDP} {
			e.Ports = append(e.Ports, discoveryv1.EndpointPort{Name: &port, Protocol: &protocol, Port: new(int32(8080))})
		}
		for _, pod := range pods {
			m, node := w.member(pod), map[string]string{"a": "node1", "b": "node1", "d": "node2", "e": "node2"}[pod]
			a := m.IPv4
			if family == discoveryv1.AddressTypeIPv6 {
				a = m.IPv6
			}
			e.Endpoints = append(e.Endpoints, discoveryv1.Endpoint{Addresses: []string{a.String()}, NodeName: &node})
		}
		_, err := slices.Update(ctx, e, metav1.UpdateOptions{})
		if apierrors.IsNotFound(err) {
			_, err = slices.Create(ctx, e, metav1.CreateOptions{})
		}
		if err != nil {
			w.t.Fatal(err)
		}
	}
}

// withdraw deletes what expose made.
func (w *town) withdraw(name string) {
	ctx := context.Background() // the test's own has ended
	err := client.CoreV1().Services("default").Delete(ctx, name, metav1.DeleteOptions{})
	for _, family := range []string{"-ipv4", "-ipv6"} {
		if serr := client.DiscoveryV1().EndpointSlices("default").Delete(ctx, name+family, metav1.DeleteOptions{}); serr != nil {
			err = serr
		}
	}
	if err != nil {
		w.t.Errorf("clean up: %v", err)
	}
}

// process is a program on the node.
type process struct {
	name   string
	cmd    *exec.Cmd
	log    output.Buffer
	exited chan struct{}
}

// start starts a program in the node's network namespace and among its
// processes. It ends with the test.
func (w *town) start(program string, args ...string) *process {
	w.t.Helper()
	p := &process{name: filepath.Base(program), cmd: exec.Command(program, args...), exited: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
	if err := w.thread.Start(p.cmd, w.member("host1").CgroupDir); err != nil {
		w.t.Fatalf("start %s: %v", p.name, err)
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.exited)
	}()
	w.t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.exited
		if w.t.Failed() && (program == kubeProxy || slices.Contains(args, "run") || slices.Contains(args, "migrate")) {
			w.t.Logf("%s said:\n%.20000s", strings.Join(p.cmd.Args, " "), p.log.String())
		}
	})
	return p
}

// stop is SIGTERM, and waits.
func (w *town) stop(p *process) {
	w.t.Helper()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	w.ends(p)
}

// ends waits for the end of a program, and gives its exit code.
func (w *town) ends(p *process) int {
	w.t.Helper()
	select {
	case <-p.exited:
	case <-time.After(bound):
		w.t.Fatalf("%s still runs after %v", strings.Join(p.cmd.Args, " "), bound)
	}
	return p.cmd.ProcessState.ExitCode()
}

// flags are those of fairlead that are the place's; all else is in kube-proxy's
// file.
func (w *town) flags(command string, more ...string) []string {
	args := []string{command, "--config", w.config, "--dataplane", w.dataplane, "--bpffs", w.node.BPFFS, "--cgroup-root", w.node.CgroupRoot,
		"--devices", strings.Join(w.node.Devices, ","), "--state-dir", w.dir}
	return append(args, more...)
}

// output runs a command on the node and gives what it prints.
func (w *town) output(program string, args ...string) string {
	w.t.Helper()
	p := w.start(program, args...)
	if code := w.ends(p); code != 0 {
		w.t.Fatalf("%s %s: exit code %d\n%s", program, strings.Join(args, " "), code, p.log.String())
	}
	return p.log.String()
}

var changing = regexp.MustCompile(`(?m)^#.*\n|\[\d+:\d+\]|(?m)^.*packets \d+ bytes \d+.*\n`)

// foreign is what is not kube-proxy's nor fairlead's.
func (w *town) foreign() string {
	w.t.Helper()
	var all strings.Builder
	for _, c := range []string{"iptables-nft-save", "ip6tables-nft-save"} {
		all.WriteString(w.output(c))
	}
	for _, table := range []string{"inet mine", "ip mine"} {
		all.WriteString(w.output("nft", append([]string{"list", "table"}, strings.Fields(table)...)...))
	}
	return changing.ReplaceAllString(all.String(), "")
}

// settleIn makes rules of the kubelet and of others. On a bare node none of them
// has to do with conntrack: then nobody but the proxies keeps that at work.
func (w *town) settleIn(bare bool) {
	w.t.Helper()
	if bare {
		const hint = "*mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n*filter\n:KUBE-FIREWALL - [0:0]\n-A INPUT -j KUBE-FIREWALL\nCOMMIT\n"
		w.restore(map[string]string{"iptables-nft-restore": hint, "ip6tables-nft-restore": hint, "nft": "add table inet mine\nadd table ip mine\nadd chain ip mine kube-proxy\n"})
		return
	}
	w.restore(map[string]string{
		"iptables-nft-restore": `*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*nat
:KUBE-KUBELET-CANARY - [0:0]
:MINE - [0:0]
-A PREROUTING -p tcp -m tcp --dport 4711 -m comment --comment "not of kube-proxy" -j MINE
-A MINE -p tcp -m tcp --dport 4711 -j REDIRECT --to-ports 4712
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
-A INPUT -j KUBE-FIREWALL
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "block incoming localnet connections" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
COMMIT
`,
		"ip6tables-nft-restore": "*nat\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n*mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n*filter\n:KUBE-FIREWALL - [0:0]\n-A INPUT -j KUBE-FIREWALL\n-A OUTPUT -j KUBE-FIREWALL\nCOMMIT\n",
		"nft":                   "add table inet mine\nadd chain inet mine services { type filter hook forward priority 10; }\nadd rule inet mine services tcp dport 4711 drop\nadd table ip mine\nadd chain ip mine kube-proxy\n",
	})
}

func (w *town) restore(all map[string]string) {
	w.t.Helper()
	for command, rules := range all {
		file := filepath.Join(w.dir, command)
		if err := os.WriteFile(file, []byte(rules), 0o600); err != nil {
			w.t.Fatal(err)
		}
		if command == "nft" {
			w.output("nft", "-f", file)
		} else {
			w.output(command, file)
		}
	}
}
