// SPDX-License-Identifier: Apache-2.0

// Command build-controlplane builds the etcd, the programs of the control plane,
// kubectl, metrics-server and CoreDNS that the e2e tests run, once per version,
// into $FAIRLEAD_CACHE or ~/.cache/fairlead. Arguments name the programs to build
// instead, such as kube-proxy.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"fairlead.dev/test/e2e/controlplane"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	programs := controlplane.Needed
	if len(os.Args) > 1 {
		programs = nil
		for _, arg := range os.Args[1:] {
			programs = append(programs, controlplane.Binary(arg))
		}
	}
	if err := controlplane.Build(ctx, os.Stdout, programs...); err != nil {
		fmt.Fprintln(os.Stderr, "build-controlplane:", err)
		os.Exit(1)
	}
}
