/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Rewriting a packet's addresses and ports, and choosing the source port that
 * keeps two flows apart. */
#ifndef FAIRLEAD_NAT_H
#define FAIRLEAD_NAT_H

#include "conntrack.h"
#include "csum.h"
#include "scratch.h"
#include "sctp.h"

#define MASQUERADE_PORT_TRIES 32

static __always_inline __u32 l4_checksum_offset(const struct packet *p)
{
	return p->l4_offset + (p->tuple.protocol == IPPROTO_TCP ? 16 : 6);
}

/* The IP header's addresses; where ttl_step is 1 the packet is forwarded here
 * and its TTL goes down by one. */
static __always_inline int write_ip_header(struct __sk_buff *skb, const struct packet *p, const struct address *source,
					   const struct address *destination, __u64 address_diff, __u8 ttl_step)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ipv6hdr *ip6 = data + ETH_BYTES;
	struct iphdr *ip = data + ETH_BYTES;

	if (p->ipv6) {
		if ((void *)(ip6 + 1) > end)
			return -1;
		__builtin_memcpy(ip6->saddr.in6_u.u6_addr32, source->word, 16);
		__builtin_memcpy(ip6->daddr.in6_u.u6_addr32, destination->word, 16);
		ip6->hop_limit -= ttl_step;
		return 0;
	}
	if ((void *)(ip + 1) > end)
		return -1;
	ip->saddr = source->word[3];
	ip->daddr = destination->word[3];
	ip->ttl -= ttl_step;
	if (ttl_step)
		address_diff += csum_replaced(bpf_htons(0x0100), 0);
	ip->check = csum_apply(ip->check, address_diff);
	return 0;
}

static __always_inline int write_ports(struct __sk_buff *skb, const struct packet *p, __be16 source, __be16 destination)
{
	struct l4_ports *ports = l4_header(skb, p, sizeof(*ports));

	if (!ports)
		return -1;
	ports->source = source;
	ports->destination = destination;
	return 0;
}

static __always_inline __u32 ports_word(__be16 source, __be16 destination)
{
	struct l4_ports ports = {source, destination};
	__u32 word;

	__builtin_memcpy(&word, &ports, sizeof(word));
	return word;
}

/* Gives a packet the tuple of e. 0, or -1 where the packet cannot be mended. */
static __always_inline int rewrite(struct __sk_buff *skb, const struct packet *p, const struct conntrack_entry *e,
				   __u8 ttl_step)
{
	__u64 address_diff = csum_replaced_address(&p->tuple.source, &e->source) +
			     csum_replaced_address(&p->tuple.destination, &e->destination);
	__u32 old_ports = ports_word(p->tuple.source_port, p->tuple.destination_port);
	__u32 new_ports = ports_word(e->source_port, e->destination_port);
	bool checksummed = p->tuple.protocol != IPPROTO_SCTP && !p->later_fragment;
	__u64 flags = p->tuple.protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	__u64 family = p->ipv6 ? BPF_F_IPV6 : 0;

	if (checksummed) {
		if (bpf_l4_csum_replace(skb, l4_checksum_offset(p), 0, csum_fold32(address_diff),
					flags | BPF_F_PSEUDO_HDR | family) &&
		    bpf_l4_csum_replace(skb, l4_checksum_offset(p), 0, csum_fold32(address_diff),
					flags | BPF_F_PSEUDO_HDR))
			return -1;
		if (old_ports != new_ports &&
		    bpf_l4_csum_replace(skb, l4_checksum_offset(p), 0, csum_fold32(csum_replaced(old_ports, new_ports)),
					flags))
			return -1;
	} else if (old_ports != new_ports && !p->later_fragment && sctp_mend_checksum(skb, p, old_ports, new_ports)) {
		return -1;
	}
	if (write_ip_header(skb, p, &e->source, &e->destination, address_diff, ttl_step))
		return -1;
	if (!p->later_fragment && old_ports != new_ports)
		return write_ports(skb, p, e->source_port, e->destination_port);
	return 0;
}

static __always_inline __u16 next_port(const struct node_settings *conf, __u32 n)
{
	__u32 range = (__u32)conf->masquerade_port_max - conf->masquerade_port_min + 1;

	return conf->masquerade_port_min + n % range;
}

static __always_inline void make_other_half(const struct conntrack_entry *e, const struct tuple *t,
					    struct conntrack_entry *other)
{
	*other = *e;
	other->source = t->destination;
	other->destination = t->source;
	other->source_port = t->destination_port;
	other->destination_port = t->source_port;
	/* What one side has closed, the other sees closed by its peer. */
	other->flags = (e->flags & ~(CONNTRACK_CLOSING | CONNTRACK_PEER_CLOSING)) ^ CONNTRACK_REPLY;
	if (e->flags & CONNTRACK_CLOSING)
		other->flags |= CONNTRACK_PEER_CLOSING;
	if (e->flags & CONNTRACK_PEER_CLOSING)
		other->flags |= CONNTRACK_CLOSING;
}

/* The map may evict one half of a flow. It is put back, unless another flow
 * has its place by now: then this half must not be used either. Looking at it
 * also keeps it from being evicted. */
static __always_inline bool conntrack_is_whole(struct scratch *s, const struct conntrack_entry *e)
{
	const struct tuple *t = &s->packet.tuple;
	struct conntrack_entry *peer, other;

	conntrack_peer_key(e, t->protocol, &s->key);
	peer = bpf_map_lookup_elem(&conntrack, &s->key);
	if (peer)
		return is_other_half(peer, t);
	make_other_half(e, t, &other);
	return !bpf_map_update_elem(&conntrack, &s->key, &other, BPF_NOEXIST);
}

/* The Backend's answers to a flow must not be taken for answers to a connection
 * that the client made to the Backend directly, from the same port: such
 * connections are in no table. So a flow leaves with a port that no client
 * connects from by itself. Only a privileged port stays: it means something to
 * its server (NFS). */
static __always_inline bool keeps_port(__u16 port)
{
	return port < 1024;
}

/* Whether a client's own port may be that of one of our flows. */
static __always_inline bool is_flow_port(const struct node_settings *conf, __u16 port)
{
	return port < 1024 || (port >= conf->masquerade_port_min && port <= conf->masquerade_port_max);
}

/* How long the tuple of a flow that ended stays its own: a last segment may be
 * on its way. Without taking them again, the ports to one Backend would be gone
 * at some hundred short connections a second. */
#define ENDED_REST_SECONDS 3

static __always_inline bool has_ended(const struct conntrack_entry *e)
{
	__u8 both = CONNTRACK_CLOSING | CONNTRACK_PEER_CLOSING;

	return (e->flags & both) == both && is_silent(e, now_seconds(), ENDED_REST_SECONDS - 1);
}

/* Whether a new flow may take a tuple after so many tries. Where most ports are
 * taken, those of UDP questions that have their answers are, too: else a few
 * hundred of them a second would take all ports to a Backend. */
static __always_inline bool may_take(const struct conntrack_entry *taken, __u8 protocol, int tries)
{
	if (protocol == IPPROTO_UDP)
		return tries >= MASQUERADE_PORT_TRIES / 2 && is_answered_question(taken);
	return has_ended(taken);
}

/* Enters the reply's half of the flow that s->entry describes (its forward
 * tuple), choosing another source port while the wanted one is taken. 0 or a
 * drop reason + 1. */
static __always_inline int enter_reply(struct scratch *s, const struct node_settings *conf)
{
	const struct tuple *forward = &s->packet.tuple;
	struct conntrack_entry reply, *taken;
	struct tuple ended;
	__u32 n = bpf_get_prandom_u32();
	long err;

	make_other_half(&s->entry, forward, &reply);
	if (!keeps_port(bpf_ntohs(forward->source_port)))
		s->entry.source_port = bpf_htons(next_port(conf, n));
	for (int i = 0; i < MASQUERADE_PORT_TRIES; i++) {
		conntrack_peer_key(&s->entry, forward->protocol, &s->key);
		err = bpf_map_update_elem(&conntrack, &s->key, &reply, BPF_NOEXIST);
		if (!err)
			return 0;
		taken = bpf_map_lookup_elem(&conntrack, &s->key);
		if (!taken)
			return DROP_CONNTRACK_FULL + 1;
		if (is_other_half(taken, forward) || may_take(taken, forward->protocol, i))
			goto take;
		s->entry.source_port = bpf_htons(next_port(conf, n + 1 + i));
	}
	return DROP_PORTS_EXHAUSTED + 1;
take:
	if (!is_other_half(taken, forward) && conntrack_peer(&s->key, taken, &ended))
		conntrack_remove(&ended);
	return conntrack_replace(&s->key, &reply) ? 0 : DROP_CONNTRACK_FULL + 1;
}

#endif
