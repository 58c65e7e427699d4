/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Iterators that end sockets whose Backend no longer exists: connected UDP,
 * and TCP that has not been answered yet. The agent runs them in each network
 * namespace after a Change removed a Backend that a socket may have. */
#ifndef FAIRLEAD_SWEEP_H
#define FAIRLEAD_SWEEP_H

#include "kernel.h"
#include "lb.h"

/* A socket that was connected anew elsewhere still carries the old flow: only
 * one whose peer port is the flow's is the flow's. */
static __always_inline bool is_stale(struct sock_common *sk)
{
	struct socket_flow *flow = bpf_sk_storage_get(&socket_flows, sk, 0, 0);

	return flow && flow->backend_port == sk->skc_dport && !backend_exists(flow->backend, flow->generation);
}

SEC("iter/udp")
int fairlead_sweep_udp(struct bpf_iter__udp *ctx)
{
	struct sock_common *sk = (struct sock_common *)ctx->udp_sk;

	if (sk && is_stale(sk))
		bpf_sock_destroy(sk);
	return 0;
}

SEC("iter/tcp")
int fairlead_sweep_tcp(struct bpf_iter__tcp *ctx)
{
	struct sock_common *sk = ctx->sk_common;

	if (sk && sk->skc_state == TCP_SYN_SENT_STATE && is_stale(sk))
		bpf_sock_destroy(sk);
	return 0;
}

#endif
