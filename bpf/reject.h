/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Answers made here: TCP RST (RFC 9293, 3.5.2) and ICMP errors (RFC 792,
 * RFC 4443), sent back to where the packet came from. */
#ifndef FAIRLEAD_REJECT_H
#define FAIRLEAD_REJECT_H

#include "fib.h"

enum side {
	FROM_UPLINK, /* tc ingress of a device that leads out of the node */
	FROM_POD,    /* tc ingress of any other device */
	FROM_HOST,   /* tc egress: what the node itself sends */
};

static __always_inline int send_back(struct __sk_buff *skb, enum side side)
{
	skb->tc_index = handled_tc_index();
	return bpf_redirect(skb->ifindex, side == FROM_HOST ? BPF_F_INGRESS : 0);
}

static __always_inline int write_swapped_ethernet(struct __sk_buff *skb, struct ethhdr *eth)
{
	struct ethhdr old;

	if (bpf_skb_load_bytes(skb, 0, &old, sizeof(old)))
		return -1;
	__builtin_memcpy(eth->h_dest, old.h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, old.h_dest, ETH_ALEN);
	eth->h_proto = old.h_proto;
	return 0;
}

static __always_inline void build_ipv4(struct iphdr *ip, const struct tuple *to, __u8 protocol, __u16 bytes)
{
	__builtin_memset(ip, 0, sizeof(*ip));
	ip->version = 4;
	ip->ihl = 5;
	ip->tot_len = bpf_htons(bytes);
	ip->frag_off = bpf_htons(IPV4_DONT_FRAGMENT);
	ip->ttl = 64;
	ip->protocol = protocol;
	ip->saddr = to->destination.word[3];
	ip->daddr = to->source.word[3];
	ip->check = ~csum_fold16(bpf_csum_diff(0, 0, (__be32 *)ip, sizeof(*ip), 0));
}

static __always_inline void build_ipv6(struct ipv6hdr *ip, const struct tuple *to, __u8 protocol, __u16 payload_bytes)
{
	__builtin_memset(ip, 0, sizeof(*ip));
	ip->version = 6;
	ip->payload_len = bpf_htons(payload_bytes);
	ip->nexthdr = protocol;
	ip->hop_limit = 64;
	__builtin_memcpy(ip->saddr.in6_u.u6_addr32, to->destination.word, 16);
	__builtin_memcpy(ip->daddr.in6_u.u6_addr32, to->source.word, 16);
}

/* Sum of the pseudo header (RFC 9293, 3.1; RFC 8200, 8.1). Word 2 of an
 * IPv4-mapped address is not part of it. */
static __always_inline __u64 pseudo_sum(const struct tuple *t, bool ipv6, __u8 protocol, __u16 bytes)
{
	__u64 sum = (__u64)t->source.word[3] + t->destination.word[3] + bpf_htons(bytes) + bpf_htons(protocol);

	if (ipv6)
		sum += (__u64)t->source.word[0] + t->source.word[1] + t->source.word[2] + t->destination.word[0] +
		       t->destination.word[1] + t->destination.word[2];
	return sum;
}

/* Writes the headers in s->head over the packet's start and mends the TCP
 * checksum. The skb may be CHECKSUM_PARTIAL (its checksum is filled in later,
 * from a pseudo header sum), which tc can't see: so the pseudo sum is written,
 * and the helper, which knows, adds what makes it whole otherwise. */
static __always_inline int store_reset(struct __sk_buff *skb, struct scratch *s, __u32 ip_bytes, struct tcphdr *tcp)
{
	const struct packet *p = &s->packet;
	__u16 pseudo = csum_fold16(pseudo_sum(&p->tuple, p->ipv6, IPPROTO_TCP, sizeof(*tcp)));
	__u64 whole = (__u64)pseudo + csum_fold32(bpf_csum_diff(0, 0, (__be32 *)tcp, sizeof(*tcp), 0));

	tcp->check = pseudo;
	if (p->ipv6) {
		if (bpf_skb_store_bytes(skb, 0, s->head, ETH_BYTES + IPV6_BYTES, 0) ||
		    bpf_skb_store_bytes(skb, ETH_BYTES + IPV6_BYTES, tcp, sizeof(*tcp), 0))
			return -1;
	} else if (bpf_skb_store_bytes(skb, 0, s->head, ETH_BYTES + sizeof(struct iphdr), 0) ||
		   bpf_skb_store_bytes(skb, ETH_BYTES + sizeof(struct iphdr), tcp, sizeof(*tcp), 0)) {
		return -1;
	}
	/* check' = ~(~pseudo + diff) must be ~whole, so diff = whole + pseudo. */
	return bpf_l4_csum_replace(skb, ETH_BYTES + ip_bytes + 16, 0, csum_fold32(whole + pseudo), 0);
}

static __always_inline int answer_reset(struct __sk_buff *skb, struct scratch *s, enum side side)
{
	const struct packet *p = &s->packet;
	__u32 ip_bytes = p->ipv6 ? IPV6_BYTES : sizeof(struct iphdr), payload;
	struct tcphdr old, tcp = {};

	if (p->tcp_flags & TCP_RST || bpf_skb_load_bytes(skb, p->l4_offset, &old, sizeof(old)))
		return TC_ACT_SHOT;
	payload = p->ip_bytes - (p->l4_offset - ETH_BYTES) - old.doff * 4 + old.syn + old.fin;
	tcp.source = old.dest;
	tcp.dest = old.source;
	tcp.doff = sizeof(tcp) / 4;
	tcp.rst = 1;
	if (old.ack) {
		tcp.seq = old.ack_seq;
	} else {
		tcp.ack = 1;
		tcp.ack_seq = bpf_htonl(bpf_ntohl(old.seq) + payload);
	}
	if (write_swapped_ethernet(skb, (struct ethhdr *)s->head))
		return TC_ACT_SHOT;
	if (p->ipv6)
		build_ipv6((struct ipv6hdr *)(s->head + ETH_BYTES), &p->tuple, IPPROTO_TCP, sizeof(tcp));
	else
		build_ipv4((struct iphdr *)(s->head + ETH_BYTES), &p->tuple, IPPROTO_TCP, ip_bytes + sizeof(tcp));
	if (bpf_skb_change_tail(skb, ETH_BYTES + ip_bytes + sizeof(tcp), 0) || store_reset(skb, s, ip_bytes, &tcp))
		return TC_ACT_SHOT;
	return send_back(skb, side);
}

/* How much of the packet an error quotes: its IP header and what tells the
 * flow. TCP's whole header, since a checksum still to be filled in must not be
 * cut off. */
static __always_inline __u64 quote_bytes(const struct packet *p)
{
	return (__u64)p->l4_offset - ETH_BYTES + (p->tuple.protocol == IPPROTO_TCP ? 20 : 8);
}

struct icmp_header {
	__u8 type;
	__u8 code;
	__u16 checksum;
	__be32 rest; /* unused, or the MTU */
};

#define IPV6_MTU_MIN 1280 /* RFC 8200, 5 */
#define IPV4_MTU_MIN 576  /* RFC 791, 3.1: what every host takes */

/* Verifiers before 6.8 learn of a comparison only for the register it was made
 * in, and those before 5.16 forget a range when it is spilled. */
static __always_inline __u64 at_most(__u64 value, const __u64 max)
{
	asm volatile("if %0 <= %1 goto +1\n"
		     "%0 = %1"
		     : "+r"(value)
		     : "i"(max));
	return value;
}

/* Builds, in s->quote, the 8 bytes of an ICMP header and room for the quote. */
static __always_inline int load_quote(struct __sk_buff *skb, struct scratch *s, __u64 bytes, __u8 type, __u8 code,
				      __be32 rest)
{
	struct icmp_header *icmp = (struct icmp_header *)s->quote;
	__u64 sum = 0;

	__builtin_memset(s->quote, 0, sizeof(s->quote));
	if (bytes < QUOTE_BYTES_MIN || bytes > QUOTE_BYTES_MAX)
		return -1;
	bytes = QUOTE_BYTES_MIN + at_most(bytes - QUOTE_BYTES_MIN, QUOTE_BYTES_MAX - QUOTE_BYTES_MIN);
	if (bpf_skb_load_bytes(skb, ETH_BYTES, s->quote + 8, bytes))
		return -1;
	icmp->type = type;
	icmp->code = code;
	icmp->rest = rest;
	sum = csum_fold32(bpf_csum_diff(0, 0, (__be32 *)s->quote, sizeof(s->quote), 0));
	if (s->packet.ipv6)
		sum += pseudo_sum(&s->packet.tuple, true, IPPROTO_ICMPV6, bytes + 8);
	icmp->checksum = ~csum_fold16(sum);
	return 0;
}

static __always_inline int answer_icmp(struct __sk_buff *skb, struct scratch *s, enum side side, __u8 type, __u8 code,
				       __be32 rest)
{
	const struct packet *p = &s->packet;
	__u32 ip_bytes = p->ipv6 ? IPV6_BYTES : sizeof(struct iphdr);
	__u64 bytes = quote_bytes(p);

	/* RFC 1122, 3.2.2: never about a later fragment. */
	if (p->later_fragment || load_quote(skb, s, bytes, type, code, rest))
		return TC_ACT_SHOT;
	if (write_swapped_ethernet(skb, (struct ethhdr *)s->head))
		return TC_ACT_SHOT;
	if (p->ipv6)
		build_ipv6((struct ipv6hdr *)(s->head + ETH_BYTES), &p->tuple, IPPROTO_ICMPV6, bytes + 8);
	else
		build_ipv4((struct iphdr *)(s->head + ETH_BYTES), &p->tuple, IPPROTO_ICMP, ip_bytes + bytes + 8);
	if (bpf_skb_change_tail(skb, ETH_BYTES + bytes, 0) || bpf_skb_change_head(skb, ip_bytes + 8, 0))
		return TC_ACT_SHOT;
	if (p->ipv6) {
		if (bpf_skb_store_bytes(skb, 0, s->head, ETH_BYTES + IPV6_BYTES, 0) ||
		    bpf_skb_store_bytes(skb, ETH_BYTES + IPV6_BYTES, s->quote, 8, 0))
			return TC_ACT_SHOT;
	} else if (bpf_skb_store_bytes(skb, 0, s->head, ETH_BYTES + sizeof(struct iphdr), 0) ||
		   bpf_skb_store_bytes(skb, ETH_BYTES + sizeof(struct iphdr), s->quote, 8, 0)) {
		return TC_ACT_SHOT;
	}
	return send_back(skb, side);
}

static __always_inline int answer_unreachable(struct __sk_buff *skb, struct scratch *s, enum side side)
{
	if (s->packet.tuple.protocol == IPPROTO_TCP)
		return answer_reset(skb, s, side);
	if (s->packet.ipv6)
		return answer_icmp(skb, s, side, 1, 4, 0); /* port unreachable */
	return answer_icmp(skb, s, side, 3, 3, 0);
}

/* What to try where the kernel does not tell a path's MTU (before 5.12, as
 * bpf_check_mtu): the next of the sizes that most paths have (RFC 1191, 7.1). */
static __always_inline __u32 smaller_mtu(__u16 ip_bytes)
{
	if (ip_bytes > ETH_DATA_LEN)
		return ETH_DATA_LEN;
	return ip_bytes > IPV6_MTU_MIN ? IPV6_MTU_MIN : IPV4_MTU_MIN;
}

static __always_inline int answer_too_big(struct __sk_buff *skb, struct scratch *s, enum side side)
{
	__u32 mtu = s->fib.mtu_result;

	if (!bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_check_mtu))
		mtu = smaller_mtu(s->packet.ip_bytes);
	if (s->packet.ipv6)
		return answer_icmp(skb, s, side, 2, 0, bpf_htonl(mtu));
	return answer_icmp(skb, s, side, 3, 4, bpf_htonl(mtu & 0xffff));
}

#endif
