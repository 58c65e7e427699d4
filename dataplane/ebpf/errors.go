// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"errors"

	"golang.org/x/sys/unix"
)

// isFull reports whether a map refused an entry for want of room.
func isFull(err error) bool {
	return errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.ENOMEM)
}
