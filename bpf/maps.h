/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Every map. Sizes here are the smallest; the agent sets the real ones. */
#ifndef FAIRLEAD_MAPS_H
#define FAIRLEAD_MAPS_H

#include "layout.h"

/* Where traffic arrives -> which slots. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct frontend_key);
	__type(value, struct frontend);
	__uint(max_entries, 1024);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} frontends SEC(".maps");

/* Odd while Frontends are being switched, even and another number after. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
} frontend_switches SEC(".maps");

/* All Backends of all sets, flattened; each set owns a contiguous range. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct slot);
	__uint(max_entries, 1024);
	__uint(map_flags, BPF_F_MMAPABLE);
} slots SEC(".maps");

/* Whether what a flow remembers of its Backend still holds. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct backend_state);
	__uint(max_entries, 1024);
	__uint(map_flags, BPF_F_MMAPABLE);
} backend_states SEC(".maps");

/* Names, for those who read the kernel only. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, struct service_names);
	__uint(max_entries, 1024);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} services SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct service_counters);
	__uint(max_entries, 1024);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, DROP_REASON_COUNT);
} drops SEC(".maps");

/* Flows of the packet path, two entries each. LRU: a full map evicts the flow
 * that was silent longest, rather than refusing new ones. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct tuple);
	__type(value, struct conntrack_entry);
	__uint(max_entries, 1024);
} conntrack SEC(".maps");

/* Whose turn it is to take entries out of conntrack, by a hash of their keys.
 * Not pinned: nobody is at it between two packets. */
#define CONNTRACK_TURNS 256

struct conntrack_turn {
	struct bpf_spin_lock lock; /* of taken; no helper may be called under it */
	__u32 taken;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct conntrack_turn);
	__uint(max_entries, CONNTRACK_TURNS);
} conntrack_turns SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct affinity_key);
	__type(value, struct affinity_entry);
	__uint(max_entries, 1024);
} affinity SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__type(key, int);
	__type(value, struct socket_flow);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} socket_flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct datagram_key);
	__type(value, struct datagram_flow);
	__uint(max_entries, 1024);
} datagrams SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct source_range_key);
	__type(value, __u8);
	__uint(max_entries, 1024);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} source_ranges SEC(".maps");

/* Sources that are internal wherever they enter. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct prefix_key);
	__type(value, __u8);
	__uint(max_entries, 1024);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} internal_sources SEC(".maps");

/* Ports of a datagram whose first fragment was seen. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct fragment_key);
	__type(value, struct fragment_ports);
	__uint(max_entries, 8192);
} fragments SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct netns_key);
	__type(value, struct address);
	__uint(max_entries, 8192);
} netns_addresses SEC(".maps");

/* Decisions, for `fairlead trace`. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} trace_events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct trace_settings);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
} trace_listener SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct trace_count);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
} trace_counts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, __u8);
	__uint(max_entries, 1024);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} trace_services SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct node_settings);
	__uint(max_entries, 1);
} settings SEC(".maps");

static __always_inline struct node_settings *get_settings(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&settings, &zero);
}

#endif
