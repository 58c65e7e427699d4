/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Room for one packet's work, since 512 bytes of stack are not enough. tc runs
 * with bottom halves off, so a CPU's room has one user at a time. */
#ifndef FAIRLEAD_SCRATCH_H
#define FAIRLEAD_SCRATCH_H

#include "parse.h"

/* Of the packet an ICMP error is about; the most is a multiple of 4. */
#define QUOTE_BYTES_MIN 28
#define QUOTE_BYTES_MAX 120

/* What is to become of a packet. */
enum outcome {
	LEAVE,	   /* not ours: the next program or the stack goes on */
	TRANSLATE, /* s->entry says how */
	SEND,	   /* translated; a route enum says where */
	DROP_PACKET,
	REJECT_PACKET,
	TOO_BIG,
};

struct scratch {
	struct packet packet;
	struct conntrack_entry entry; /* the translation to apply */
	struct tuple key;
	struct bpf_fib_lookup fib;
	struct frontend frontend;
	struct choice choice;
	__u32 reason;  /* enum drop_reason, of REJECT_PACKET and DROP_PACKET */
	__u32 service; /* TRACE_NO_SERVICE: of no Frontend */
	__u8 decided;  /* enum trace_kind, once s->entry is there */
	__u8 head[64]; /* headers being built */
	__u8 quote[128];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct scratch);
	__uint(max_entries, 1);
} scratch_room SEC(".maps");

static __always_inline struct scratch *get_scratch(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&scratch_room, &zero);
}

#endif
