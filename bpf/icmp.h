/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* ICMP errors about translated flows: both the packet they quote and their own
 * addresses are put back to what the other side knows (RFC 5508, 4). */
#ifndef FAIRLEAD_ICMP_H
#define FAIRLEAD_ICMP_H

#include "reject.h"

struct quoted {
	__u32 ip_offset;
	__u32 l4_offset;
	struct tuple tuple; /* as the quote has it */
};

static __always_inline int parse_quoted(struct __sk_buff *skb, const struct packet *p, struct quoted *q)
{
	struct l4_ports ports;
	struct ipv6hdr ip6;
	struct iphdr ip;

	q->ip_offset = p->l4_offset + 8;
	if (p->ipv6) {
		if (bpf_skb_load_bytes(skb, q->ip_offset, &ip6, sizeof(ip6)))
			return -1;
		address_from_words(&q->tuple.source, ip6.saddr.in6_u.u6_addr32);
		address_from_words(&q->tuple.destination, ip6.daddr.in6_u.u6_addr32);
		if (address_is_ipv4(&q->tuple.source) || address_is_ipv4(&q->tuple.destination))
			return -1;
		q->tuple.protocol = ip6.nexthdr;
		q->l4_offset = q->ip_offset + IPV6_BYTES;
	} else {
		if (bpf_skb_load_bytes(skb, q->ip_offset, &ip, sizeof(ip)))
			return -1;
		if (ip.version != 4 || ip.ihl < 5 || ip.frag_off & bpf_htons(IPV4_FRAGMENT_OFFSET))
			return -1;
		address_from_ipv4(&q->tuple.source, ip.saddr);
		address_from_ipv4(&q->tuple.destination, ip.daddr);
		q->tuple.protocol = ip.protocol;
		q->l4_offset = q->ip_offset + ip.ihl * 4;
	}
	if (!is_balanced_protocol(q->tuple.protocol))
		return -1;
	/* Not out of the padding behind the packet's end. */
	if (q->l4_offset + sizeof(ports) > (__u32)p->ip_bytes + ETH_BYTES)
		return -1;
	if (bpf_skb_load_bytes(skb, q->l4_offset, &ports, sizeof(ports)))
		return -1;
	q->tuple.source_port = ports.source;
	q->tuple.destination_port = ports.destination;
	return 0;
}

/* The quote travels against the flow's entry e: its source is what e makes its
 * destination, and the other way round. */
static __always_inline int rewrite_quoted(struct __sk_buff *skb, const struct packet *p, const struct quoted *q,
					  const struct conntrack_entry *e)
{
	struct l4_ports ports = {e->destination_port, e->source_port};
	__u64 address_diff = csum_replaced_address(&q->tuple.source, &e->destination) +
			     csum_replaced_address(&q->tuple.destination, &e->source);
	__u64 diff = csum_replaced(ports_word(q->tuple.source_port, q->tuple.destination_port),
				   ports_word(ports.source, ports.destination));
	__be32 addresses[2] = {e->destination.word[3], e->source.word[3]};

	if (p->ipv6) {
		diff += address_diff;
		if (bpf_skb_store_bytes(skb, q->ip_offset + 8, e->destination.word, 16, 0) ||
		    bpf_skb_store_bytes(skb, q->ip_offset + 24, e->source.word, 16, 0))
			return -1;
	} else if (bpf_l3_csum_replace(skb, q->ip_offset + 10, 0, csum_fold32(address_diff), 0) ||
		   bpf_skb_store_bytes(skb, q->ip_offset + 12, addresses, sizeof(addresses), 0)) {
		/* Addresses and header checksum cancel out in ICMP's own sum. */
		return -1;
	}
	if (bpf_skb_store_bytes(skb, q->l4_offset, &ports, sizeof(ports), 0))
		return -1;
	return bpf_l4_csum_replace(skb, p->l4_offset + 2, 0, csum_fold32(diff), 0);
}

/* Gives the error itself the addresses in s->entry. */
static __always_inline int rewrite_outer(struct __sk_buff *skb, const struct scratch *s, __u8 ttl_step)
{
	const struct packet *p = &s->packet;
	__u64 diff = csum_replaced_address(&p->tuple.source, &s->entry.source) +
		     csum_replaced_address(&p->tuple.destination, &s->entry.destination);

	if (p->ipv6 &&
	    bpf_l4_csum_replace(skb, p->l4_offset + 2, 0, csum_fold32(diff), BPF_F_PSEUDO_HDR | BPF_F_IPV6) &&
	    bpf_l4_csum_replace(skb, p->l4_offset + 2, 0, csum_fold32(diff), BPF_F_PSEUDO_HDR))
		return -1;
	return write_ip_header(skb, p, &s->entry.source, &s->entry.destination, diff, ttl_step);
}

static __always_inline enum outcome translate_icmp_error(struct __sk_buff *skb, struct scratch *s, enum side side,
							 enum route *route)
{
	struct packet *p = &s->packet;
	struct conntrack_entry *e;
	struct quoted q = {};

	/* RFC 1812, 5.3.7: not to be sent on. */
	if (!is_host_source(&p->tuple.source) || parse_quoted(skb, p, &q))
		return LEAVE;
	tuple_reverse(&q.tuple, &s->key);
	e = bpf_map_lookup_elem(&conntrack, &s->key);
	if (!e)
		return LEAVE;
	s->entry = *e;
	s->reason = DROP_MALFORMED;
	if (rewrite_quoted(skb, p, &q, &s->entry))
		return DROP_PACKET;
	/* A router on the way reports under its own name, the far end under the
	 * name that this side knows. */
	if (!address_equal(&p->tuple.source, &s->key.source))
		s->entry.source = p->tuple.source;
	*route = side == FROM_HOST ? ROUTE_LOCAL : ask_route(skb, s);
	if (*route == ROUTE_NONE || *route == ROUTE_TOO_BIG) {
		s->reason = DROP_NO_ROUTE;
		return DROP_PACKET;
	}
	if (p->ttl <= 1 || *route == ROUTE_STACK)
		*route = ROUTE_LOCAL; /* the stack ends it */
	if (rewrite_outer(skb, s, *route != ROUTE_LOCAL))
		return DROP_PACKET;
	return SEND;
}

#endif
