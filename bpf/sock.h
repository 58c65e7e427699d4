/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* The socket hooks: translate once, at connect() or sendmsg(), and answer
 * with the Service's address where the application asks who it talks to. */
#ifndef FAIRLEAD_SOCK_H
#define FAIRLEAD_SOCK_H

#include "lb.h"
#include "metrics.h"
#include "trace.h"

#define ECONNREFUSED 111

#define SOCK_REFUSE 0
#define SOCK_PROCEED 1

static __always_inline void sock_address(struct bpf_sock_addr *ctx, bool ipv6, struct address *a)
{
	__be32 words[4];

	if (!ipv6) {
		address_from_ipv4(a, ctx->user_ip4);
		return;
	}
	words[0] = ctx->user_ip6[0];
	words[1] = ctx->user_ip6[1];
	words[2] = ctx->user_ip6[2];
	words[3] = ctx->user_ip6[3];
	address_from_words(a, words);
}

static __always_inline void sock_set_address(struct bpf_sock_addr *ctx, bool ipv6, const struct address *a, __be16 port)
{
	if (ipv6) {
		ctx->user_ip6[0] = a->word[0];
		ctx->user_ip6[1] = a->word[1];
		ctx->user_ip6[2] = a->word[2];
		ctx->user_ip6[3] = a->word[3];
	} else {
		ctx->user_ip4 = a->word[3];
	}
	ctx->user_port = port;
}

/* bpf_set_retval (5.18) turns a refusal, which is EPERM, into ECONNREFUSED. */
static __always_inline bool can_say_why(void)
{
	return bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_set_retval);
}

static __always_inline int sock_refuse(__u32 reason)
{
	count_drop(reason);
	if (can_say_why())
		bpf_set_retval(-ECONNREFUSED);
	return SOCK_REFUSE;
}

/* The client of a socket is its network namespace's address, so that affinity
 * is one with the packet path's; until that is known, the namespace's cookie
 * under ff00::/8, which no client has as its address. */
static __always_inline void sock_client(struct bpf_sock_addr *ctx, bool ipv6, struct address *client)
{
	struct netns_key key = {.cookie = bpf_get_netns_cookie(ctx), .ipv6 = ipv6};
	struct address *known = bpf_map_lookup_elem(&netns_addresses, &key);

	if (known) {
		*client = *known;
		return;
	}
	client->word[0] = bpf_htonl(0xff000000 | ipv6);
	client->word[1] = 0;
	client->word[2] = key.cookie >> 32;
	client->word[3] = (__u32)key.cookie;
}

static __always_inline void mark_socket_used(__u32 backend)
{
	struct backend_state *s = bpf_map_lookup_elem(&backend_states, &backend);

	if (s && !s->socket_used)
		s->socket_used = 1;
}

/* Decides for one destination. REJECT carries the reason in *reason. */
static __always_inline enum verdict sock_decide(struct bpf_sock_addr *ctx, bool ipv6, const struct address *to,
						struct choice *c, __u32 *service, __u32 *reason)
{
	struct address client = {};
	struct node_settings *conf;
	enum verdict v;
	struct frontend f;

	if (!find_frontend(to, ctx->user_port, ctx->protocol, &f)) {
		if (!is_cluster_ip(to))
			return NOT_A_FRONTEND;
		*reason = DROP_UNKNOWN_PORT;
		return REJECT;
	}
	/* A pod's loopback is its own: only the node's processes reach a
	 * NodePort there. */
	if (address_is_loopback(to)) {
		conf = get_settings();
		if (!conf || conf->host_netns_cookie != bpf_get_netns_cookie(ctx))
			return NOT_A_FRONTEND;
	}
	/* Only the packet path knows the source address to check. */
	if (f.flags & FRONTEND_SOURCE_RANGES)
		return NOT_A_FRONTEND;
	if (f.affinity_seconds)
		sock_client(ctx, ipv6 && !address_is_ipv4(to), &client);
	*service = f.service;
	v = choose_backend(&f, &f.internal, &client, c);
	if (v == CHOSEN)
		return v;
	*reason = DROP_NO_BACKENDS;
	return REJECT;
}

static __always_inline void trace_socket(struct bpf_sock_addr *ctx, bool ipv6, const struct address *to, __be16 port,
					 const struct choice *c, __u32 service, enum verdict v, __u32 reason)
{
	struct trace_settings *settings = get_trace();
	__u8 kind = v != CHOSEN ? TRACE_REJECTED : c->by_affinity ? TRACE_AFFINITY : TRACE_NEW;
	struct trace_event *e;

	if (!settings || v == NOT_A_FRONTEND || !trace_wants(settings, kind, service))
		return;
	e = trace_reserve(settings);
	if (!e)
		return;
	e->kind = kind;
	sock_client(ctx, ipv6 && !address_is_ipv4(to), &e->client);
	e->frontend = *to;
	e->frontend_port = port;
	e->protocol = ctx->protocol;
	e->service = service;
	if (v == CHOSEN) {
		e->backend = c->address;
		e->backend_port = c->port;
	} else {
		e->reason = reason;
	}
	e->pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(e->comm, sizeof(e->comm));
	bpf_ringbuf_submit(e, 0);
}

static __always_inline int sock_connect(struct bpf_sock_addr *ctx, bool ipv6)
{
	struct address to;
	struct choice c = {};
	struct socket_flow *flow;
	__u32 service = TRACE_NO_SERVICE, reason = 0;
	enum verdict v;

	if (ctx->protocol != IPPROTO_TCP && ctx->protocol != IPPROTO_UDP && ctx->protocol != IPPROTO_SCTP)
		return SOCK_PROCEED;
	sock_address(ctx, ipv6, &to);
	v = sock_decide(ctx, ipv6, &to, &c, &service, &reason);
	trace_socket(ctx, ipv6, &to, ctx->user_port, &c, service, v, reason);
	switch (v) {
	case CHOSEN:
		break;
	default:
		if (can_say_why())
			return sock_refuse(reason);
		/* The packet path answers with RST or ICMP: ECONNREFUSED too. */
		__attribute__((fallthrough));
	case NOT_A_FRONTEND:
		/* A UDP socket may be connected again: forget what it was. */
		if (ctx->protocol == IPPROTO_UDP && ctx->sk)
			bpf_sk_storage_delete(&socket_flows, ctx->sk);
		return SOCK_PROCEED;
	}
	flow = ctx->sk ? bpf_sk_storage_get(&socket_flows, ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE) : 0;
	if (flow) {
		flow->frontend_address = to;
		flow->frontend_port = ctx->user_port;
		flow->backend_address = c.address;
		flow->backend_port = c.port;
		flow->backend = c.backend;
		flow->generation = c.generation;
	}
	mark_socket_used(c.backend);
	count_connection(service);
	sock_set_address(ctx, ipv6, &c.address, c.port);
	return SOCK_PROCEED;
}

/* A socket keeps its Backend for a Frontend while that exists, as a conntrack
 * entry would make it. */
static __always_inline bool datagram_known(struct bpf_sock_addr *ctx, bool ipv6, struct datagram_key *key)
{
	struct datagram_flow *known = bpf_map_lookup_elem(&datagrams, key);

	if (!known || !backend_exists(known->backend, known->generation))
		return false;
	sock_set_address(ctx, ipv6, &known->other, known->port);
	return true;
}

static __always_inline int sock_sendmsg(struct bpf_sock_addr *ctx, bool ipv6)
{
	struct datagram_key key = {};
	struct datagram_flow flow = {};
	struct choice c = {};
	struct address to;
	__u32 service = TRACE_NO_SERVICE, reason = 0;
	__be16 port = ctx->user_port;
	enum verdict v;

	sock_address(ctx, ipv6, &to);
	key.cookie = bpf_get_socket_cookie(ctx);
	key.peer = to;
	key.port = port;
	if (datagram_known(ctx, ipv6, &key))
		return SOCK_PROCEED;
	v = sock_decide(ctx, ipv6, &to, &c, &service, &reason);
	trace_socket(ctx, ipv6, &to, port, &c, service, v, reason);
	switch (v) {
	case NOT_A_FRONTEND:
		return SOCK_PROCEED;
	case CHOSEN:
		break;
	default:
		return sock_refuse(reason);
	}
	flow.other = c.address;
	flow.port = c.port;
	flow.backend = c.backend;
	flow.generation = c.generation;
	bpf_map_update_elem(&datagrams, &key, &flow, BPF_ANY);
	key.peer = c.address;
	key.port = c.port;
	key.reply = 1;
	flow.other = to;
	flow.port = port;
	bpf_map_update_elem(&datagrams, &key, &flow, BPF_ANY);
	count_connection(service);
	sock_set_address(ctx, ipv6, &c.address, c.port);
	return SOCK_PROCEED;
}

/* getpeername() and recvmsg(): the Backend's address becomes the Service's. */
static __always_inline bool sock_name_connected(struct bpf_sock_addr *ctx, bool ipv6, const struct address *from)
{
	struct socket_flow *flow = ctx->sk ? bpf_sk_storage_get(&socket_flows, ctx->sk, 0, 0) : 0;

	if (!flow || flow->backend_port != (__be16)ctx->user_port || !address_equal(&flow->backend_address, from))
		return false;
	sock_set_address(ctx, ipv6, &flow->frontend_address, flow->frontend_port);
	return true;
}

static __always_inline int sock_getpeername(struct bpf_sock_addr *ctx, bool ipv6)
{
	struct address from;

	sock_address(ctx, ipv6, &from);
	sock_name_connected(ctx, ipv6, &from);
	return SOCK_PROCEED;
}

static __always_inline int sock_recvmsg(struct bpf_sock_addr *ctx, bool ipv6)
{
	struct datagram_key key = {};
	struct datagram_flow *flow;
	struct address from;

	sock_address(ctx, ipv6, &from);
	if (sock_name_connected(ctx, ipv6, &from))
		return SOCK_PROCEED;
	key.cookie = bpf_get_socket_cookie(ctx);
	key.peer = from;
	key.port = ctx->user_port;
	key.reply = 1;
	flow = bpf_map_lookup_elem(&datagrams, &key);
	if (flow)
		sock_set_address(ctx, ipv6, &flow->other, flow->port);
	return SOCK_PROCEED;
}

#define SOCKET_HOOK(hook, call, is_ipv6)               \
	SEC("cgroup/" #hook)                           \
	int fairlead_##hook(struct bpf_sock_addr *ctx) \
	{                                              \
		return call(ctx, is_ipv6);             \
	}

SOCKET_HOOK(connect4, sock_connect, false)
SOCKET_HOOK(connect6, sock_connect, true)
SOCKET_HOOK(sendmsg4, sock_sendmsg, false)
SOCKET_HOOK(sendmsg6, sock_sendmsg, true)
SOCKET_HOOK(recvmsg4, sock_recvmsg, false)
SOCKET_HOOK(recvmsg6, sock_recvmsg, true)
SOCKET_HOOK(getpeername4, sock_getpeername, false)
SOCKET_HOOK(getpeername6, sock_getpeername, true)

#endif
