/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Headers -> tuple. Everything later relies on the bounds checked here. */
#ifndef FAIRLEAD_PARSE_H
#define FAIRLEAD_PARSE_H

#include "address.h"
#include "maps.h"
#include "metrics.h"

#define ETH_BYTES 14
#define IPV6_BYTES 40
#define L4_OFFSET_MAX 0x1ff   /* bytes; more headers than this are left to the stack */
#define IPV6_EXTENSIONS_MAX 6 /* a longer chain is left to the stack */

#define IPV4_FRAGMENT_OFFSET 0x1fff
#define IPV4_MORE_FRAGMENTS 0x2000
#define IPV4_DONT_FRAGMENT 0x4000

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

struct l4_ports {
	__be16 source;
	__be16 destination;
};

struct packet {
	struct tuple tuple;
	__u32 fragment_id;
	__u16 l4_offset; /* from the start of the frame */
	__u16 ip_bytes;	 /* length of the IP packet as its header says */
	bool ipv6;
	bool later_fragment; /* no L4 header here; ports come from the first */
	bool first_fragment;
	bool dont_fragment;
	__u8 ttl;
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 fragment_protocol; /* next header behind the fragment header */
	bool ports_unknown;	/* a later fragment whose first was not seen */
};

enum parse_result {
	PARSE_OK = 0,
	PARSE_PASS, /* not for us */
	PARSE_DROP, /* counted already */
};

static __always_inline bool is_icmp_error(const struct packet *p)
{
	if (p->ipv6)
		return p->tuple.protocol == IPPROTO_ICMPV6 && p->icmp_type >= 1 && p->icmp_type <= 4;
	return p->tuple.protocol == IPPROTO_ICMP && (p->icmp_type == 3 || p->icmp_type == 11 || p->icmp_type == 12);
}

/* Walks extension headers from *next at *offset (RFC 8200, 4.1). */
static __always_inline enum parse_result parse_ipv6_extensions(struct __sk_buff *skb, struct packet *p, __u8 *next,
							       __u32 *offset)
{
	struct ipv6_opt_hdr option;
	struct frag_hdr {
		__u8 nexthdr;
		__u8 reserved;
		__be16 frag_off;
		__be32 identification;
	} fragment;

#pragma unroll
	for (int i = 0; i < IPV6_EXTENSIONS_MAX; i++) {
		switch (*next) {
		case IPPROTO_HOPOPTS:
		case IPPROTO_ROUTING:
		case IPPROTO_DSTOPTS:
			if (bpf_skb_load_bytes(skb, *offset, &option, sizeof(option)))
				return PARSE_PASS;
			*next = option.nexthdr;
			*offset += (option.hdrlen + 1) * 8;
			break;
		case IPPROTO_AH:
			if (bpf_skb_load_bytes(skb, *offset, &option, sizeof(option)))
				return PARSE_PASS;
			*next = option.nexthdr;
			*offset += (option.hdrlen + 2) * 4;
			break;
		case IPPROTO_FRAGMENT:
			if (bpf_skb_load_bytes(skb, *offset, &fragment, sizeof(fragment)))
				return PARSE_PASS;
			*next = fragment.nexthdr;
			*offset += sizeof(fragment);
			p->fragment_id = fragment.identification;
			p->fragment_protocol = fragment.nexthdr;
			if (bpf_ntohs(fragment.frag_off) & 0xfff8) {
				p->later_fragment = true;
				return PARSE_OK;
			}
			p->first_fragment = bpf_ntohs(fragment.frag_off) & 1;
			break;
		default:
			return PARSE_OK;
		}
	}
	return PARSE_PASS;
}

static __always_inline enum parse_result parse_ipv4(struct __sk_buff *skb, struct packet *p)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct iphdr *ip = data + ETH_BYTES;
	__u16 fragment;

	if ((void *)(ip + 1) > end)
		return PARSE_PASS;
	if (ip->version != 4 || ip->ihl < 5)
		return PARSE_PASS;
	address_from_ipv4(&p->tuple.source, ip->saddr);
	address_from_ipv4(&p->tuple.destination, ip->daddr);
	p->tuple.protocol = ip->protocol;
	p->ip_bytes = bpf_ntohs(ip->tot_len);
	p->ttl = ip->ttl;
	p->l4_offset = ETH_BYTES + ip->ihl * 4;
	fragment = bpf_ntohs(ip->frag_off);
	p->dont_fragment = fragment & IPV4_DONT_FRAGMENT;
	if (fragment & (IPV4_FRAGMENT_OFFSET | IPV4_MORE_FRAGMENTS)) {
		p->fragment_id = ip->id;
		p->fragment_protocol = ip->protocol;
		p->later_fragment = fragment & IPV4_FRAGMENT_OFFSET;
		p->first_fragment = !p->later_fragment;
	}
	return PARSE_OK;
}

static __always_inline enum parse_result parse_ipv6(struct __sk_buff *skb, struct packet *p)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ipv6hdr *ip = data + ETH_BYTES;
	enum parse_result r = PARSE_OK;
	__u32 offset = ETH_BYTES + IPV6_BYTES;
	__u8 next;

	if ((void *)(ip + 1) > end || ip->version != 6)
		return PARSE_PASS;
	p->ipv6 = true;
	p->dont_fragment = true;
	address_from_words(&p->tuple.source, ip->saddr.in6_u.u6_addr32);
	address_from_words(&p->tuple.destination, ip->daddr.in6_u.u6_addr32);
	/* On the wire an IPv4-mapped address is nobody's (RFC 4291, 2.5.5.2); in
	 * the maps it is an IPv4 one. */
	if (address_is_ipv4(&p->tuple.source) || address_is_ipv4(&p->tuple.destination))
		return PARSE_PASS;
	p->ip_bytes = bpf_ntohs(ip->payload_len) + IPV6_BYTES;
	p->ttl = ip->hop_limit;
	next = ip->nexthdr;
	if (next != IPPROTO_TCP && next != IPPROTO_UDP && next != IPPROTO_ICMPV6)
		r = parse_ipv6_extensions(skb, p, &next, &offset);
	p->tuple.protocol = next;
	p->l4_offset = offset;
	return r;
}

/* Ports of a datagram in fragments: noted from the first, known of the later
 * ones. Before the L4 header of the first, IPv6 may have more extension
 * headers, so the later ones learn their protocol from it too. */
static __always_inline void fragment_ports(struct packet *p)
{
	struct fragment_key key = {};
	struct fragment_ports value = {}, *known;

	key.source = p->tuple.source;
	key.destination = p->tuple.destination;
	key.id = p->fragment_id;
	key.protocol = p->fragment_protocol;
	if (p->first_fragment) {
		value.source_port = p->tuple.source_port;
		value.destination_port = p->tuple.destination_port;
		value.protocol = p->tuple.protocol;
		bpf_map_update_elem(&fragments, &key, &value, BPF_ANY);
		return;
	}
	known = bpf_map_lookup_elem(&fragments, &key);
	if (!known) {
		p->ports_unknown = true;
		return;
	}
	p->tuple.source_port = known->source_port;
	p->tuple.destination_port = known->destination_port;
	p->tuple.protocol = known->protocol;
}

/* Whether the lengths in the headers can be true. What is cut short or claims
 * more than there is, is left to the stack, which drops it. A train of segments
 * has one header for all of them, and no length of its own. */
static __always_inline bool lengths_hold(const struct __sk_buff *skb, const struct packet *p)
{
	__u32 need = p->l4_offset - ETH_BYTES;

	if (skb->gso_size)
		return true;
	if (!p->later_fragment)
		need += p->tuple.protocol == IPPROTO_TCP ? 20 : 8;
	return p->ip_bytes >= need && (__u32)p->ip_bytes + ETH_BYTES <= skb->len;
}

/* The L4 header if `bytes` of it are in the linear part, else 0. The empty asm
 * keeps the compiler from checking one copy of the offset and using another,
 * which the verifier would not accept. */
static __always_inline void *l4_header(struct __sk_buff *skb, const struct packet *p, __u32 bytes)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u64 offset = p->l4_offset;
	void *header;

	asm volatile("" : "+r"(offset));
	if (offset > L4_OFFSET_MAX)
		return 0;
	header = data + offset;
	return header + bytes > end ? 0 : header;
}

static __always_inline enum parse_result parse_l4(struct __sk_buff *skb, struct packet *p)
{
	struct l4_ports *ports = l4_header(skb, p, 8);
	struct tcphdr *tcp;

	if (!ports)
		return PARSE_PASS;
	if (p->tuple.protocol == IPPROTO_ICMP || p->tuple.protocol == IPPROTO_ICMPV6) {
		p->icmp_type = *(__u8 *)ports;
		return PARSE_OK;
	}
	p->tuple.source_port = ports->source;
	p->tuple.destination_port = ports->destination;
	if (p->tuple.protocol == IPPROTO_TCP) {
		tcp = l4_header(skb, p, sizeof(*tcp));
		if (!tcp)
			return PARSE_PASS;
		p->tcp_flags = ((__u8 *)tcp)[13];
	}
	return PARSE_OK;
}

static __always_inline bool is_balanced_protocol(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP;
}

/* Makes the headers linear where a driver left them in fragments. */
static __always_inline void pull_headers(struct __sk_buff *skb, __u32 bytes)
{
	if (skb->len < bytes)
		bytes = skb->len;
	if ((void *)(long)skb->data + bytes > (void *)(long)skb->data_end)
		bpf_skb_pull_data(skb, bytes);
}

static __always_inline enum parse_result parse(struct __sk_buff *skb, struct packet *p)
{
	enum parse_result r;

	if (skb->protocol != bpf_htons(ETH_P_IP) && skb->protocol != bpf_htons(ETH_P_IPV6))
		return PARSE_PASS;
	pull_headers(skb, ETH_BYTES + IPV6_BYTES + 20);
	if (skb->protocol == bpf_htons(ETH_P_IP))
		r = parse_ipv4(skb, p);
	else
		r = parse_ipv6(skb, p);
	if (r != PARSE_OK)
		return r;
	if (!lengths_hold(skb, p))
		return PARSE_PASS;
	if (p->later_fragment) {
		fragment_ports(p);
		return PARSE_OK;
	}
	if (!is_balanced_protocol(p->tuple.protocol) && p->tuple.protocol != IPPROTO_ICMP &&
	    p->tuple.protocol != IPPROTO_ICMPV6)
		return PARSE_PASS;
	if (p->l4_offset > ETH_BYTES + IPV6_BYTES)
		pull_headers(skb, p->l4_offset + 20);
	r = parse_l4(skb, p);
	if (r == PARSE_OK && p->first_fragment && is_balanced_protocol(p->tuple.protocol))
		fragment_ports(p);
	return r;
}

#endif
