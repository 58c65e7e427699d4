// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"fmt"
	"runtime"

	"github.com/vishvananda/netns"
)

// inNamespace runs f on a thread of its own in a network namespace, for callers
// that may be on any thread.
func inNamespace(ns netns.NsHandle, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends with its namespace
		if err := netns.Set(ns); err != nil {
			done <- fmt.Errorf("enter the agent's network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}
