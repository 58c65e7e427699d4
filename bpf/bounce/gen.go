// SPDX-License-Identifier: Apache-2.0

// Package bounce holds what the packet path's speed is measured against: a
// program that only parses and sends back, one that also finds a flow and the
// route, and one that gives each program the same fresh packet in each round of
// a test run. The agent never loads it.
package bounce

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -no-global-types -go-package bounce -target bpfel,bpfeb -type fresh -type known_flow Bounce bounce.c -- -O2 -g -Wall -Wextra -Werror -I/usr/include/x86_64-linux-gnu
