// SPDX-License-Identifier: Apache-2.0

package ebpf

// dropReasons are the values of the reason label, in the order of enum
// drop_reason in bpf/layout.h.
var dropReasons = [...]string{
	"no_backends",
	"no_local_backends",
	"unknown_port",
	"source_range",
	"conntrack_full",
	"masquerade_ports_exhausted",
	"no_masquerade_address",
	"fragment",
	"malformed",
	"no_conntrack",
	"no_route",
	"too_big",
	"sctp_checksum",
}
