// SPDX-License-Identifier: Apache-2.0

// Package pods holds the built agent, with its runner of Pods, to what it
// promises: from a directory of YAML to answers of containers, with a real
// containerd, runc, CNI and nftables, in namespaces of its own.
package pods
