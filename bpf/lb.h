/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* The decision: one hash lookup for the Frontend, one array access for the
 * slot. Affinity, where a Frontend has it, comes between. */
#ifndef FAIRLEAD_LB_H
#define FAIRLEAD_LB_H

#include "address.h"
#include "maps.h"

/* The coarse clock (5.11) costs a tenth of the precise one; seconds are enough. */
static __always_inline __u32 now_seconds(void)
{
	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_ktime_get_coarse_ns))
		return bpf_ktime_get_coarse_ns() / 1000000000ULL;
	return bpf_ktime_get_ns() / 1000000000ULL;
}

/* Set at load where another dataplane has taken over: flows that are known go
 * on, and nothing new is decided. */
const volatile bool draining = false;

#define FRONTEND_LOOKS 4

static __always_inline __u32 frontend_switch_count(void)
{
	__u32 zero = 0;
	__u32 *n = bpf_map_lookup_elem(&frontend_switches, &zero);

	return n ? *(volatile __u32 *)n : 0;
}

/* Copies the Frontend to *f; false where there is none.
 *
 * The kernel replaces a hash table's element by linking the new one in front
 * and unlinking the old: who walks the bucket at that moment may meet neither,
 * and the memory of the old one is another element's at once. So what was seen
 * while Frontends were being switched counts only if it is still there after. */
static __always_inline bool find_frontend(const struct address *a, __be16 port, __u8 protocol, struct frontend *f)
{
	struct frontend_key key = {};
	struct frontend *seen, *again;
	__u32 count;

	if (draining)
		return false;
	/* The verifier of 5.10 does not see that what is read was written; and the
	 * compiler, which does, must not see that this is never read. */
	__builtin_memset(f, 0, sizeof(*f));
	asm volatile("" : : "r"(f) : "memory");
	key.address = *a;
	key.port = port;
	key.protocol = protocol;
	count = frontend_switch_count();
	seen = bpf_map_lookup_elem(&frontends, &key);
	for (int i = 0; i < FRONTEND_LOOKS; i++) {
		if (seen)
			*f = *seen;
		barrier();
		if (!(count & 1) && count == frontend_switch_count())
			break;
		again = bpf_map_lookup_elem(&frontends, &key);
		if (again == seen)
			break;
		seen = again;
	}
	return seen;
}

/* The entry that claims all other ports of a ClusterIP. */
static __always_inline bool is_cluster_ip(const struct address *a)
{
	struct frontend f;

	return find_frontend(a, 0, 0, &f);
}

/* What chose its Backend just while that was removed remembers an even
 * generation: that of no Backend. */
static __always_inline bool is_generation(const struct backend_state *s, __u32 generation)
{
	return s->generation == generation && (generation & 1);
}

static __always_inline bool backend_exists(__u32 backend, __u32 generation)
{
	struct backend_state *s = bpf_map_lookup_elem(&backend_states, &backend);

	return s && is_generation(s, generation);
}

/* What a flow is to remember of the Backend it got. */
struct choice {
	struct address address;
	__be16 port;
	__u8 flags;
	bool by_affinity;
	__u32 backend;
	__u32 generation;
};

enum verdict {
	CHOSEN = 0,
	NOT_A_FRONTEND,
	REJECT,
	DROP,
};

static __always_inline bool choose_by_affinity(const struct affinity_key *key, __u32 timeout_seconds,
					       const struct backend_set *set, struct choice *c)
{
	struct affinity_entry *e = bpf_map_lookup_elem(&affinity, key);
	struct backend_state *s;
	__u32 now = now_seconds(), backend;

	if (!e || (__s32)(now - e->last_seen_seconds) > (__s32)timeout_seconds)
		return false;
	backend = e->backend;
	s = bpf_map_lookup_elem(&backend_states, &backend);
	if (!s || s->generation != e->generation || !(s->eligible_sets & (1 << (set->index & 15))))
		return false;
	c->address = e->backend_address;
	c->port = e->backend_port;
	c->flags = e->backend_flags;
	c->backend = backend;
	c->generation = s->generation;
	barrier();
	/* Another packet of the client may have replaced the entry meanwhile, and
	 * another client's have its memory. */
	if (bpf_map_lookup_elem(&affinity, key) != e)
		return false;
	e->last_seen_seconds = now;
	return true;
}

static __always_inline void remember_affinity(const struct affinity_key *key, const struct choice *c)
{
	struct affinity_entry e = {
		.backend_address = c->address,
		.backend_port = c->port,
		.backend_flags = c->flags,
		.backend = c->backend,
		.generation = c->generation,
		.last_seen_seconds = now_seconds(),
	};

	bpf_map_update_elem(&affinity, key, &e, BPF_ANY);
}

static __always_inline bool choose_slot(const struct backend_set *set, struct choice *c)
{
	struct backend_state *state;
	__u32 index, backend;
	struct slot *s;

	index = set->base + bpf_get_prandom_u32() % set->eligible;
	s = bpf_map_lookup_elem(&slots, &index);
	if (!s)
		return false;
	c->address = s->address;
	c->port = s->port;
	c->flags = s->flags;
	c->backend = backend = s->backend;
	state = bpf_map_lookup_elem(&backend_states, &backend);
	if (!state)
		return false;
	c->generation = state->generation;
	return true;
}

/* Chooses a Backend of the set for a client, honouring and renewing affinity.
 * client may be 0 where the Frontend has no affinity. */
static __always_inline enum verdict choose_backend(const struct frontend *f, const struct backend_set *set,
						   const struct address *client, struct choice *c)
{
	struct affinity_key key = {};

	if (set->eligible == 0)
		return set->on_empty == ON_EMPTY_DROP ? DROP : REJECT;
	c->by_affinity = false;
	if (f->affinity_seconds) {
		key.client = *client;
		key.service = f->service;
		c->by_affinity = choose_by_affinity(&key, f->affinity_seconds, set, c);
		if (c->by_affinity)
			return CHOSEN;
	}
	if (!choose_slot(set, c))
		return REJECT;
	if (f->affinity_seconds)
		remember_affinity(&key, c);
	return CHOSEN;
}

#endif
