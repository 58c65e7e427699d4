// SPDX-License-Identifier: Apache-2.0

// Package pause is what the first process of a sandbox does, in images that
// tests build: it is linked into their one program.
package pause

import (
	"os"
	"os/signal"
	"syscall"
)

// Run reaps until it is told to end.
func Run() {
	c := make(chan os.Signal, 16)
	signal.Notify(c, syscall.SIGTERM, syscall.SIGINT, syscall.SIGCHLD)
	for s := range c {
		if s != syscall.SIGCHLD {
			return
		}
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); err != nil || pid <= 0 {
				break
			}
		}
	}
}
