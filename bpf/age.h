/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Ends flows that the agent found idle. It can only read and then delete: in
 * between a new flow could take the place of an old one, and be deleted. */
#ifndef FAIRLEAD_AGE_H
#define FAIRLEAD_AGE_H

#include "conntrack.h"

/* What the agent saw of a flow, or of half of one. */
struct idle_flow {
	struct tuple half[2];
	__u32 last_seen_seconds[2];
	__u32 halves; /* 1 or 2 */
};

#define IDLE_FLOWS_AT 16  /* behind what is taken for an Ethernet header */
#define IDLE_FLOWS_MAX 32 /* of one run: they have to fit a page */

static __always_inline bool is_as_seen(const struct tuple *key, __u32 last_seen_seconds)
{
	struct conntrack_entry *e = bpf_map_lookup_elem(&conntrack, key);

	return e && e->last_seen_seconds == last_seen_seconds;
}

static __always_inline bool end_half(const struct tuple *key, __u32 last_seen_seconds)
{
	struct conntrack_turn *turn = turn_of(key);
	bool idle;

	if (!turn || !turn_begin(turn))
		return false;
	idle = is_as_seen(key, last_seen_seconds);
	if (idle)
		bpf_map_delete_elem(&conntrack, key);
	turn_end(turn);
	return idle;
}

/* Run by the agent, over a packet of idle_flow. */
SEC("tc")
int fairlead_age(struct __sk_buff *skb)
{
	struct idle_flow f;

	for (int i = 0; i < IDLE_FLOWS_MAX; i++) {
		if (bpf_skb_load_bytes(skb, IDLE_FLOWS_AT + i * sizeof(f), &f, sizeof(f)))
			break;
		if (f.halves == 2 && !is_as_seen(&f.half[1], f.last_seen_seconds[1]))
			continue;
		if (end_half(&f.half[0], f.last_seen_seconds[0]) && f.halves == 2)
			end_half(&f.half[1], f.last_seen_seconds[1]);
	}
	return 0;
}

#endif
