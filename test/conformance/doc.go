// SPDX-License-Identifier: Apache-2.0

// Package conformance sends real packets through a Dataplane and says whether
// they fare as Kubernetes documents it. It owns two nodes, their pods and
// clients beyond them, all in network namespaces of its own; a table of cases,
// each naming the clause it proves; and the runner that takes any
// dataplane.Dataplane. Cases are Kubernetes objects, compiled by
// controller/compile, and requests with what has to come of them.
//
// It refuses to know how a Dataplane works: no map, rule or program is looked
// at. What one technology cannot do is named by its Target, with a reason.
//
// Importing it gives a test binary one more use: started again with
// FAIRLEAD_CONFORMANCE_ROLE set, it is a process of a pod instead (see
// process.go), so that every client and server has its own network namespace
// and cgroup.
package conformance
