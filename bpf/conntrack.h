/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Flows of the packet path: two entries each, one a direction. */
#ifndef FAIRLEAD_CONNTRACK_H
#define FAIRLEAD_CONNTRACK_H

#include "lb.h"
#include "parse.h"

/* The tuple of packets the other way. */
static __always_inline void tuple_reverse(const struct tuple *t, struct tuple *reversed)
{
	reversed->source = t->destination;
	reversed->destination = t->source;
	reversed->source_port = t->destination_port;
	reversed->destination_port = t->source_port;
	reversed->protocol = t->protocol;
	reversed->pad[0] = reversed->pad[1] = reversed->pad[2] = 0;
}

/* The key of the other direction's entry. */
static __always_inline void conntrack_peer_key(const struct conntrack_entry *e, __u8 protocol, struct tuple *key)
{
	key->source = e->destination;
	key->destination = e->source;
	key->source_port = e->destination_port;
	key->destination_port = e->source_port;
	key->protocol = protocol;
	key->pad[0] = key->pad[1] = key->pad[2] = 0;
}

/* Whether an entry is the other half of the flow whose packets have tuple t. */
static __always_inline bool is_other_half(const struct conntrack_entry *e, const struct tuple *t)
{
	__u32 differ = (e->source_port ^ t->destination_port) | (e->destination_port ^ t->source_port);

#pragma unroll
	for (int i = 0; i < 4; i++)
		differ |= (e->source.word[i] ^ t->destination.word[i]) | (e->destination.word[i] ^ t->source.word[i]);
	return !differ;
}

/* The other half of the flow of entry e at key, or 0 where it is gone or its
 * place is another flow's. Leaves its key in peer_key. */
static __always_inline struct conntrack_entry *conntrack_peer(const struct tuple *key, const struct conntrack_entry *e,
							      struct tuple *peer_key)
{
	struct conntrack_entry *peer;

	conntrack_peer_key(e, key->protocol, peer_key);
	peer = bpf_map_lookup_elem(&conntrack, peer_key);
	return peer && is_other_half(peer, key) ? peer : 0;
}

static __always_inline void conntrack_flag_peer(const struct tuple *key, const struct conntrack_entry *e, __u8 flags,
						struct tuple *scratch)
{
	struct conntrack_entry *peer = conntrack_peer(key, e, scratch);

	if (peer)
		peer->flags |= flags;
}

/* A turn lasts for two map operations: some 100 ns. */
#define TURN_TRIES 16

static __always_inline bool turn_begin(struct conntrack_turn *turn)
{
	for (int i = 0; i < TURN_TRIES; i++) {
		__u32 taken;

		bpf_spin_lock(&turn->lock);
		taken = turn->taken;
		turn->taken = 1;
		bpf_spin_unlock(&turn->lock);
		if (!taken)
			return true;
	}
	return false;
}

static __always_inline void turn_end(struct conntrack_turn *turn)
{
	bpf_spin_lock(&turn->lock);
	turn->taken = 0;
	bpf_spin_unlock(&turn->lock);
}

static __always_inline struct conntrack_turn *turn_of(const struct tuple *key)
{
	__u32 n = key->source.word[3] ^ key->destination.word[3] ^
		  ((__u32)key->source_port << 16 | key->destination_port);

	n = (n * 0x9e3779b1) >> 24; /* Fibonacci hashing, to CONNTRACK_TURNS */
	return bpf_map_lookup_elem(&conntrack_turns, &n);
}

/* Takes an entry out, so that another flow may have its place. What looks at an
 * entry and then deletes it would delete the other flow's: so each looks and
 * deletes in its turn, and an entry that may be in its way goes by this. False:
 * somebody else's turn does not end, and nothing was done. */
static __always_inline bool conntrack_remove(const struct tuple *key)
{
	struct conntrack_turn *turn = turn_of(key);

	if (!turn || !turn_begin(turn))
		return false;
	bpf_map_delete_elem(&conntrack, key);
	turn_end(turn);
	return true;
}

/* Gives an entry's place to another one. */
static __always_inline bool conntrack_replace(const struct tuple *key, const struct conntrack_entry *by)
{
	struct conntrack_turn *turn = turn_of(key);
	bool failed;

	if (!turn || !turn_begin(turn))
		return false;
	failed = bpf_map_update_elem(&conntrack, key, by, BPF_ANY);
	turn_end(turn);
	return !failed;
}

/* conntrack_remove of both halves. A peer that stays is in nobody's way. */
static __always_inline bool conntrack_delete(const struct tuple *key, const struct conntrack_entry *e,
					     struct tuple *scratch)
{
	if (conntrack_peer(key, e, scratch))
		conntrack_remove(scratch);
	return conntrack_remove(key);
}

/* Set at load: how long a UDP flow may be silent. */
const volatile __u32 udp_timeout_seconds = 30;
const volatile __u32 udp_stream_timeout_seconds = 180;

#define UDP_QUESTION_SECONDS 2

/* A flow that was answered and goes on for longer is a stream, as it is for the
 * kernel's conntrack; a shorter one is a question. */
static __always_inline bool is_stream(const struct conntrack_entry *e)
{
	return (e->flags & CONNTRACK_SEEN_REPLY) && e->last_seen_seconds - e->created_seconds > UDP_QUESTION_SECONDS;
}

static __always_inline bool is_silent(const struct conntrack_entry *e, __u32 now, __u32 seconds)
{
	return (__s32)(now - e->last_seen_seconds) > (__s32)seconds;
}

/* A question that was not asked again since its answer. */
static __always_inline bool is_answered_question(const struct conntrack_entry *e)
{
	return (e->flags & CONNTRACK_SEEN_REPLY) && !is_stream(e) && is_silent(e, now_seconds(), UDP_QUESTION_SECONDS);
}

/* A datagram from a port that was used before asks anew once the flow of then
 * is over, even where its entry is still there. A question's is soon, where it
 * went to a Backend that gets nothing new any more. */
static __always_inline bool udp_is_over(const struct packet *p, const struct conntrack_entry *e, struct tuple *scratch)
{
	__u32 now = now_seconds(), limit = udp_timeout_seconds, backend = e->backend;
	struct backend_state *s = bpf_map_lookup_elem(&backend_states, &backend);
	struct conntrack_entry *peer;

	if (!s || !is_generation(s, e->generation))
		return true;
	if (!is_silent(e, now, UDP_QUESTION_SECONDS))
		return false;
	if (is_stream(e))
		limit = udp_stream_timeout_seconds;
	else if (!s->eligible_sets)
		limit = UDP_QUESTION_SECONDS;
	if (!is_silent(e, now, limit))
		return false;
	peer = conntrack_peer(&p->tuple, e, scratch);
	return !peer || is_silent(peer, now, limit);
}

/* Whether a packet begins anew what this entry holds the end of, or tries
 * again what was never answered by a Backend that is gone. */
static __always_inline bool conntrack_is_over(const struct packet *p, const struct conntrack_entry *e,
					      struct tuple *scratch)
{
	if (e->flags & CONNTRACK_REPLY)
		return false;
	if (p->tuple.protocol == IPPROTO_UDP)
		return udp_is_over(p, e, scratch);
	if (p->tuple.protocol == IPPROTO_TCP && (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN) {
		if (e->flags & (CONNTRACK_CLOSING | CONNTRACK_PEER_CLOSING))
			return true;
		return !(e->flags & CONNTRACK_SEEN_REPLY) && !backend_exists(e->backend, e->generation);
	}
	if (p->tuple.protocol == IPPROTO_SCTP && !(e->flags & CONNTRACK_SEEN_REPLY))
		return !backend_exists(e->backend, e->generation);
	return false;
}

/* Notes what the packet says of the flow's state. Only the first reply and the
 * end of a direction touch the other entry. */
static __always_inline void conntrack_update(const struct packet *p, struct conntrack_entry *e, struct tuple *scratch)
{
	__u32 now = now_seconds();

	if (e->last_seen_seconds != now)
		e->last_seen_seconds = now;
	if ((e->flags & CONNTRACK_REPLY) && !(e->flags & CONNTRACK_SEEN_REPLY)) {
		e->flags |= CONNTRACK_SEEN_REPLY;
		conntrack_flag_peer(&p->tuple, e, CONNTRACK_SEEN_REPLY, scratch);
	}
	if (p->tuple.protocol != IPPROTO_TCP || !(p->tcp_flags & (TCP_FIN | TCP_RST)))
		return;
	e->flags |= CONNTRACK_CLOSING;
	conntrack_flag_peer(&p->tuple, e,
			    (p->tcp_flags & TCP_RST) ? CONNTRACK_CLOSING | CONNTRACK_PEER_CLOSING
						     : CONNTRACK_PEER_CLOSING,
			    scratch);
	if (p->tcp_flags & TCP_RST)
		e->flags |= CONNTRACK_PEER_CLOSING;
}

#endif
