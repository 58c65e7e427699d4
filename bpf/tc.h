/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* The per-packet path: traffic from outside, from pods that do not pass the
 * socket hooks, to NodePorts and external addresses, and their replies. */
#ifndef FAIRLEAD_TC_H
#define FAIRLEAD_TC_H

#include "icmp.h"
#include "trace.h"

/* Rewrites a packet the way s->entry says, once it is known that it fits the
 * path. */
static __always_inline enum outcome translate(struct __sk_buff *skb, struct scratch *s, enum side side,
					      enum route *route)
{
	struct packet *p = &s->packet;
	bool step_ttl;

	/* The node's own answers are routed already: only their source changes. */
	*route = side == FROM_HOST && (s->entry.flags & CONNTRACK_REPLY) ? ROUTE_LOCAL : find_route(skb, s);
	s->reason = DROP_NO_ROUTE;
	if (*route == ROUTE_NONE)
		return DROP_PACKET;
	/* What the node sends to a Backend of its own would leave by the wrong
	 * device, and can't be put in again: its source is the node's. */
	if (*route == ROUTE_LOCAL && side == FROM_HOST && !(s->entry.flags & CONNTRACK_REPLY))
		return DROP_PACKET;
	if (*route == ROUTE_STACK)
		*route = ROUTE_LOCAL;
	if (*route == ROUTE_TOO_BIG) {
		if (p->dont_fragment)
			return TOO_BIG;
		*route = ROUTE_LOCAL; /* the stack fragments it */
	}
	/* A packet at the end of its life is left to the stack, which says so. */
	if (side != FROM_HOST && p->ttl <= 1)
		*route = ROUTE_LOCAL;
	step_ttl = side != FROM_HOST && *route != ROUTE_LOCAL;
	if (*route == ROUTE_LOCAL && side != FROM_HOST && (s->entry.flags & CONNTRACK_REPLY))
		*route = find_way_in(skb, s);
	s->reason = p->tuple.protocol == IPPROTO_SCTP ? DROP_SCTP_CHECKSUM : DROP_MALFORMED;
	if (rewrite(skb, p, &s->entry, step_ttl))
		return DROP_PACKET;
	count_packet(s->entry.service, s->entry.flags & CONNTRACK_REPLY, skb->len);
	return SEND;
}

static __always_inline bool is_internal_source(const struct address *a)
{
	struct prefix_key key = {.prefix_bits = 128, .address = *a};

	return bpf_map_lookup_elem(&internal_sources, &key) != 0;
}

static __always_inline bool is_allowed_source(__u32 service, const struct address *a)
{
	struct source_range_key key = {.prefix_bits = 160, .service = service, .address = *a};

	return bpf_map_lookup_elem(&source_ranges, &key) != 0;
}

/* Whether the Backend must see this node instead of the client: where the
 * Service says so, where the reply would not come back this way, and where the
 * client would be answering itself. A host network Backend answers through
 * this node's egress whoever asked. */
static __always_inline bool must_masquerade(const struct frontend *f, const struct tuple *t, const struct choice *c,
					    enum side side, bool internal)
{
	if (c->flags & SLOT_HOST_NETWORK)
		return false;
	if (address_equal(&t->source, &c->address))
		return true;
	if (side != FROM_UPLINK)
		return false;
	if (!internal && (f->flags & FRONTEND_MASQUERADE_EXTERNAL))
		return true;
	return !(c->flags & SLOT_LOCAL);
}

/* Enters both halves of the flow that s->entry describes. 0 or a drop reason
 * + 1. */
static __always_inline int enter_flow(struct scratch *s, const struct node_settings *conf)
{
	int failed = enter_reply(s, conf);

	if (failed)
		return failed;
	if (!bpf_map_update_elem(&conntrack, &s->packet.tuple, &s->entry, BPF_ANY))
		return 0;
	bpf_map_delete_elem(&conntrack, &s->key);
	return DROP_CONNTRACK_FULL + 1;
}

/* Describes a new flow, to s->choice, in s->entry. */
static __always_inline void describe_flow(struct scratch *s, __u32 service)
{
	const struct tuple *t = &s->packet.tuple;
	struct conntrack_entry *e = &s->entry;

	__builtin_memset(e, 0, sizeof(*e));
	e->source = t->source;
	e->source_port = t->source_port;
	e->destination = s->choice.address;
	e->destination_port = s->choice.port;
	e->service = service;
	e->backend = s->choice.backend;
	e->generation = s->choice.generation;
	e->last_seen_seconds = e->created_seconds = now_seconds();
}

/* A Frontend's new flow. 0 or a drop reason + 1. */
static __always_inline int enter_service_flow(struct scratch *s, const struct frontend *f, enum side side,
					      bool internal)
{
	struct node_settings *conf = get_settings();
	struct conntrack_entry *e = &s->entry;
	int failed;

	if (!conf)
		return DROP_NO_MASQUERADE_ADDRESS + 1;
	describe_flow(s, f->service);
	if (internal)
		e->flags |= CONNTRACK_INTERNAL;
	if (must_masquerade(f, &s->packet.tuple, &s->choice, side, internal)) {
		e->flags |= CONNTRACK_MASQUERADE;
		e->source = s->packet.ipv6 ? conf->node_ipv6 : conf->node_ipv4;
		if (address_is_zero(&e->source))
			return DROP_NO_MASQUERADE_ADDRESS + 1;
	}
	failed = enter_flow(s, conf);
	if (!failed)
		count_connection(f->service);
	return failed;
}

/* What becomes of a TCP segment that belongs to no flow. */
static __always_inline enum outcome unknown_flow(void)
{
	struct node_settings *conf = get_settings();

	return conf && (conf->flags & SETTINGS_LEAVE_UNKNOWN_FLOWS) ? LEAVE : REJECT_PACKET;
}

static __always_inline enum outcome begin_flow(struct scratch *s, const struct frontend *f, enum side side)
{
	const struct tuple *t = &s->packet.tuple;
	const struct backend_set *set = &f->internal;
	bool internal = side != FROM_UPLINK || is_internal_source(&t->source);
	int failed;

	if (!internal)
		set = &f->external;
	s->service = f->service;
	s->reason = DROP_SOURCE_RANGE;
	if ((f->flags & FRONTEND_SOURCE_RANGES) && !is_allowed_source(f->service, &t->source))
		return DROP_PACKET;
	s->reason = DROP_NO_CONNTRACK;
	if (t->protocol == IPPROTO_TCP && (s->packet.tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST)) != TCP_SYN)
		return unknown_flow();
	switch (choose_backend(f, set, &t->source, &s->choice)) {
	case CHOSEN:
		break;
	case DROP:
		s->reason = DROP_NO_LOCAL_BACKENDS;
		return DROP_PACKET;
	default:
		s->reason = DROP_NO_BACKENDS;
		return REJECT_PACKET;
	}
	s->decided = s->choice.by_affinity ? TRACE_AFFINITY : TRACE_NEW;
	failed = enter_service_flow(s, f, side, internal);
	s->reason = failed - 1;
	return failed ? DROP_PACKET : TRANSLATE;
}

/* A packet of no Service that begins a connection from a port which one of our
 * flows to the same Backend has: the Backend could not tell them apart, nor
 * could its answers be. It becomes a flow of its own, with another port, or
 * takes the place of one that is over. */
static __always_inline enum outcome keep_apart(struct scratch *s)
{
	const struct tuple *t = &s->packet.tuple;
	struct node_settings *conf = get_settings();
	struct conntrack_entry *taken;
	struct tuple other;
	int failed;

	if (!conf || !is_flow_port(conf, bpf_ntohs(t->source_port)))
		return LEAVE;
	tuple_reverse(t, &s->key);
	taken = bpf_map_lookup_elem(&conntrack, &s->key);
	if (!taken || !(taken->flags & CONNTRACK_REPLY))
		return LEAVE;
	if (taken->flags & CONNTRACK_CLOSING && taken->flags & CONNTRACK_PEER_CLOSING) {
		conntrack_delete(&s->key, taken, &other);
		return LEAVE;
	}
	s->choice.address = t->destination;
	s->choice.port = t->destination_port;
	s->choice.backend = taken->backend;
	s->choice.generation = taken->generation;
	describe_flow(s, taken->service);
	failed = enter_flow(s, conf);
	s->reason = failed - 1;
	return failed ? DROP_PACKET : TRANSLATE;
}

/* A packet of no known flow. */
static __always_inline enum outcome decide_new(struct scratch *s, enum side side)
{
	const struct tuple *t = &s->packet.tuple;
	bool found;

	if (!is_host_source(&t->source))
		return LEAVE;
	found = find_frontend(&t->destination, t->destination_port, t->protocol, &s->frontend);
	s->reason = DROP_FRAGMENT;
	if (s->packet.later_fragment)
		return found ? DROP_PACKET : LEAVE;
	if (found)
		return begin_flow(s, &s->frontend, side);
	if (t->protocol == IPPROTO_TCP && (s->packet.tcp_flags & (TCP_SYN | TCP_ACK)) != TCP_SYN)
		return LEAVE;
	s->reason = DROP_UNKNOWN_PORT;
	return is_cluster_ip(&t->destination) ? REJECT_PACKET : keep_apart(s);
}

static __always_inline enum outcome decide(struct scratch *s, enum side side)
{
	struct conntrack_entry *e = bpf_map_lookup_elem(&conntrack, &s->packet.tuple);

	s->reason = DROP_CONNTRACK_FULL;
	if (e && conntrack_is_over(&s->packet, e, &s->key)) {
		if (!conntrack_delete(&s->packet.tuple, e, &s->key))
			return DROP_PACKET;
		e = 0;
	}
	/* Once a second is often enough: a half goes in a full map only. */
	if (e && e->last_seen_seconds != now_seconds() && !conntrack_is_whole(s, e)) {
		if (!conntrack_remove(&s->packet.tuple))
			return DROP_PACKET;
		e = 0;
	}
	if (!e)
		return decide_new(s, side);
	conntrack_update(&s->packet, e, &s->key);
	s->entry = *e;
	s->service = e->service;
	s->decided = TRACE_KNOWN;
	return TRANSLATE;
}

static __always_inline enum outcome handle(struct __sk_buff *skb, struct scratch *s, enum side side, enum route *route)
{
	enum outcome o;

	__builtin_memset(&s->packet, 0, sizeof(s->packet));
	s->service = TRACE_NO_SERVICE;
	s->decided = 0;
	if (parse(skb, &s->packet) != PARSE_OK)
		return LEAVE;
	s->reason = DROP_FRAGMENT;
	if (s->packet.ports_unknown)
		return is_cluster_ip(&s->packet.tuple.destination) ? DROP_PACKET : LEAVE;
	if (!is_balanced_protocol(s->packet.tuple.protocol))
		return is_icmp_error(&s->packet) ? translate_icmp_error(skb, s, side, route) : LEAVE;
	o = decide(s, side);
	return o == TRANSLATE ? translate(skb, s, side, route) : o;
}

/* What became of a packet, in the words of `fairlead trace`; 0: nothing. */
static __always_inline __u8 trace_kind_of(const struct scratch *s, enum outcome o)
{
	if (o == DROP_PACKET || o == TOO_BIG)
		return TRACE_DROPPED;
	if (o == REJECT_PACKET)
		return TRACE_REJECTED;
	return o == SEND ? s->decided : 0;
}

static __always_inline void trace_packet(struct scratch *s, enum side side, enum outcome o)
{
	struct trace_settings *settings = get_trace();
	const struct tuple *t = &s->packet.tuple;
	struct trace_event *e;
	__u8 kind;

	if (!settings)
		return;
	kind = trace_kind_of(s, o);
	if (!kind || !trace_wants(settings, kind, s->service))
		return;
	e = trace_reserve(settings);
	if (!e)
		return;
	e->kind = kind;
	e->path = side == FROM_UPLINK ? TRACE_UPLINK : side == FROM_POD ? TRACE_POD : TRACE_HOST;
	e->client = t->source;
	e->client_port = t->source_port;
	e->frontend = t->destination;
	e->frontend_port = t->destination_port;
	e->protocol = t->protocol;
	e->service = s->service;
	if (s->decided) {
		e->backend = s->entry.destination;
		e->backend_port = s->entry.destination_port;
		e->flags = s->entry.flags;
	}
	if (kind == TRACE_DROPPED || kind == TRACE_REJECTED)
		e->reason = o == TOO_BIG ? DROP_TOO_BIG : s->reason;
	bpf_ringbuf_submit(e, 0);
}

static __always_inline int handle_packet(struct __sk_buff *skb, enum side side)
{
	struct scratch *s = get_scratch();
	enum route route = ROUTE_LOCAL;
	enum outcome o;

	/* What is merely forwarded was seen at its ingress; what is tagged comes
	 * again by its VLAN's device; what is for another host is not ours. (A
	 * port of a bridge sees what is between its pods.) */
	if (!s || skb->tc_index == handled_tc_index() || (side == FROM_HOST && skb->ingress_ifindex) ||
	    (skb->vlan_present && (skb->vlan_tci & 0xfff)) || (side == FROM_UPLINK && skb->pkt_type != PACKET_HOST))
		return TC_ACT_UNSPEC;
	o = handle(skb, s, side, &route);
	trace_packet(s, side, o);
	switch (o) {
	case SEND:
		return route == ROUTE_LOCAL ? TC_ACT_UNSPEC : send_on(skb, s, route);
	case DROP_PACKET:
		count_drop(s->reason);
		return TC_ACT_SHOT;
	case REJECT_PACKET:
		count_drop(s->reason);
		return answer_unreachable(skb, s, side);
	case TOO_BIG:
		count_drop(DROP_TOO_BIG);
		return answer_too_big(skb, s, side);
	default:
		return TC_ACT_UNSPEC;
	}
}

SEC("tc")
int fairlead_from_uplink(struct __sk_buff *skb)
{
	return handle_packet(skb, FROM_UPLINK);
}

SEC("tc")
int fairlead_from_pod(struct __sk_buff *skb)
{
	return handle_packet(skb, FROM_POD);
}

SEC("tc")
int fairlead_from_host(struct __sk_buff *skb)
{
	return handle_packet(skb, FROM_HOST);
}

#endif
