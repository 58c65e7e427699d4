/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Counters: per Service port and per reason. */
#ifndef FAIRLEAD_METRICS_H
#define FAIRLEAD_METRICS_H

#include "maps.h"

static __always_inline void count_drop(__u32 reason)
{
	__u64 *n = bpf_map_lookup_elem(&drops, &reason);

	if (n)
		(*n)++;
}

static __always_inline void count_connection(__u32 service)
{
	struct service_counters *c = bpf_map_lookup_elem(&counters, &service);

	if (c)
		c->connections++;
}

static __always_inline void count_packet(__u32 service, bool reverse, __u32 bytes)
{
	struct service_counters *c = bpf_map_lookup_elem(&counters, &service);

	if (!c)
		return;
	if (reverse) {
		c->reverse_packets++;
		c->reverse_bytes += bytes;
	} else {
		c->forward_packets++;
		c->forward_bytes += bytes;
	}
}

#endif
