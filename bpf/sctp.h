/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* SCTP's checksum is a CRC32c over the whole packet (RFC 9260, 6.8), and the
 * packet is not at hand. But a CRC is linear: changing the ports changes it by
 * the CRC of their difference followed by as many zero bytes as the packet has
 * behind them, and zero bytes are a multiplication in GF(2)[x]. */
#ifndef FAIRLEAD_SCTP_H
#define FAIRLEAD_SCTP_H

#include "parse.h"

#define CRC32C_POLYNOMIAL 0x82f63b78 /* bits reversed */

/* crc32c_shift[n] is x^(8 * 2^n) modulo the polynomial: 2^n zero bytes. */
static const volatile __u32 crc32c_shift[16] = {0x00800000, 0x00008000, 0x82f63b78, 0x6ea2d55c, 0x18b8ea18, 0x510ac59a,
						0xb82be955, 0xb8fdb1e7, 0x88e56f72, 0x74c360a4, 0xe4172b16, 0x0d65762a,
						0x35d73a62, 0x28461564, 0xbf455269, 0xe2ea32dc};

static __always_inline __u32 crc32c_step(__u32 v)
{
	return (v >> 1) ^ (CRC32C_POLYNOMIAL & -(v & 1));
}

static __always_inline __u32 crc32c_multiply(__u32 a, __u32 b)
{
	__u32 product = 0;

	for (int i = 0; i < 32; i++) {
		product ^= b & -((a >> (31 - i)) & 1);
		b = crc32c_step(b);
	}
	return product;
}

static __always_inline __u32 little_endian32(__u32 v)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	return v;
#else
	return __builtin_bswap32(v);
#endif
}

/* A function of its own, which the verifier walks once for all its callers.
 * What changes in the checksum field (memory order) when the 32 bits of the
 * ports change by `ports` (exclusive or, memory order) in a packet of `bytes`. */
__noinline __u32 sctp_checksum_change(__u32 ports, __u32 bytes)
{
	__u32 crc = little_endian32(ports), zeros = bytes - sizeof(ports);

	for (int i = 0; i < 32; i++)
		crc = crc32c_step(crc);
	for (int n = 0; n < 16; n++) {
		if (zeros & (1 << n))
			crc = crc32c_multiply(crc32c_shift[n], crc);
	}
	return little_endian32(crc);
}

/* Mends the checksum of a packet whose ports change. A fragment's whole length
 * is not known here. -1 where it can't be done. */
static __always_inline int sctp_mend_checksum(struct __sk_buff *skb, const struct packet *p, __u32 old_ports,
					      __u32 new_ports)
{
	__u32 bytes = p->ip_bytes - (p->l4_offset - ETH_BYTES), sum;

	if (p->first_fragment || bytes < 12 || bytes > 0xffff)
		return -1;
	if (bpf_skb_load_bytes(skb, p->l4_offset + 8, &sum, sizeof(sum)))
		return -1;
	sum ^= sctp_checksum_change(old_ports ^ new_ports, bytes);
	return bpf_skb_store_bytes(skb, p->l4_offset + 8, &sum, sizeof(sum), 0);
}

#endif
