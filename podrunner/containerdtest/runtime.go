// SPDX-License-Identifier: Apache-2.0

// Package containerdtest runs a real containerd for tests: its own root, state,
// socket, CNI network and namespaces, an image made of one static binary (see
// guest), and a check that nothing of it is left. It knows nothing of Pods.
//
// A package's TestMain calls Main, its tests Start:
//
//	func TestMain(m *testing.M) { containerdtest.Main(m) }
//	func TestX(t *testing.T)    { rt := containerdtest.Start(t); ... rt.Socket ... }
package containerdtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const cniBinaries = "/usr/lib/cni"

// PodCIDR is where Pods of a Runtime get their addresses from. The node's side
// of each Pod's veth is its first address.
const PodCIDR = "10.88.0.0/16"

// Runtime is one containerd, running.
type Runtime struct {
	// Dir is the temporary directory that holds all of it.
	Dir string
	// Socket is the path of the CRI endpoint.
	Socket string
	// LogRoot and Root are directories for the runner of Pods.
	LogRoot, Root string
	// CgroupRoot is the cgroup, as "/name", under which all Pods must be.
	CgroupRoot string

	config string
	cmd    *exec.Cmd
	ended  chan struct{}
	before snapshot
}

// Start starts a containerd and stops it at the end of the test, when it
// reports as an error whatever was left behind by it. It skips where there is
// no root or no containerd.
func Start(t testing.TB) *Runtime {
	t.Helper()
	if why := lacks(); why != "" {
		t.Skipf("SKIPPED: this test needs a real containerd: %s", why)
	}
	if os.Getenv(stageVariable) != "tests" {
		t.Fatal("TestMain of this package does not call containerdtest.Main")
	}
	r, err := start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, err := range r.Close() {
			t.Errorf("after the test: %v", err)
		}
	})
	return r
}

func start() (*Runtime, error) {
	dir, err := os.MkdirTemp("", "fairlead-containerd-")
	if err != nil {
		return nil, err
	}
	r := &Runtime{
		Dir: dir, Socket: filepath.Join(dir, "c.sock"), config: filepath.Join(dir, "config.toml"),
		LogRoot: filepath.Join(dir, "log"), Root: filepath.Join(dir, "fairlead"), CgroupRoot: "/" + filepath.Base(dir),
	}
	if err := r.begin(); err != nil {
		if r.cmd != nil {
			r.Kill()
		}
		return nil, errors.Join(append(removeAll(dir), err)...)
	}
	return r, nil
}

func (r *Runtime) begin() (err error) {
	image, err := ImageTar(Image)
	if err != nil {
		return err
	}
	if r.before, err = takeSnapshot(r.CgroupRoot); err != nil {
		return err
	}
	if err := r.writeConfig(); err != nil {
		return err
	}
	if err := r.Launch(); err != nil {
		return err
	}
	return r.Import(image)
}

func (r *Runtime) writeConfig() error {
	for _, d := range []string{"cni", "log", "fairlead"} {
		if err := os.Mkdir(filepath.Join(r.Dir, d), 0o755); err != nil {
			return err
		}
	}
	config := fmt.Sprintf(`version = 2
root = "%[1]s/root"
state = "%[1]s/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs"]
[grpc]
  address = "%[2]s"
[ttrpc]
  address = "%[2]s.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "%[1]s/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "%[3]s"
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "%[4]s"
    conf_dir = "%[1]s/cni"
`, r.Dir, r.Socket, Image, cniBinaries)
	if err := os.WriteFile(r.config, []byte(config), 0o600); err != nil {
		return err
	}
	conflist := fmt.Sprintf(`{"cniVersion": "0.4.0", "name": "test", "plugins": [{"type": "ptp", "ipMasq": false, "mtu": 1400,
 "ipam": {"type": "host-local", "dataDir": "%s/ipam", "ranges": [[{"subnet": "%s"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}`, r.Dir, PodCIDR)
	return os.WriteFile(filepath.Join(r.Dir, "cni", "10-test.conflist"), []byte(conflist), 0o600)
}

// Launch starts the daemon and waits until it answers and has its network. It
// is for a test that ended it by Kill.
func (r *Runtime) Launch() error {
	log, err := os.OpenFile(filepath.Join(r.Dir, "containerd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command("containerd", "--config", r.config, "--log-level", "warn")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start containerd: %w", err)
	}
	r.cmd, r.ended = cmd, make(chan struct{})
	go func(ended chan struct{}) {
		_ = cmd.Wait()
		close(ended)
	}(r.ended)
	if err := r.await(time.Minute); err != nil {
		return fmt.Errorf("%w; its log ends: %s", err, r.Log(2000))
	}
	return nil
}

func (r *Runtime) await(timeout time.Duration) error {
	conn, err := r.Dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	client := runtimeapi.NewRuntimeServiceClient(conn)
	for {
		status, err := client.Status(ctx, &runtimeapi.StatusRequest{}, grpc.WaitForReady(true))
		if err == nil {
			ready := 0
			for _, c := range status.Status.Conditions {
				if c.Status {
					ready++
				}
			}
			if ready == 2 {
				return nil
			}
			err = fmt.Errorf("not ready: %v", status.Status.Conditions)
		}
		select {
		case <-r.ended:
			return errors.New("containerd ended")
		case <-ctx.Done():
			return fmt.Errorf("wait for containerd: %w", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Dial is a bare connection to the CRI endpoint.
func (r *Runtime) Dial() (*grpc.ClientConn, error) {
	backoff := grpc.ConnectParams{MinConnectTimeout: time.Second}
	backoff.Backoff.BaseDelay, backoff.Backoff.MaxDelay, backoff.Backoff.Multiplier = 10*time.Millisecond, 50*time.Millisecond, 2
	return grpc.NewClient("unix://"+r.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(backoff), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
}

// Import loads an archive as ImageTar makes it.
func (r *Runtime) Import(image []byte) error {
	cmd := exec.Command("ctr", "-a", r.Socket, "-n", "k8s.io", "images", "import", "--no-unpack=false", "-")
	cmd.Stdin = bytes.NewReader(image)
	if b, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("import an image: %w: %s", err, b)
	}
	return nil
}

// Kill ends the daemon with SIGKILL. Its containers live on.
func (r *Runtime) Kill() {
	_ = r.cmd.Process.Kill()
	<-r.ended
}

// Hang stops the daemon with SIGSTOP until Resume: calls to it do not return.
func (r *Runtime) Hang() error { return r.cmd.Process.Signal(syscall.SIGSTOP) }

// Resume lets the daemon go on.
func (r *Runtime) Resume() error { return r.cmd.Process.Signal(syscall.SIGCONT) }

// Log is the end of the daemon's log.
func (r *Runtime) Log(bytes int) string {
	b, err := os.ReadFile(filepath.Join(r.Dir, "containerd.log"))
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-bytes):])
}
