/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Decisions as they happen, for who listens. While nobody does, each packet
 * and each connect() costs one look at one number. */
#ifndef FAIRLEAD_TRACE_H
#define FAIRLEAD_TRACE_H

#include "lb.h"

/* Types that no map names get their Go twin from a variable's. */
const struct trace_event *const trace_event_type = 0;

/* What is listened to, or 0 while nobody listens. */
static __always_inline struct trace_settings *get_trace(void)
{
	__u32 zero = 0;
	struct trace_settings *t = bpf_map_lookup_elem(&trace_listener, &zero);

#ifdef FAIRLEAD_UNTRACED /* for BenchmarkTrace, which asks what tracing costs */
	return 0;
#endif
	return t && t->until_seconds && t->until_seconds >= now_seconds() ? t : 0;
}

static __always_inline bool trace_wants(const struct trace_settings *t, __u8 kind, __u32 service)
{
	if (kind == TRACE_KNOWN && !(t->flags & TRACE_KNOWN_FLOWS))
		return false;
	if (kind != TRACE_REJECTED && kind != TRACE_DROPPED && (t->flags & TRACE_ONLY_DROPS))
		return false;
	return !(t->flags & TRACE_ONLY_SERVICES) || bpf_map_lookup_elem(&trace_services, &service);
}

/* Room for one more event this second, or 0. Two CPUs that meet at the turn of
 * a second may let some more pass. */
static __always_inline struct trace_event *trace_reserve(const struct trace_settings *t)
{
	__u32 zero = 0, now = now_seconds();
	struct trace_count *c = bpf_map_lookup_elem(&trace_counts, &zero);
	struct trace_event *e = 0;

	if (!c)
		return 0;
	if (c->second != now) {
		c->second = now;
		c->sent = 0;
	}
	if (c->sent < t->per_second)
		e = bpf_ringbuf_reserve(&trace_events, sizeof(*e), 0);
	if (!e) {
		__sync_fetch_and_add(&c->lost, 1);
		return 0;
	}
	__sync_fetch_and_add(&c->sent, 1);
	__builtin_memset(e, 0, sizeof(*e));
	e->time_ns = bpf_ktime_get_ns();
	return e;
}

#endif
