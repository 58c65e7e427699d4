// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"fmt"
	"math/rand/v2"
	"net"
)

// freePort returns a loopback TCP port that nobody listens on now. It is
// outside the range of outgoing connections (from 32768) and of NodePorts (from
// 30000), so that a server can be stopped and started on it again.
func freePort() (int, error) {
	var err error
	for range 100 {
		port := 20000 + rand.IntN(10000)
		var l net.Listener
		if l, err = net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			l.Close()
			return port, nil
		}
	}
	return 0, fmt.Errorf("find a free port between 20000 and 29999: %w", err)
}
