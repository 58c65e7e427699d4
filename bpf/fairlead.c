//go:build ignore

// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* All of fairlead's programs in one object, so that they share their maps. */

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "age.h"
#include "sock.h"
#include "sweep.h"
#include "tc.h"

char _license[] SEC("license") = "Dual BSD/GPL";
