// SPDX-License-Identifier: Apache-2.0

// Package vm runs a static Linux program, such as a compiled Go test, on a
// kernel of Debian's in an emulated machine, and gives back its output and exit
// code. It gets the kernels from Debian's archive with a private apt, and
// caches them. It knows nothing about what the program does.
package vm
