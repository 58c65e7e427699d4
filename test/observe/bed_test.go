// SPDX-License-Identifier: Apache-2.0

// Package observe tests what others see of a running agent: its sockets and
// files, its metrics in a real Prometheus with the dashboard and the alerts,
// its status on the command line and in a browser.
package observe

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fairlead.dev/test/conformance"
	"fairlead.dev/test/internal/namespace"
	"fairlead.dev/test/internal/output"
	"fairlead.dev/test/internal/traffic"
)

// patience bounds whatever is waited for on a machine that does much else.
const patience = 2 * time.Minute

// Ports of the Services of the test.
const (
	webNodePort   = 30080
	emptyNodePort = 30081
	healthPort    = 30082
)

// bed is an agent on a node of the lab, with traffic through it.
type bed struct {
	t      *testing.T // the whole test's: what is started ends with it
	node   *conformance.Node
	lab    *conformance.Lab
	thread *namespace.Thread
	host   conformance.Member
	pods   map[string]conformance.Member
	binary string
	dir    string
	agent  *exec.Cmd
	log    *output.Buffer
}

// newBed starts the agent with its servers where they are by default, and
// everything else on that can be asked for.
func newBed(t *testing.T) *bed {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root, for network namespaces and eBPF")
	}
	b := &bed{t: t, lab: conformance.NewLab(t), dir: t.TempDir()}
	b.node = b.lab.Node(1)
	b.host = b.member("host1")
	b.pods = map[string]conformance.Member{"a": b.member("a"), "b": b.member("b")}
	b.binary = filepath.Join(b.dir, "fairlead")
	if out, err := exec.Command("go", "build", "-o", b.binary, "fairlead.dev/cmd/fairlead").CombinedOutput(); err != nil {
		t.Fatalf("build cmd/fairlead: %v\n%s", err, out)
	}
	var err error
	if b.thread, err = namespace.NewThread(b.node.NetNSPath); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.thread.Close)
	if err := os.Mkdir(b.path("manifests"), 0o755); err != nil {
		t.Fatal(err)
	}
	b.writeServices()
	b.writeEndpoints("a")
	b.agent, b.log = b.start(b.binary, "run", "--manifests", b.path("manifests"), "--state-dir", b.path("state"),
		"--node-name", b.node.Name, "--bpffs", b.node.BPFFS, "--cgroup-root", b.node.CgroupRoot,
		"--devices", strings.Join(b.node.Devices, ","), "--cluster-cidr", join(conformance.ClusterCIDRs),
		"--service-cidr", join(conformance.ServiceCIDRs), "--dataplane", "ebpf", "--status-page")
	eventually(t, "the agent is healthy", func() (bool, string) {
		code, body := b.get("http://127.0.0.1:10256/healthz")
		return code == http.StatusOK, fmt.Sprintf("%d %s; it said:\n%s", code, body, b.log)
	})
	return b
}

func join(prefixes []netip.Prefix) string {
	var out []string
	for _, p := range prefixes {
		out = append(out, p.String())
	}
	return strings.Join(out, ",")
}

func (b *bed) path(name string) string { return filepath.Join(b.dir, name) }

func (b *bed) member(name string) conformance.Member {
	b.t.Helper()
	return b.lab.Member(b.t, name)
}

// start runs a command on the node until the test ends.
func (b *bed) start(name string, args ...string) (*exec.Cmd, *output.Buffer) {
	b.t.Helper()
	cmd, said := exec.Command(name, args...), &output.Buffer{}
	cmd.Stdout, cmd.Stderr = said, said
	if err := b.thread.Start(cmd, b.host.CgroupDir); err != nil {
		b.t.Fatalf("start %s: %v", name, err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	b.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	return cmd, said
}

// run runs a command on the node to its end.
func (b *bed) run(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	var out, complaints output.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	if err := b.thread.Start(cmd, b.host.CgroupDir); err != nil {
		return "", err
	}
	if err := cmd.Wait(); err != nil {
		return out.String(), fmt.Errorf("%w: %s", err, complaints.String())
	}
	return out.String(), nil
}

// dial connects from the node.
func (b *bed) dial(_ context.Context, network, address string) (c net.Conn, err error) {
	err = b.thread.Do(func() error {
		c, err = net.DialTimeout(network, address, 5*time.Second)
		return err
	})
	return c, err
}

// get asks a server from the node; the code is 0 where there is none.
func (b *bed) get(url string) (int, string) {
	client := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: b.dial}}
	r, err := client.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return 0, err.Error()
	}
	return r.StatusCode, string(body)
}

func eventually(t *testing.T, what string, condition func() (bool, string)) {
	t.Helper()
	seen := ""
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		ok := false
		if ok, seen = condition(); ok {
			return
		}
	}
	t.Fatalf("not after %v: %s; seen: %s", patience, what, seen)
}

// write puts a manifest in place in one step.
func (b *bed) write(name, text string) {
	b.t.Helper()
	tmp := b.path("." + name)
	err := os.WriteFile(tmp, []byte(text), 0o644)
	if err == nil {
		err = os.Rename(tmp, filepath.Join(b.path("manifests"), name+".yaml"))
	}
	if err != nil {
		b.t.Error(err)
	}
}

func (b *bed) writeServices() {
	for name, spec := range map[string]string{
		"web":   fmt.Sprintf("{type: NodePort, clusterIP: 10.96.1.1, ports: [{name: http, port: 80, nodePort: %d, protocol: TCP}]}", webNodePort),
		"empty": fmt.Sprintf("{type: NodePort, clusterIP: 10.96.1.2, ports: [{name: http, port: 80, nodePort: %d, protocol: TCP}]}", emptyNodePort),
		"lb": fmt.Sprintf("{type: LoadBalancer, clusterIP: 10.96.1.3, externalTrafficPolicy: Local, healthCheckNodePort: %d, ports: [{name: http, port: 80, protocol: TCP}]}",
			healthPort),
	} {
		b.write(name, fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: %s, namespace: default}\nspec: %s\n", name, spec))
	}
}

// writeEndpoints gives web these pods of the lab, as the EndpointSlice
// controller would: it says when the change began.
func (b *bed) writeEndpoints(pods ...string) {
	b.t.Helper()
	var endpoints []string
	for _, p := range pods {
		endpoints = append(endpoints, fmt.Sprintf("{addresses: [%s], nodeName: %s, conditions: {ready: true}}", b.pods[p].IPv4, b.node.Name))
	}
	b.write("web-1", fmt.Sprintf(`apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-1
  namespace: default
  labels: {kubernetes.io/service-name: web}
  annotations: {endpoints.kubernetes.io/last-change-trigger-time: %q}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints: [%s]
`, time.Now().UTC().Format(time.RFC3339Nano), strings.Join(endpoints, ", ")))
}

// load sends traffic by both paths, and to a Service without endpoints, and
// keeps changing endpoints, until the test ends.
func (b *bed) load() {
	b.t.Helper()
	ask := func(from string, to ...netip.AddrPort) {
		m := b.member(from)
		p, err := traffic.Start(from, m.PID, m.CgroupDir, traffic.Plan{Patience: 2 * time.Second, Nice: 10,
			Streams: []traffic.Stream{{Mode: traffic.TCPFresh, To: to, Every: 50 * time.Millisecond, Reset: true}}})
		if err != nil {
			b.t.Fatal(err)
		}
		b.t.Cleanup(func() { _, _ = p.Stop() }) // what it saw is judged elsewhere
	}
	ask("client", netip.MustParseAddrPort("10.96.1.1:80"))
	ask("outside", netip.AddrPortFrom(b.node.PrimaryIPv4, webNodePort), netip.AddrPortFrom(b.node.PrimaryIPv4, emptyNodePort))
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(300 * time.Millisecond):
			}
			b.writeEndpoints([]string{"a", "b"}[:1+i%2]...)
			b.get("http://127.0.0.1:10256/healthz")
			b.get("http://127.0.0.1:10256/livez")
		}
	}()
	b.t.Cleanup(func() {
		close(stop)
		<-done
	})
}
