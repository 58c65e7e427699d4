// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

func init() { commands["size"] = size }

// size prints the size of its terminal, "80x24", when it has one.
func size([]string) error {
	for {
		w, err := unix.IoctlGetWinsize(int(os.Stdout.Fd()), unix.TIOCGWINSZ)
		if err != nil {
			return err
		}
		if w.Col > 0 && w.Row > 0 {
			fmt.Printf("%dx%d\n", w.Col, w.Row)
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
}
