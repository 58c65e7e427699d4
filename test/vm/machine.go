// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"fairlead.dev/test/vm/guest"
)

// Machine is a machine and what it runs.
type Machine struct {
	Kernel Kernel
	// Modules are loaded in this order, each after those it needs. Nothing
	// loads others later.
	Modules []string
	Memory  int // MiB; default 1024. The payload takes twice its size of it
	CPUs    int // default 1
	// Payload is a static program: CGO_ENABLED=0 go test -c.
	Payload string
	Args    []string
	Env     []string // NAME=VALUE, more than PATH, HOME and TMPDIR
	// Programs are programs of the host that the payload runs. They keep
	// their paths, and bring the libraries they are linked with.
	Programs []string
	// Files are paths in the guest with those of the host they come from.
	Files map[string]string
	// Timeout bounds boot and payload together; default 10 minutes.
	Timeout time.Duration
}

// Boot runs the payload on the machine and returns its exit code. What it
// prints goes to out. A machine that does not come to the payload's end is an
// error, with the last lines of its console.
func Boot(ctx context.Context, m Machine, out io.Writer) (exit int, err error) {
	setDefault(&m.Memory, 1024)
	setDefault(&m.CPUs, 1)
	setDefault(&m.Timeout, 10*time.Minute)
	kernel, err := m.Kernel.Install(ctx, false)
	if err != nil {
		return 0, err
	}
	tmp, err := os.MkdirTemp("", "fairlead-vm-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(tmp)
	orders := guest.Orders{Token: rand.Text(), Args: m.Args, Env: m.Env}
	initrd := filepath.Join(tmp, "initrd")
	if err := m.pack(ctx, kernel, &orders, tmp, initrd); err != nil {
		return 0, fmt.Errorf("make the guest's file system: %w", err)
	}
	return m.run(ctx, kernel, orders, initrd, out)
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// BuildTest compiles a package's tests into a static program. Its module is the
// one that the directory in is in.
func BuildTest(ctx context.Context, in, pkg, to string) error {
	cmd := exec.CommandContext(ctx, "go", "test", "-c", "-trimpath", "-ldflags=-s -w", "-o", to, pkg)
	cmd.Dir = in
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	return runTool(cmd)
}

// pack writes the initial file system.
func (m Machine) pack(ctx context.Context, kernel Installed, orders *guest.Orders, tmp, initrd string) error {
	modules, err := kernel.modules(ctx, m.Modules)
	if err != nil {
		return err
	}
	first := filepath.Join(tmp, "init")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", first, "fairlead.dev/test/vm/init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if err := runTool(build); err != nil {
		return err
	}
	f, err := os.Create(initrd)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	a := newArchive(w)
	for _, path := range modules {
		name, err := addModule(ctx, a, guest.ModuleDir, path)
		if err != nil {
			return err
		}
		orders.Modules = append(orders.Modules, name)
	}
	text, err := json.Marshal(orders)
	if err != nil {
		return err
	}
	files := map[string]string{"/init": first, guest.PayloadPath: m.Payload}
	maps.Copy(files, m.Files)
	for _, p := range m.Programs {
		if err := addProgram(ctx, files, p); err != nil {
			return err
		}
	}
	for _, to := range slices.Sorted(maps.Keys(files)) {
		if err := a.hostFile(to, files[to]); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/dev", "/proc", "/sys", "/tmp", "/run"} {
		a.parents(strings.TrimPrefix(dir, "/") + "/")
	}
	return errors.Join(a.file(guest.OrdersPath, 0o644, bytes.NewReader(text), int64(len(text))), a.close(), w.Flush())
}

// addProgram adds a program and the libraries that it is linked with.
func addProgram(ctx context.Context, files map[string]string, name string) error {
	path := tool(name)
	if !filepath.IsAbs(path) {
		return fmt.Errorf("program %s: not on this host", name)
	}
	files[path] = path
	out, err := exec.CommandContext(ctx, "ldd", path).CombinedOutput()
	if err != nil && !bytes.Contains(out, []byte("not a dynamic executable")) {
		return fmt.Errorf("libraries of %s: %w: %s", path, err, out)
	}
	for field := range strings.FieldsSeq(string(out)) { // NAME => PATH (ADDRESS), or PATH (ADDRESS)
		if filepath.IsAbs(field) {
			files[field] = field
		}
	}
	return nil
}

// arguments are qemu's.
func (m Machine) arguments(kernel Installed, initrd string) []string {
	args := []string{"-M", "q35", "-smp", strconv.Itoa(m.CPUs), "-m", strconv.Itoa(m.Memory),
		"-kernel", kernel.image, "-initrd", initrd,
		"-append", "console=ttyS0 panic=-1 oops=panic random.trust_cpu=on mitigations=off nowatchdog loglevel=5 audit=0 selinux=0 apparmor=0",
		"-nographic", "-no-reboot", "-nic", "none", "-monitor", "none",
		"-serial", "file:/dev/fd/3", "-serial", "file:/dev/fd/4"}
	// Only when asked for: where this host is a virtual machine, /dev/kvm may be
	// there and a guest hang at boot. A hypervisor that runs another may also
	// claim a register of its CPU's capabilities that it then refuses to set.
	if os.Getenv("FAIRLEAD_KVM") != "" {
		return append(args, "-cpu", "max,-arch-capabilities", "-accel", "kvm")
	}
	// What an emulator is slow at is left out. The guest's clock counts its
	// instructions, 1 ns each, and skips what it idles: so it is a machine of
	// 1 GHz however busy the host is, and what a test waits for costs nothing.
	return append(args, "-cpu", "max,-erms,-fsrm,-smap,-smep,-la57,-pku",
		"-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off")
}

// run boots and watches the console for the line that ends it.
func (m Machine) run(ctx context.Context, kernel Installed, orders guest.Orders, initrd string, out io.Writer) (int, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, m.Timeout, fmt.Errorf("no end after %v", m.Timeout))
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", m.arguments(kernel, initrd)...)
	var complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &complaints, &complaints
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	var readers sync.WaitGroup
	pipe := func(read func(io.Reader)) error {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		cmd.ExtraFiles = append(cmd.ExtraFiles, w)
		readers.Go(func() {
			defer r.Close()
			read(r)
		})
		return nil
	}
	con := &console{orders: orders}
	err := errors.Join(pipe(con.read), pipe(func(r io.Reader) { _, _ = io.Copy(out, r) }))
	if err == nil {
		err = cmd.Start()
	}
	for _, f := range cmd.ExtraFiles {
		f.Close()
	}
	if err == nil {
		err = cmd.Wait()
	}
	readers.Wait()
	if con.done && con.failure == "" {
		return con.code, nil
	}
	switch {
	case con.done:
		err = errors.New(con.failure)
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case err != nil:
		err = fmt.Errorf("qemu: %w: %s", err, complaints.Bytes())
	default:
		err = errors.New("it ended before the payload did")
	}
	return 0, fmt.Errorf("machine with kernel %s: %w; its console ended with:\n%s", kernel.Release, err, con.tail())
}
