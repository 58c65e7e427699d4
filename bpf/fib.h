/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Where a translated packet goes next. */
#ifndef FAIRLEAD_FIB_H
#define FAIRLEAD_FIB_H

#include "nat.h"

#define AF_INET 2
#define AF_INET6 10

/* Set on packets that were handled, so that the egress program and a second
 * device leave them alone. Read by tc and nothing else. */
static __always_inline __u16 handled_tc_index(void)
{
	struct node_settings *conf = get_settings();

	return conf && conf->handled_tc_index ? conf->handled_tc_index : 0xfa1d;
}

enum route {
	ROUTE_FORWARD,	 /* fib holds the next hop */
	ROUTE_RESOLVE,	 /* fib holds the device; the neighbour is not known yet */
	ROUTE_LOCAL,	 /* this node's, or left to its stack */
	ROUTE_STACK,	 /* only the stack can tell: no forwarding here, an encapsulation */
	ROUTE_LOCAL_VIA, /* as that; fib holds the device it must seem to enter by */
	ROUTE_TOO_BIG,	 /* fib holds the MTU */
	ROUTE_NONE,
};

/* The size that has to fit the path: of one segment, where the packet is a
 * train of them. */
static __always_inline __u16 wire_bytes(struct __sk_buff *skb, const struct packet *p)
{
	if (skb->gso_size)
		return skb->gso_size + p->l4_offset - ETH_BYTES + (p->tuple.protocol == IPPROTO_TCP ? 20 : 8);
	return p->ip_bytes;
}

/* What the routing table said within the last second, so that not every packet
 * asks it: a look-up there costs as much as all else that is done to a packet.
 * One place for each value of a small hash; per CPU, so nobody else writes. */
struct next_hop {
	struct address source;
	struct address destination;
	__u32 from_ifindex;
	__u32 seconds; /* when it was asked */
	__u32 ifindex;
	__u16 mtu;
	__u8 dmac[ETH_ALEN];
	__u8 smac[ETH_ALEN];
};

#define NEXT_HOPS 1024 /* a power of two */

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct next_hop);
	__uint(max_entries, NEXT_HOPS);
} next_hops SEC(".maps");

static __always_inline struct next_hop *next_hop_of(const struct conntrack_entry *e)
{
	__u32 index = e->source.word[3] ^ e->destination.word[3] ^ e->source.word[2] ^ e->destination.word[2];

	index *= 0x9e3779b1; /* Knuth, 6.4: multiplicative hashing */
	index = (index >> 16) & (NEXT_HOPS - 1);
	return bpf_map_lookup_elem(&next_hops, &index);
}

static __always_inline bool next_hop_known(struct __sk_buff *skb, struct scratch *s, const struct next_hop *hop)
{
	const struct conntrack_entry *e = &s->entry;

	/* The entry was touched by this very packet. */
	if (hop->seconds != e->last_seen_seconds || hop->from_ifindex != skb->ifindex ||
	    !address_equal(&hop->destination, &e->destination) || !address_equal(&hop->source, &e->source) ||
	    wire_bytes(skb, &s->packet) > hop->mtu)
		return false;
	s->fib.ifindex = hop->ifindex;
	__builtin_memcpy(s->fib.dmac, hop->dmac, ETH_ALEN);
	__builtin_memcpy(s->fib.smac, hop->smac, ETH_ALEN);
	return true;
}

static __always_inline void note_next_hop(struct __sk_buff *skb, const struct scratch *s, struct next_hop *hop)
{
	hop->seconds = 0;
	hop->source = s->entry.source;
	hop->destination = s->entry.destination;
	hop->from_ifindex = skb->ifindex;
	hop->ifindex = s->fib.ifindex;
	hop->mtu = s->fib.mtu_result;
	__builtin_memcpy(hop->dmac, s->fib.dmac, ETH_ALEN);
	__builtin_memcpy(hop->smac, s->fib.smac, ETH_ALEN);
	hop->seconds = s->entry.last_seen_seconds;
}

/* Fills s->fib with the question for a packet that came by skb's device. */
static __always_inline void describe_way(struct __sk_buff *skb, struct scratch *s, const struct address *source,
					 const struct address *destination)
{
	struct bpf_fib_lookup *fib = &s->fib;

	__builtin_memset(fib, 0, sizeof(*fib));
	fib->ifindex = skb->ifindex;
	if (s->packet.ipv6) {
		fib->family = AF_INET6;
		__builtin_memcpy(fib->ipv6_src, source->word, 16);
		__builtin_memcpy(fib->ipv6_dst, destination->word, 16);
	} else {
		fib->family = AF_INET;
		fib->ipv4_src = source->word[3];
		fib->ipv4_dst = destination->word[3];
	}
}

static __always_inline enum route ask_route(struct __sk_buff *skb, struct scratch *s)
{
	struct bpf_fib_lookup *fib = &s->fib;

	describe_way(skb, s, &s->entry.source, &s->entry.destination);
	fib->l4_protocol = s->packet.tuple.protocol;
	fib->tot_len = wire_bytes(skb, &s->packet);
	switch (bpf_fib_lookup(skb, fib, sizeof(*fib), 0)) {
	case BPF_FIB_LKUP_RET_SUCCESS:
		return ROUTE_FORWARD;
	case BPF_FIB_LKUP_RET_NO_NEIGH:
		return ROUTE_RESOLVE;
	case BPF_FIB_LKUP_RET_FRAG_NEEDED:
		return ROUTE_TOO_BIG;
	case BPF_FIB_LKUP_RET_BLACKHOLE:
	case BPF_FIB_LKUP_RET_UNREACHABLE:
	case BPF_FIB_LKUP_RET_PROHIBIT:
		return ROUTE_NONE;
	case BPF_FIB_LKUP_RET_NOT_FWDED:
		return ROUTE_LOCAL;
	default:
		return ROUTE_STACK;
	}
}

static __always_inline enum route find_route(struct __sk_buff *skb, struct scratch *s)
{
	struct next_hop *hop = next_hop_of(&s->entry);
	enum route route;

	if (hop && next_hop_known(skb, s, hop))
		return ROUTE_FORWARD;
	route = ask_route(skb, s);
	if (hop && route == ROUTE_FORWARD)
		note_next_hop(skb, s, hop);
	return route;
}

/* An answer for the node itself bears the Service's address once translated,
 * and strict reverse path filtering (RFC 3704) takes that only from the device
 * that leads there: so it goes in by that one. */
static __always_inline enum route find_way_in(struct __sk_buff *skb, struct scratch *s)
{
	struct bpf_fib_lookup *fib = &s->fib;

	describe_way(skb, s, &s->entry.destination, &s->entry.source);
	if (bpf_fib_lookup(skb, fib, sizeof(*fib), 0) != BPF_FIB_LKUP_RET_SUCCESS || fib->ifindex == skb->ifindex)
		return ROUTE_LOCAL;
	/* What enters must be addressed to the device. */
	__builtin_memcpy(fib->dmac, fib->smac, ETH_ALEN);
	return ROUTE_LOCAL_VIA;
}

/* Sends a rewritten packet on. */
static __always_inline int send_on(struct __sk_buff *skb, const struct scratch *s, enum route route)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;

	skb->tc_index = handled_tc_index();
	if (route == ROUTE_RESOLVE)
		return bpf_redirect_neigh(s->fib.ifindex, 0, 0, 0);
	if ((void *)(eth + 1) > end)
		return TC_ACT_SHOT;
	__builtin_memcpy(eth->h_dest, s->fib.dmac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, s->fib.smac, ETH_ALEN);
	return bpf_redirect(s->fib.ifindex, route == ROUTE_LOCAL_VIA ? BPF_F_INGRESS : 0);
}

#endif
