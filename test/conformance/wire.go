// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"net/netip"
	"os"
	"strconv"
	"time"
)

// request is one question to a server of the lab, and how to ask it.
type request struct {
	// Protocol is "TCP", "UDP" or "SCTP" (over a raw socket).
	Protocol string
	To       netip.AddrPort
	// From is bound before connecting; the zero value lets the kernel choose.
	From netip.AddrPort
	// Reuse allows several sockets with one From.
	Reuse bool
	// Unconnected sends a datagram with sendto instead of connect and send.
	Unconnected bool
	// Mapped uses an IPv6 socket and the IPv4-mapped form of To.
	Mapped bool
	// Size pads the question, ReplySize the answer, to that many bytes (UDP).
	Size, ReplySize int
	// Upload and Download move that many bytes of a known pattern over TCP.
	Upload, Download int
	// Options are put into the IP header of every packet: "hopopts" or
	// "dstopts" for IPv6 extension headers, "nop" for IPv4 options.
	Options string
	// Timeout covers connecting and each answer. 0: answerWithin.
	Timeout time.Duration
	// Times repeats the request (0: once), Parallel that many at a time.
	Times, Parallel int
	// Hold keeps each of Times connections open until all are answered.
	Hold bool
}

// answer is what a server says of a request it got.
type answer struct {
	// Backend is the name of the process that answered.
	Backend string
	// Local and Remote are the server's and the client's address as the
	// server sees them.
	Local, Remote netip.AddrPort
	// Bytes were received, and Sum is their checksum (datagrams and uploads).
	Bytes int
	Sum   uint32
}

// outcome is what came of one request.
type outcome struct {
	answer
	// Failure is empty where an answer came: see failures.
	Failure string
	// Detail is the error behind Failure.
	Detail string
	// Peer is what getpeername answered, Source where the answer came from
	// (unconnected datagrams), Self the client's own address.
	Peer, Source, Self netip.AddrPort
	// Corrupt: payload arrived changed.
	Corrupt bool
	// SYNsAgain counts SYNs that were sent again, a second after the first.
	SYNsAgain int
	Elapsed   time.Duration
}

// The values of outcome.Failure.
const (
	refused     = "refused"     // ECONNREFUSED: RST, ICMP port unreachable, or a socket hook
	timedOut    = "timed out"   // nothing came back
	unreachable = "unreachable" // ICMP network or host unreachable, or no route
	reset       = "reset"       // RST on an established connection
	aborted     = "aborted"     // the socket was destroyed
	tooBig      = "too big"     // EMSGSIZE
	failed      = "failed"      // anything else: see Detail
)

// call is one command to a process, reply what it answers with the same ID.
type call struct {
	ID     uint64
	Op     string
	Handle string
	// Listen has the addresses to serve at, for the op "serve".
	Listen  []netip.AddrPort
	Request request
}

type reply struct {
	ID       uint64
	Outcomes []outcome
	Error    string
}

// The ops of a call.
const (
	opServe = "serve" // listen at Listen, TCP and UDP
	opAsk   = "ask"   // do Request, report one outcome for each time
	opOpen  = "open"  // connect and ask once, keep the connection as Handle
	opAgain = "again" // ask again over the connection Handle
	opClose = "close" // close the connection Handle
)

// slowness is how many times longer things may take here than on a machine
// that is not emulated: FAIRLEAD_CONFORMANCE_SLOWNESS, 1 to 100.
var slowness = func() time.Duration {
	n, err := strconv.Atoi(os.Getenv("FAIRLEAD_CONFORMANCE_SLOWNESS"))
	if err != nil || n < 1 || n > 100 {
		return 1
	}
	return time.Duration(n)
}()

var (
	// answerWithin is how long a request may take. Answers come in well under
	// a millisecond; machines are shared and noisy.
	answerWithin = 2 * time.Second * slowness
	// silentFor is how long nothing must come back where packets are dropped.
	// Many times what an answer takes; too short could only miss one.
	silentFor = 75 * time.Millisecond * slowness
	// atOnce bounds a refusal. A refusal that needs a retransmitted SYN takes
	// a second, one that needs a timeout takes longer.
	atOnce = min(250*time.Millisecond*slowness, 950*time.Millisecond)
	// movedWithin is how long after a Change a socket that is connected to a
	// removed Backend may still reach it: a Dataplane has to find it first, on
	// a busy machine (6 to 46 ms were measured).
	movedWithin = 500 * time.Millisecond * slowness
)
