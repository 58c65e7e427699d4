// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

func TestAKubeProxyIsSeenByItsProcessInTheSameNetworkNamespaceOnly(t *testing.T) {
	newNamespace(t)
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Skip("needs sleep")
	}
	text, err := os.ReadFile(sleep)
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "kube-proxy")
	if err := os.WriteFile(program, text, 0o755); err != nil {
		t.Fatal(err)
	}
	start := func(flags uintptr) *exec.Cmd {
		cmd := exec.Command(program, "60")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		return cmd
	}
	start(syscall.CLONE_NEWNET)
	if how, err := Process(); how != "" || err != nil {
		t.Errorf("one of another network namespace: %q, %v, want none", how, err)
	}
	here := start(0)
	if how, err := Process(); how != fmt.Sprintf("process %d", here.Process.Pid) || err != nil {
		t.Errorf("one of this network namespace: %q, %v, want process %d", how, err, here.Process.Pid)
	}
}

func TestAKubeProxyOfAnotherProcessNamespaceIsSeenByItsAnswers(t *testing.T) {
	for _, tc := range []struct {
		name, at, path, answer string
		status                 int
		want                   string
	}{
		{"metrics", "127.0.0.1:10249", "/proxyMode", "nftables", 200, "who answers at http://127.0.0.1:10249/proxyMode"},
		{"metrics where the file says", "127.0.0.1:4711", "/proxyMode", "iptables", 200, "who answers at http://127.0.0.1:4711/proxyMode"},
		{"unhealthy", "127.0.0.1:10256", "/healthz", `{"lastUpdated":"2026-11-29T15:40:53Z","currentTime":"2026-11-29T15:40:53Z","nodeEligible":false}`, 503,
			"who answers at http://127.0.0.1:10256/healthz"},
		{"somebody else", "127.0.0.1:10249", "/proxyMode", "a page", 200, ""},
		{"somebody else's health", "127.0.0.1:10256", "/healthz", "ok", 200, ""},
		{"nobody", "127.0.0.1:80", "/", "", 200, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			newNamespace(t)
			lo, err := netlink.LinkByName("lo")
			do(t, err, netlink.LinkSetUp(lo))
			l, err := net.Listen("tcp4", tc.at)
			do(t, err)
			mux := http.NewServeMux()
			mux.HandleFunc(tc.path, func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(tc.status)
				fmt.Fprint(w, tc.answer)
			})
			server := &http.Server{Handler: mux}
			go server.Serve(l)
			t.Cleanup(func() { server.Close() })
			got := servers(t.Context(), clientHere(t), "127.0.0.1:4711", "0.0.0.0:10256")
			if got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

// clientHere dials in the calling thread's network namespace, from whatever
// thread.
func clientHere(t *testing.T) *http.Client {
	t.Helper()
	ns, err := netns.Get()
	do(t, err)
	t.Cleanup(func() { ns.Close() })
	dial := func(ctx context.Context, network, address string) (c net.Conn, err error) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread() // not unlocked: the thread is spent
			if err = netns.Set(ns); err == nil {
				c, err = (&net.Dialer{}).DialContext(ctx, network, address)
			}
		}()
		<-done
		return c, err
	}
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: dial}}
}

func TestAddressesOfServersAreThoseOfTheFileToo(t *testing.T) {
	for more, want := range map[string]string{
		"": "a b", "0.0.0.0:10": "a b 127.0.0.1:10", "[::]:10": "a b [::1]:10", "192.0.2.1:10": "a b 192.0.2.1:10", ":10": "a b 127.0.0.1:10",
		"127.0.0.1:0": "a b", "nonsense": "a b",
	} {
		if got := strings.Join(addresses([]string{"a", "b"}, more), " "); got != want {
			t.Errorf("%q: got %q, want %q", more, got, want)
		}
	}
	if got := addresses(defaultMetrics, "127.0.0.1:10249"); cmp.Diff(defaultMetrics, got) != "" {
		t.Errorf("a default again: %v", got)
	}
}
