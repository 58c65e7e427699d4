// SPDX-License-Identifier: Apache-2.0

// Package nsthread runs functions in other network namespaces than the
// caller's. It knows nothing of what they do there, nor where namespaces are.
package nsthread

import (
	"fmt"
	"runtime"
	"sync"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Run runs f on a thread that it may take into any namespace. The main thread
// would not end with the goroutine, and be the process's namespace.
func Run(f func() error) (err error) {
	var wg sync.WaitGroup
	wg.Go(func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			err = Run(f) // on another, since this one is taken
			runtime.UnlockOSThread()
			return
		}
		err = f() // not unlocked: the thread ends with the goroutine
	})
	wg.Wait()
	return err
}

// In runs f in a network namespace. Entering takes CAP_SYS_ADMIN; staying, as
// in a pod of the host's network, does not.
func In(ns netns.NsHandle, f func() error) error {
	return Run(func() error {
		here, err := netns.Get()
		if err == nil {
			defer here.Close()
		}
		if err != nil || !here.Equal(ns) {
			if err := netns.Set(ns); err != nil {
				return fmt.Errorf("enter network namespace: %w", err)
			}
		}
		return f()
	})
}

// InNew runs f in a network namespace that ends with it.
func InNew(f func() error) error {
	return Run(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		return f()
	})
}
