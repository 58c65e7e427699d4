// SPDX-License-Identifier: Apache-2.0

// Package explain says what becomes of a connection to an address: which
// Frontend it meets, in which scope, which Backends it can reach and why, or
// why it is refused. It judges facts that others read (dataplane.Inspection,
// routes, flows, affinity; package explain/kernel gathers them) by the rules
// that these name. It does no I/O, and knows no technology and no Kubernetes
// objects.
package explain
