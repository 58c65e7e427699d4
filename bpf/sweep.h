/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Iterators that end sockets whose Backend no longer exists: connected UDP,
 * and TCP that has not been answered yet. After a Change removed a Backend that
 * a socket may have, the agent has the first tell in which network namespaces
 * such sockets are, and runs the others there: each walks the kernel's whole
 * table of sockets, and only they may end one. */
#ifndef FAIRLEAD_SWEEP_H
#define FAIRLEAD_SWEEP_H

#include "kernel.h"
#include "lb.h"

/* A socket that was connected anew elsewhere still carries the old flow: only
 * one whose peer port is the flow's is the flow's. */
static __always_inline bool is_stale(const struct sock_common *sk, __u8 protocol, const struct socket_flow *flow)
{
	if (protocol == IPPROTO_TCP ? sk->skc_state != TCP_SYN_SENT_STATE : protocol != IPPROTO_UDP)
		return false;
	return flow->backend_port == sk->skc_dport && !backend_exists(flow->backend, flow->generation);
}

/* What is told of each socket that is to be ended; read by hand in sweep.go. */
struct stale_socket {
	__u32 netns; /* inode number of its network namespace */
	__u32 protocol;
};

/* Visits every socket with a flow, in all network namespaces. */
SEC("iter/bpf_sk_storage_map")
int fairlead_sweep_find(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct stale_socket found = {};
	struct socket_flow *flow = ctx->value;
	struct sock *sk = ctx->sk;

	if (!sk || !flow || !is_stale(&sk->__sk_common, sk->sk_protocol, flow))
		return 0;
	found.netns = sk->__sk_common.skc_net.net->ns.inum;
	found.protocol = sk->sk_protocol;
	bpf_seq_write(ctx->meta->seq, &found, sizeof(found));
	return 0;
}

static __always_inline void end_if_stale(struct sock_common *sk, __u8 protocol)
{
	struct socket_flow *flow = sk ? bpf_sk_storage_get(&socket_flows, sk, 0, 0) : 0;

	if (flow && is_stale(sk, protocol, flow))
		bpf_sock_destroy(sk);
}

SEC("iter/udp")
int fairlead_sweep_udp(struct bpf_iter__udp *ctx)
{
	end_if_stale((struct sock_common *)ctx->udp_sk, IPPROTO_UDP);
	return 0;
}

SEC("iter/tcp")
int fairlead_sweep_tcp(struct bpf_iter__tcp *ctx)
{
	end_if_stale(ctx->sk_common, IPPROTO_TCP);
	return 0;
}

#endif
