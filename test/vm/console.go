// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"bufio"
	"io"
	"strings"

	"fairlead.dev/test/vm/guest"
)

// consoleLines is how much of the console an error shows: a panic with its
// registers and its trace.
const consoleLines = 60

// console is what the kernel and init say.
type console struct {
	orders  guest.Orders
	lines   []string
	done    bool
	code    int
	failure string
}

func (c *console) read(r io.Reader) {
	b := bufio.NewReader(r)
	for {
		line, err := b.ReadString('\n')
		if line = strings.TrimRight(line, "\r\n"); line != "" {
			c.line(line)
		}
		if err != nil {
			return
		}
	}
}

func (c *console) line(line string) {
	if code, failure, ok := c.orders.ParseLine(line); ok && !c.done {
		c.code, c.failure, c.done = code, failure, true
		return
	}
	if len(c.lines) == consoleLines {
		c.lines = c.lines[1:]
	}
	c.lines = append(c.lines, line)
}

func (c *console) tail() string { return strings.Join(c.lines, "\n") }
