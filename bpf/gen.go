// SPDX-License-Identifier: Apache-2.0

// Package bpf holds the programs of the eBPF dataplane, as C by concern and as
// the objects generated from it, with the Go twins of every map's key and
// value. It decides nothing: dataplane/ebpf loads, fills and reads.
package bpf

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -no-global-types -go-package bpf -target bpfel,bpfeb -type address -type frontend_key -type frontend -type backend_set -type slot -type backend_state -type service_names -type service_counters -type tuple -type conntrack_entry -type affinity_key -type affinity_entry -type socket_flow -type datagram_key -type datagram_flow -type source_range_key -type prefix_key -type netns_key -type node_settings -type trace_settings -type trace_count -type trace_event Fairlead fairlead.c -- -O2 -g -Wall -Wextra -Werror -Wno-missing-declarations -Wno-unused-function -I/usr/include/x86_64-linux-gnu
