// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// mendTable holds rules against what IPVS does to answers as long as it knows
// connections of kube-proxy's time. It finds them by client and Backend alone,
// and gives an answer the address of the Service that these two last met by,
// also where a younger socket with the same port asked the Backend itself, as
// sockets do that eBPF connects.
const mendTable = "fairlead-ipvs-answers"

// behindIPVS is a priority after IPVS (100) and the kernel's NAT (100).
const behindIPVS = 110

// dnatDone is IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h.
const dnatDone = 1 << 5

// mend adds the rules, or nothing where they are.
func mend() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		t := c.AddTable(&nftables.Table{Name: mendTable, Family: family})
		for name, hook := range map[string]*nftables.ChainHook{"input": nftables.ChainHookInput, "forward": nftables.ChainHookForward} {
			chain := c.AddChain(&nftables.Chain{Name: name, Table: t, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityRef(behindIPVS)})
			c.FlushChain(chain)
			for _, a := range answerKinds {
				c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: a.mended(family)})
			}
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("add nftables table %s: %w", mendTable, err)
	}
	return nil
}

// answerKind is what a rule is for.
type answerKind struct {
	protocol   byte
	checksumAt uint32 // in the header
	checksum   []expr.Any
	sum        expr.PayloadCsumType
}

// Datagrams of IPv4 may have no checksum, which the kernel would take for one.
var (
	datagramSum = &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 6, Len: 2}
	answerKinds = []answerKind{
		{unix.IPPROTO_TCP, 16, nil, expr.CsumTypeInet},
		{unix.IPPROTO_UDP, 6, []expr.Any{datagramSum, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0, 0}}}, expr.CsumTypeInet},
		{unix.IPPROTO_UDP, 6, []expr.Any{datagramSum, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0, 0}}}, expr.CsumTypeNone},
	}
)

// mended gives answers to a flow that nobody else translates the source that
// the flow asked.
func (a *answerKind) mended(family nftables.TableFamily) []expr.Any {
	address := &expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseNetworkHeader,
		Offset: 12, Len: 4, CsumType: expr.CsumTypeInet, CsumOffset: 10, CsumFlags: unix.NFT_PAYLOAD_L4CSUM_PSEUDOHDR}
	if family == nftables.TableFamilyIPv6 {
		// IPv6 has no checksum of its own, and the library does not ask for those of
		// TCP and UDP without one: this one is where the address is then written.
		address.Offset, address.Len, address.CsumOffset = 8, 16, 8
	}
	const original, reply = 0, 1
	return slices.Concat([]expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{a.protocol}},
	}, a.checksum, []expr.Any{
		&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{reply}},
		&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(dnatDone), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: make([]byte, 4)},
		&expr.Ct{Key: expr.CtKeyDST, Direction: original, Register: 1},
		address,
		&expr.Ct{Key: expr.CtKeyPROTODST, Direction: original, Register: 1},
		&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseTransportHeader, Len: 2,
			CsumType: a.sum, CsumOffset: a.checksumAt},
	})
}

// Cleanup removes the one thing that a take-over which did not end leaves beside
// the Dataplane's. It says what it removed.
func Cleanup() (removed []string, err error) {
	tables, err := findTables(mendTable)
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = nil
	}
	for _, t := range tables {
		if rerr := t.remove(); rerr != nil {
			err = errors.Join(err, rerr)
			continue
		}
		removed = append(removed, t.String())
	}
	return removed, err
}
