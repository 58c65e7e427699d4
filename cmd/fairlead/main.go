// SPDX-License-Identifier: Apache-2.0

// Command fairlead routes Kubernetes Service traffic on a node. This package
// is flags, configuration and wiring: what the commands print and how they end
// is decided here, what they do is decided elsewhere.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() { os.Exit(mainStatus()) }

// mainStatus runs the command line of this process and gives its exit status.
func mainStatus() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	// A second signal ends a process that does not get to its end.
	context.AfterFunc(ctx, stop)
	return execute(ctx, os.Args[1:], os.Stdout, os.Stderr)
}
