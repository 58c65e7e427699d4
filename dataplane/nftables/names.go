// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"fmt"
	"strconv"
	"strings"

	"fairlead.dev/dataplane"
)

// names is what a Frontend's element says about it in its comment, for dump and
// for who lists the table with nft:
//
//	default/web ClusterIP port=http affinity=10800
type names struct {
	service         string
	kind            dataplane.Kind
	portName        string
	affinitySeconds uint32
}

// comments gives the text, and what of it did not fit one comment: that is a
// comment on the Frontend's action. Only a hostPort of a Pod can have so long a
// name.
func comments(service dataplane.ServiceName, f *dataplane.Frontend) (first, rest string, err error) {
	var b strings.Builder
	b.Grow(64)
	b.WriteString(service.Namespace)
	b.WriteByte('/')
	b.WriteString(service.Name)
	b.WriteByte(' ')
	b.WriteString(f.Kind.String())
	if f.PortName != "" {
		b.WriteString(" port=")
		b.WriteString(f.PortName)
	}
	if f.AffinitySeconds > 0 {
		b.WriteString(" affinity=")
		b.WriteString(strconv.FormatUint(uint64(f.AffinitySeconds), 10))
	}
	s := b.String()
	switch {
	case len(s) > 2*commentMax:
		return "", "", fmt.Errorf("names of Frontend %s have %d bytes, more than nf_tables stores: %d", f.FrontendKey, len(s), 2*commentMax)
	case len(s) > commentMax:
		return s[:commentMax], s[commentMax:], nil
	}
	return s, "", nil
}

// parseNames is the inverse of comments.
func parseNames(s string) (n names, ok bool) {
	parts := strings.Split(s, " ")
	if len(parts) < 2 {
		return n, false
	}
	n.service = parts[0]
	for k := dataplane.ClusterIP; k <= dataplane.HostPort; k++ {
		if k.String() == parts[1] {
			n.kind = k
		}
	}
	for _, p := range parts[2:] {
		if v, found := strings.CutPrefix(p, "port="); found {
			n.portName = v
		} else if v, found := strings.CutPrefix(p, "affinity="); found {
			seconds, err := strconv.ParseUint(v, 10, 32)
			if err != nil {
				return n, false
			}
			n.affinitySeconds = uint32(seconds)
		}
	}
	return n, n.kind != 0
}
