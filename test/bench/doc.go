// SPDX-License-Identifier: Apache-2.0

// Bench measures what fairlead promises to be quick at, in one run: connect()
// through a ClusterIP beside connect() to the pod, how long a changed endpoint
// takes to be in force, what loading a large cluster costs, and the packet path
// beside a bare bounce. docs/performance.md says how, and what came of it.
//
// It is responsible for the places (network namespaces, a cgroup, bpffs, all
// gone afterwards), for real servers and clients in them, and for the figures.
// It refuses to judge: a slow figure is no failure. It fails where something
// did not work: a connect that failed, an answer that never moved.
package main
