/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* One's complement arithmetic (RFC 1624). Sums are in memory order, so no
 * byte swapping is needed. */
#ifndef FAIRLEAD_CSUM_H
#define FAIRLEAD_CSUM_H

#include <linux/types.h>

static __always_inline __u32 csum_fold32(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	return sum;
}

static __always_inline __u16 csum_fold16(__u64 sum)
{
	sum = csum_fold32(sum);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* What replacing one 32-bit word by another adds to a sum. */
static __always_inline __u64 csum_replaced(__be32 from, __be32 to)
{
	return (__u64)(__u32)~from + to;
}

static __always_inline __u64 csum_replaced_address(const struct address *from, const struct address *to)
{
	return csum_replaced(from->word[0], to->word[0]) + csum_replaced(from->word[1], to->word[1]) +
	       csum_replaced(from->word[2], to->word[2]) + csum_replaced(from->word[3], to->word[3]);
}

static __always_inline __u16 csum_apply(__u16 check, __u64 diff)
{
	return ~csum_fold16((__u64)(__u16)~check + diff);
}

#endif
