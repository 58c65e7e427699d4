//go:build ignore

// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* The floor that the packet path is measured against. */

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define HEADER_BYTES (ETH_HLEN + 20 + 20)

/* What each round starts from. */
struct fresh {
	__u8 header[56]; /* Ethernet, IPv4 and TCP: HEADER_BYTES of it */
	__u32 vary_port; /* 1: every round has another source port */
	__u32 rounds;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct fresh);
	__uint(max_entries, 1);
} fresh_packet SEC(".maps");

/* The program under test. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1);
} measured SEC(".maps");

/* A test run gives every round the packet as the round before left it, so this
 * puts back what a translation changed, and goes on to the measured program. */
SEC("tc")
int begin(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u32 zero = 0;
	struct fresh *f = bpf_map_lookup_elem(&fresh_packet, &zero);

	if (!f || data + HEADER_BYTES > end)
		return TC_ACT_SHOT;
	__builtin_memcpy(data, f->header, HEADER_BYTES);
	if (f->vary_port)
		*(__be16 *)(data + ETH_HLEN + 20) = bpf_htons(1024 + f->rounds++ % 64000);
	skb->tc_index = 0;
	bpf_tail_call(skb, &measured, 0);
	return TC_ACT_SHOT;
}

/* Nothing: what the measurement itself costs. */
SEC("tc")
int nothing(struct __sk_buff *skb)
{
	return skb->len ? TC_ACT_UNSPEC : TC_ACT_SHOT;
}

SEC("tc")
int bounce(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = data + ETH_HLEN;
	struct tcphdr *tcp;
	__u8 mac[ETH_ALEN];

	if ((void *)(ip + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP) || ip->protocol != IPPROTO_TCP || ip->ihl < 5)
		return TC_ACT_UNSPEC;
	tcp = (void *)ip + ip->ihl * 4;
	if ((void *)(tcp + 1) > end || tcp->doff < 5)
		return TC_ACT_UNSPEC;
	__builtin_memcpy(mac, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, mac, ETH_ALEN);
	return bpf_redirect(skb->ifindex, 0);
}

/* What tells a flow, as the smallest table of flows would have it. */
struct known_flow {
	__be32 source;
	__be32 destination;
	__be16 source_port;
	__be16 destination_port;
	__u32 protocol;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct known_flow);
	__type(value, __u32);
	__uint(max_entries, 1 << 16);
} known_flows SEC(".maps");

/* The least that forwards at all: it parses, finds the flow, asks for the route
 * and sends the packet there, unchanged. */
SEC("tc")
int bounce_routed(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = data + ETH_HLEN;
	struct bpf_fib_lookup fib = {};
	struct known_flow flow = {};
	struct tcphdr *tcp;

	if ((void *)(ip + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP) || ip->protocol != IPPROTO_TCP || ip->ihl < 5)
		return TC_ACT_UNSPEC;
	tcp = (void *)ip + ip->ihl * 4;
	if ((void *)(tcp + 1) > end || tcp->doff < 5)
		return TC_ACT_UNSPEC;
	flow.source = ip->saddr;
	flow.destination = ip->daddr;
	flow.source_port = tcp->source;
	flow.destination_port = tcp->dest;
	flow.protocol = ip->protocol;
	if (!bpf_map_lookup_elem(&known_flows, &flow))
		return TC_ACT_UNSPEC;
	fib.family = 2; /* AF_INET */
	fib.ifindex = skb->ifindex;
	fib.l4_protocol = ip->protocol;
	fib.tot_len = bpf_ntohs(ip->tot_len);
	fib.ipv4_src = ip->saddr;
	fib.ipv4_dst = ip->daddr;
	if (bpf_fib_lookup(skb, &fib, sizeof(fib), 0) != BPF_FIB_LKUP_RET_SUCCESS)
		return TC_ACT_UNSPEC;
	__builtin_memcpy(eth->h_dest, fib.dmac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, fib.smac, ETH_ALEN);
	return bpf_redirect(fib.ifindex, 0);
}

char _license[] SEC("license") = "Dual BSD/GPL";
