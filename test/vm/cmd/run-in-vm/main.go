// SPDX-License-Identifier: Apache-2.0

// Command run-in-vm runs a static program on a kernel of Debian's and ends with
// its exit code:
//
//	CGO_ENABLED=0 go test -c ./dataplane/ipvs
//	go run ./test/vm/cmd/run-in-vm -kernel 6.1 -modules ip_vs,ip_vs_rr,veth -- ./ipvs.test -test.v
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"fairlead.dev/test/vm"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	code, err := run(ctx, os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "run-in-vm:", err)
		code = 1
	}
	os.Exit(code)
}

func run(ctx context.Context, args []string) (int, error) {
	var m vm.Machine
	flags := flag.NewFlagSet("run-in-vm", flag.ExitOnError)
	flags.Usage = func() {
		fmt.Fprintln(flags.Output(), "usage: run-in-vm [flags] -- PROGRAM [ARGUMENT ...]")
		flags.PrintDefaults()
	}
	kernel := flags.String("kernel", vm.Debian12.Version, "Debian's kernel: 5.10, 6.1 or 6.12")
	modules := flags.String("modules", "", "modules to load, separated by commas; those they need come with them")
	programs := flags.String("programs", "", "programs of this host that PROGRAM runs, separated by commas")
	env := flags.String("env", "", "NAME=VALUE, separated by commas")
	update := flags.Bool("update", false, "look for a newer package of the kernel first")
	flags.IntVar(&m.Memory, "memory", 1024, "MiB")
	flags.IntVar(&m.CPUs, "cpus", 1, "processors")
	flags.DurationVar(&m.Timeout, "timeout", 10*time.Minute, "how long boot and program may take")
	_ = flags.Parse(args)
	if flags.NArg() == 0 {
		flags.Usage()
		return 2, nil
	}
	var err error
	if m.Kernel, err = vm.KernelNamed(*kernel); err != nil {
		return 0, err
	}
	if *update {
		if _, err := m.Kernel.Install(ctx, true); err != nil {
			return 0, err
		}
	}
	m.Modules, m.Programs, m.Env = list(*modules), list(*programs), list(*env)
	m.Payload, m.Args = flags.Arg(0), flags.Args()[1:]
	return vm.Boot(ctx, m, os.Stdout)
}

func list(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' })
}
