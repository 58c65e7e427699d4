// SPDX-License-Identifier: Apache-2.0

// Package guest is what host and guest agree on: where things are in the
// guest's file system and how the guest says that it is done. It starts and
// mounts nothing.
package guest

import (
	"fmt"
	"strconv"
	"strings"
)

// Where things are in the guest.
const (
	OrdersPath  = "/orders.json"
	PayloadPath = "/payload"
	ModuleDir   = "/modules"
	// OutputDevice carries the payload's output and nothing else; the kernel
	// and init speak on ConsoleDevice.
	OutputDevice  = "/dev/ttyS1"
	ConsoleDevice = "/dev/console"
)

// Orders are what init does.
type Orders struct {
	// Token is in the last line, so that nothing else looks like it.
	Token string
	// Modules are files in ModuleDir, in the order they are loaded.
	Modules []string
	Args    []string
	Env     []string
}

// ExitLine is what init writes to the console when the payload has ended.
func (o Orders) ExitLine(code int) string {
	return fmt.Sprintf("fairlead-vm %s exit %d", o.Token, code)
}

// FailLine is what init writes to the console when the payload could not start.
func (o Orders) FailLine(err error) string {
	return fmt.Sprintf("fairlead-vm %s failed: %s", o.Token, strings.ReplaceAll(err.Error(), "\n", "; "))
}

// ParseLine reads a line of the console: done is whether it is one of ours.
func (o Orders) ParseLine(line string) (code int, failure string, done bool) {
	_, rest, ok := strings.Cut(line, "fairlead-vm "+o.Token+" ")
	if !ok {
		return 0, "", false
	}
	rest = strings.TrimSpace(rest)
	if failure, ok := strings.CutPrefix(rest, "failed: "); ok {
		return 0, failure, true
	}
	number, ok := strings.CutPrefix(rest, "exit ")
	if !ok {
		return 0, "", false
	}
	code, err := strconv.Atoi(number)
	return code, "", err == nil
}
