/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#ifndef FAIRLEAD_ADDRESS_H
#define FAIRLEAD_ADDRESS_H

#include "layout.h"

#define MAPPED_WORD bpf_htonl(0x0000ffff)

static __always_inline void address_from_ipv4(struct address *a, __be32 ipv4)
{
	a->word[0] = 0;
	a->word[1] = 0;
	a->word[2] = MAPPED_WORD;
	a->word[3] = ipv4;
}

static __always_inline void address_from_words(struct address *a, const __be32 *words)
{
	a->word[0] = words[0];
	a->word[1] = words[1];
	a->word[2] = words[2];
	a->word[3] = words[3];
}

static __always_inline bool address_is_ipv4(const struct address *a)
{
	return !(a->word[0] | a->word[1] | (a->word[2] ^ MAPPED_WORD));
}

/* Without branches: each would double what the verifier has to follow. */
static __always_inline bool address_equal(const struct address *a, const struct address *b)
{
	return !((a->word[0] ^ b->word[0]) | (a->word[1] ^ b->word[1]) | (a->word[2] ^ b->word[2]) |
		 (a->word[3] ^ b->word[3]));
}

static __always_inline bool address_is_zero(const struct address *a)
{
	return !(a->word[0] | a->word[1] | a->word[2] | a->word[3]);
}

/* 127.0.0.0/8 or ::1 */
static __always_inline bool address_is_loopback(const struct address *a)
{
	if (address_is_ipv4(a))
		return (a->word[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return a->word[0] == 0 && a->word[1] == 0 && a->word[2] == 0 && a->word[3] == bpf_htonl(1);
}

/* Whether an answer to this source could reach a host: not the unspecified
 * address, loopback, multicast or broadcast (RFC 1122, 3.2.2; RFC 4443, 2.4). */
static __always_inline bool is_host_source(const struct address *a)
{
	if (address_is_ipv4(a))
		return a->word[3] && !address_is_loopback(a) && bpf_ntohl(a->word[3]) < 0xe0000000;
	return !address_is_zero(a) && !address_is_loopback(a) && (bpf_ntohl(a->word[0]) >> 24) != 0xff;
}

#endif
