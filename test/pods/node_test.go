// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"

	"fairlead.dev/podrunner/containerdtest"
)

func TestMain(m *testing.M) { containerdtest.Main(m) }

// patience is how long something may take that should happen soon: the machines
// of tests are slow and shared.
const patience = 60 * time.Second

// hostIP is the node's address, of an uplink that leads nowhere.
const hostIP = "192.0.2.11"

// image is what examples/web runs.
const image = "fairlead.example/responder:1"

// programs are what the tests run, built once. /run is the tests' own tmpfs, so
// nothing of them stays.
var programs = sync.OnceValues(func() (string, error) {
	dir := "/run/fairlead-programs"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	for _, args := range [][]string{
		{"build", "-tags", "grpcnotrace", "-o", dir + "/", "./cmd/fairlead", "./examples/responder", "./examples/image"},
	} {
		cmd := exec.Command("go", args...)
		cmd.Dir = "../.."
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("go %s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	cmd := exec.Command(dir+"/image", "-name", image, "-binary", dir+"/responder", "-o", dir+"/responder.tar")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("make the image: %w: %s", err, out)
	}
	return dir, nil
})

// node is a machine with containerd and, between start and stop, an agent.
type node struct {
	testing.TB
	rt        *containerdtest.Runtime
	programs  string
	manifests string
	flags     []string

	agent *exec.Cmd
	ended chan struct{}
}

// newNode makes one without manifests, and without an agent.
func newNode(t testing.TB, flags ...string) *node {
	t.Helper()
	uplink(t)
	rt := containerdtest.Start(t)
	n := &node{TB: t, rt: rt, manifests: filepath.Join(rt.Dir, "manifests"), flags: flags}
	var err error
	if n.programs, err = programs(); err != nil {
		t.Fatal(err)
	}
	archive, err := os.ReadFile(n.programs + "/responder.tar")
	if err != nil {
		t.Fatal(err)
	}
	if err := rt.Import(archive); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(n.manifests, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the agent said at last:\n%s", n.log(6000))
			n.giveUp()
		}
		n.kill()
		if out, err := exec.Command(n.programs+"/fairlead", "cleanup").CombinedOutput(); err != nil {
			t.Errorf("fairlead cleanup: %v: %s", err, out)
		}
	})
	return n
}

// giveUp shows and ends the Pods of a test that failed, so that what they leave
// does not hide why.
func (n *node) giveUp() {
	for _, args := range [][]string{{"-o", "wide"}, {"--events"}} {
		out, errOut, _ := n.fairlead(append([]string{"pods", "--state-dir", n.rt.Root}, args...)...)
		n.Logf("fairlead pods %s:\n%s%s", strings.Join(args, " "), out, errOut)
	}
	files, _ := filepath.Glob(n.manifests + "/*")
	for _, f := range files {
		_ = os.Remove(f)
	}
	for begin := time.Now(); len(n.pods()) > 0 && time.Since(begin) < patience; {
		time.Sleep(100 * time.Millisecond)
	}
}

// as is the node for a subtest.
func (n *node) as(t testing.TB) *node {
	c := *n
	c.TB = t
	return &c
}

// uplink gives the tests' network namespace, which has nothing but lo, the
// device and the default route that every node has.
func uplink(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root")
	}
	if _, err := netlink.LinkByName("uplink"); err == nil {
		return
	}
	must := func(what string, err error) {
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	must("add uplink", netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "uplink"}, PeerName: "nowhere"}))
	for _, name := range []string{"uplink", "nowhere"} {
		l, err := netlink.LinkByName(name)
		must("find "+name, err)
		must("set "+name+" up", netlink.LinkSetUp(l))
	}
	l, err := netlink.LinkByName("uplink")
	must("find uplink", err)
	addr, err := netlink.ParseAddr(hostIP + "/24")
	must("address", err)
	must("add the address", netlink.AddrAdd(l, addr))
	must("add the default route", netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP("192.0.2.1")}))
}

// start starts the agent.
func (n *node) start() {
	n.Helper()
	log, err := os.OpenFile(n.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		n.Fatal(err)
	}
	defer log.Close()
	args := []string{"run", "--manifests", n.manifests, "--pods", "cri", "--cri-socket", n.rt.Socket, "--dataplane", "nftables",
		"--eviction-hard", "memory.available<1Mi", "--image-gc-high-threshold", "100", // however full this machine's disk is
		"--node-name", "node1", "--bind-address", hostIP, "--cluster-cidr", containerdtest.PodCIDR,
		"--metrics-bind-address=", "--healthz-bind-address=", "--state-dir", n.rt.Root, "--pod-log-dir", n.rt.LogRoot,
		"--pod-cgroup-root", n.rt.CgroupRoot + "/kubepods"}
	cmd := exec.Command(n.programs+"/fairlead", append(args, n.flags...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		n.Fatal(err)
	}
	n.agent, n.ended = cmd, make(chan struct{})
	go func(ended chan struct{}) {
		_ = cmd.Wait()
		close(ended)
	}(n.ended)
}

func (n *node) logFile() string { return filepath.Join(n.rt.Dir, "agent.log") }

// log is the end of what the agents of this node have said.
func (n *node) log(bytes int) string {
	b, err := os.ReadFile(n.logFile())
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-bytes):])
}

// kill ends the agent with SIGKILL, where one runs.
func (n *node) kill() {
	if n.agent == nil {
		return
	}
	_ = n.agent.Process.Kill()
	<-n.ended
	n.agent = nil
}

// stop ends the agent with SIGTERM, and waits.
func (n *node) stop() {
	n.Helper()
	_ = n.agent.Process.Signal(syscall.SIGTERM)
	select {
	case <-n.ended:
	case <-time.After(patience):
		n.Fatalf("the agent does not end within %v of SIGTERM", patience)
	}
	if !n.agent.ProcessState.Success() {
		n.Errorf("the agent ended with %v", n.agent.ProcessState)
	}
	n.agent = nil
}

// fairlead runs a command of the program; its output, what it said on stderr,
// and its exit status.
func (n *node) fairlead(args ...string) (stdout, stderr string, status int) {
	n.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, n.programs+"/fairlead", args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		n.Fatalf("fairlead %v: %v", args, err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// write puts a manifest in place by a rename, as an editor does.
func (n *node) write(name, content string) {
	n.Helper()
	hidden := filepath.Join(n.manifests, "."+name)
	if err := os.WriteFile(hidden, []byte(content), 0o644); err != nil {
		n.Fatal(err)
	}
	if err := os.Rename(hidden, filepath.Join(n.manifests, name)); err != nil {
		n.Fatal(err)
	}
}

// edit replaces a text, which must be there, in a manifest.
func (n *node) edit(name, old, with string) {
	n.Helper()
	b, err := os.ReadFile(filepath.Join(n.manifests, name))
	if err != nil {
		n.Fatal(err)
	}
	if !strings.Contains(string(b), old) {
		n.Fatalf("%s has no %q", name, old)
	}
	n.write(name, strings.ReplaceAll(string(b), old, with))
}

// example puts the files of examples/web in place.
func example(n *node) {
	n.Helper()
	files, err := filepath.Glob("../../examples/web/*.yaml")
	if err != nil || len(files) == 0 {
		n.Fatalf("no examples/web: %v", err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			n.Fatal(err)
		}
		n.write(filepath.Base(f), string(b))
	}
}

// pods asks the agent, by `fairlead pods`. None while it does not answer.
func (n *node) pods() map[string]*corev1.Pod {
	n.Helper()
	out, _, status := n.fairlead("pods", "--state-dir", n.rt.Root, "-o", "json")
	if status != 0 {
		return nil
	}
	var list corev1.PodList
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		n.Fatalf("fairlead pods -o json: %v: %s", err, out)
	}
	pods := map[string]*corev1.Pod{}
	for i := range list.Items {
		pods[list.Items[i].Name] = &list.Items[i]
	}
	return pods
}

// await waits until the Pods are as the condition wants them.
func (n *node) await(what string, cond func(map[string]*corev1.Pod) bool) map[string]*corev1.Pod {
	n.Helper()
	var pods map[string]*corev1.Pod
	n.until(what, func() bool {
		pods = n.pods()
		return cond(pods)
	})
	return pods
}

// until waits for a condition, and ends the test where it does not come.
func (n *node) until(what string, cond func() bool) {
	n.Helper()
	for begin := time.Now(); !cond(); time.Sleep(20 * time.Millisecond) {
		select {
		case <-n.ended:
			n.Fatalf("the agent has ended while waiting until %s", what)
		default:
		}
		if time.Since(begin) > patience {
			out, _, _ := n.fairlead("pods", "--state-dir", n.rt.Root, "-o", "wide")
			n.Fatalf("not within %v: %s; the Pods are:\n%s", patience, what, out)
		}
	}
}

func ready(p *corev1.Pod) bool {
	if p == nil || p.DeletionTimestamp != nil {
		return false
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}
