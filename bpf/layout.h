/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* What user space and the programs share: every map's key and value, once.
 * The Go twins are generated from these structs (bpf2go). A change here is a
 * new layout: raise FAIRLEAD_LAYOUT, and the agent migrates what is pinned. */
#ifndef FAIRLEAD_LAYOUT_H
#define FAIRLEAD_LAYOUT_H

#include <linux/types.h>

#define FAIRLEAD_LAYOUT 1

/* IPv4 is kept as an IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2), so one map
 * and one code path serve both families. Network byte order. */
struct address {
	__be32 word[4];
};

/* port 0 and protocol 0 stand for "any port of this ClusterIP": what has no
 * entry of its own there is rejected. */
struct frontend_key {
	struct address address;
	__be16 port;
	__u8 protocol; /* IANA number */
	__u8 pad;
};

/* The Backends of one scope: slots[base .. base+total). The first `eligible`
 * get new connections; the others only keep what they have. */
struct backend_set {
	__u32 base;
	__u16 eligible;
	__u16 total;
	__u8 index;    /* bit in backend_state.eligible_sets */
	__u8 on_empty; /* enum on_empty */
	__u8 pad[2];
};

enum on_empty {
	ON_EMPTY_REJECT = 0,
	ON_EMPTY_DROP = 1,
};

enum frontend_flags {
	FRONTEND_SOURCE_RANGES = 1 << 0, /* source_ranges decides who may pass */
	FRONTEND_MASQUERADE_EXTERNAL = 1 << 1,
	FRONTEND_ANY_PORT = 1 << 2, /* the port 0 entry of a ClusterIP */
};

struct frontend {
	__u32 service;		/* key of service_names, index of service_counters */
	__u32 affinity_seconds; /* 0: none */
	struct backend_set internal;
	struct backend_set external;
	__u8 kind;  /* dataplane.Kind; 0 for FRONTEND_ANY_PORT */
	__u8 flags; /* enum frontend_flags */
	__u8 pad[2];
};

enum slot_flags {
	SLOT_LOCAL = 1 << 0,
	SLOT_HOST_NETWORK = 1 << 1, /* address is the node's own: deliver, never masquerade */
	SLOT_TERMINATING = 1 << 2,
	SLOT_DRAINING = 1 << 3, /* in no set: listed only so that it stays known */
};

struct slot {
	struct address address;
	__be16 port;
	__u8 flags; /* enum slot_flags */
	__u8 pad;
	__u32 backend; /* index of backend_states */
};

/* One per (Service port, Backend). generation is odd while the Backend exists
 * and even when it does not: what remembers another generation is stale. */
struct backend_state {
	__u32 generation;
	__u16 eligible_sets; /* bit i: gets new connections in set i of its Service port */
	__u16 socket_used;   /* 1 once a socket was connected to it: worth sweeping for */
};

struct service_names {
	__u8 namespace_name[64];
	__u8 name[256];
	__u8 port_name[64];
};

struct service_counters {
	__u64 forward_packets; /* client to Backend, packet path only */
	__u64 forward_bytes;
	__u64 reverse_packets;
	__u64 reverse_bytes;
	__u64 connections; /* new flows, socket and packet path */
};

/* What a packet looks like on the wire, and the key of conntrack. */
struct tuple {
	struct address source;
	struct address destination;
	__be16 source_port;
	__be16 destination_port;
	__u8 protocol;
	__u8 pad[3];
};

enum conntrack_flags {
	CONNTRACK_REPLY = 1 << 0, /* this entry is of the Backend-to-client direction */
	CONNTRACK_SEEN_REPLY = 1 << 1,
	CONNTRACK_CLOSING = 1 << 2,	 /* FIN seen from this direction, or RST from any */
	CONNTRACK_PEER_CLOSING = 1 << 3, /* FIN seen from the other direction */
	CONNTRACK_MASQUERADE = 1 << 4,	 /* the client's address was replaced */
	CONNTRACK_INTERNAL = 1 << 5,
};

/* A packet with the key's tuple leaves with this one. Two entries a flow; each
 * is found from the other: the reply's key is {destination, source} of the
 * forward entry's new tuple. */
struct conntrack_entry {
	struct address source;
	struct address destination;
	__be16 source_port;
	__be16 destination_port;
	__u32 service;
	__u32 backend;
	__u32 generation;
	__u32 last_seen_seconds; /* CLOCK_MONOTONIC */
	__u32 created_seconds;
	__u8 flags; /* enum conntrack_flags */
	__u8 pad[3];
};

struct affinity_key {
	struct address client; /* or, before the namespace's address is known, its cookie */
	__u32 service;
};

struct affinity_entry {
	struct address backend_address;
	__be16 backend_port;
	__u8 backend_flags;
	__u8 pad;
	__u32 backend;
	__u32 generation;
	__u32 last_seen_seconds;
};

/* What a socket was translated from; lives and dies with the socket. */
struct socket_flow {
	struct address frontend_address;
	struct address backend_address;
	__be16 frontend_port;
	__be16 backend_port;
	__u32 backend;
	__u32 generation;
};

/* Unconnected UDP sockets speak to many: one entry each way.
 * reply 0: peer is the Frontend; reply 1: peer is the Backend. */
struct datagram_key {
	__u64 cookie;
	struct address peer;
	__be16 port;
	__u8 reply;
	__u8 pad[5];
};

struct datagram_flow {
	struct address other; /* Backend for reply 0, Frontend for reply 1 */
	__be16 port;
	__u16 pad;
	__u32 backend;
	__u32 generation;
};

struct source_range_key {
	__u32 prefix_bits; /* of service (32) and address (128) together */
	__u32 service;
	struct address address;
};

struct prefix_key {
	__u32 prefix_bits;
	struct address address;
};

struct fragment_key {
	struct address source;
	struct address destination;
	__be32 id;
	__u8 protocol;
	__u8 pad[3];
};

struct fragment_ports {
	__be16 source_port;
	__be16 destination_port;
	__u8 protocol;
	__u8 pad[3];
};

/* Which address a network namespace's sockets speak from. */
struct netns_key {
	__u64 cookie;
	__u32 ipv6; /* 0 or 1 */
	__u32 pad;
};

struct node_settings {
	__u64 host_netns_cookie;
	struct address node_ipv4; /* masquerade addresses; all zero: none */
	struct address node_ipv6;
	__u16 masquerade_port_min; /* host byte order, both inclusive */
	__u16 masquerade_port_max;
	/* tc_index of packets that were handled: another value in each network
	 * namespace, since it goes with a packet through a veth. 0: the default. */
	__u16 handled_tc_index;
	__u16 flags; /* enum settings_flags */
};

enum settings_flags {
	/* Another dataplane was here: TCP segments of no known flow may be of
	 * one that the kernel's conntrack knows. */
	SETTINGS_LEAVE_UNKNOWN_FLOWS = 1,
	/* For readers: the programs were loaded with draining set. */
	SETTINGS_DRAINING = 2,
};

/* Who listens to decisions, and to which. All zero: nobody. */
struct trace_settings {
	__u32 until_seconds; /* CLOCK_MONOTONIC; a listener that dies is soon forgotten */
	__u32 per_second;    /* events at most */
	__u8 flags;	     /* enum trace_flags */
	__u8 pad[3];
};

enum trace_flags {
	TRACE_ONLY_DROPS = 1 << 0,
	TRACE_ONLY_SERVICES = 1 << 1, /* those in trace_services */
	TRACE_KNOWN_FLOWS = 1 << 2,   /* each packet of flows that are known, too */
};

/* What the second in progress has had of events. */
struct trace_count {
	__u32 second;
	__u32 sent;
	__u64 lost; /* since ever: beyond per_second, or the listener is too slow */
};

enum trace_kind {
	TRACE_NEW = 1,
	TRACE_AFFINITY = 2, /* new, and affinity chose */
	TRACE_KNOWN = 3,
	TRACE_REJECTED = 4,
	TRACE_DROPPED = 5,
};

enum trace_path {
	TRACE_SOCKET = 0,
	TRACE_UPLINK = 1,
	TRACE_POD = 2,
	TRACE_HOST = 3,
};

#define TRACE_NO_SERVICE 0xffffffff

/* One decision. */
struct trace_event {
	__u64 time_ns; /* CLOCK_MONOTONIC */
	struct address client;
	struct address frontend; /* where the packet or the socket wanted to go */
	struct address backend;	 /* all zero: none */
	__be16 client_port;	 /* 0: a socket that has none yet */
	__be16 frontend_port;
	__be16 backend_port;
	__u8 protocol;
	__u8 kind;   /* enum trace_kind */
	__u8 path;   /* enum trace_path */
	__u8 reason; /* enum drop_reason, of TRACE_REJECTED and TRACE_DROPPED */
	__u8 flags;  /* enum conntrack_flags */
	__u8 pad;
	__u32 service; /* TRACE_NO_SERVICE: of no Frontend */
	__u32 pid;     /* of a socket's process */
	__u32 pad2;
	__u8 comm[16];
};

/* Reasons of fairlead_drops_total; the Go names are in dataplane/ebpf/drops.go. */
enum drop_reason {
	DROP_NO_BACKENDS = 0,		/* rejected: no Backend */
	DROP_NO_LOCAL_BACKENDS = 1,	/* dropped: externalTrafficPolicy Local, none here */
	DROP_UNKNOWN_PORT = 2,		/* rejected: no such port on this ClusterIP */
	DROP_SOURCE_RANGE = 3,		/* dropped: not in loadBalancerSourceRanges */
	DROP_CONNTRACK_FULL = 4,	/* dropped: no room for the flow */
	DROP_PORTS_EXHAUSTED = 5,	/* dropped: no free masquerade port */
	DROP_NO_MASQUERADE_ADDRESS = 6, /* dropped: the node has no address of the family */
	DROP_FRAGMENT = 7,		/* dropped: fragment whose first part was not seen */
	DROP_MALFORMED = 8,		/* dropped: headers that contradict themselves */
	DROP_NO_CONNTRACK = 9,		/* reset: TCP segment of no known flow */
	DROP_NO_ROUTE = 10,		/* dropped: no route to the Backend */
	DROP_TOO_BIG = 11,		/* answered with ICMP: does not fit the path */
	DROP_SCTP_CHECKSUM = 12,	/* dropped: SCTP packet whose checksum can't be mended */
	DROP_REASON_COUNT = 13,
};

#endif
