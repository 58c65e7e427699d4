// SPDX-License-Identifier: Apache-2.0

package nfnetlink

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func message(kind, flags uint16, sequence, port uint32, payload ...byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.NLMSG_HDRLEN+len(payload)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = binary.NativeEndian.AppendUint32(b, sequence)
	b = binary.NativeEndian.AppendUint32(b, port)
	b = append(b, payload...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func TestADatagramIsItsMessagesUpToOneThatIsCutShort(t *testing.T) {
	first, second := Message{Kind: 1, Flags: 2, Sequence: 3, Port: 4, Payload: []byte{5}}, Message{Kind: 6, Payload: []byte{}}
	whole := append(message(1, 2, 3, 4, 5), message(6, 0, 0, 0)...)
	for _, tc := range []struct {
		name string
		b    []byte
		want []Message
		cut  bool
	}{
		{"nothing", nil, nil, false},
		{"two", whole, []Message{first, second}, false},
		{"a rest too short for a header", append(whole[:len(whole):len(whole)], 1, 2, 3), []Message{first, second}, false},
		{"a size beyond the datagram", append(whole[:len(whole):len(whole)], message(7, 0, 0, 0, 1, 2, 3, 4)[:unix.NLMSG_HDRLEN]...), []Message{first, second}, true},
		{"a size below a header's", make([]byte, unix.NLMSG_HDRLEN), nil, true},
	} {
		var got []Message
		cut := false
		for m, err := range Messages(tc.b) {
			if cut = err != nil; !cut {
				got = append(got, m)
			}
		}
		if diff := cmp.Diff(tc.want, got); diff != "" || cut != tc.cut {
			t.Errorf("%s: cut short: %t, want %t; messages (-want +got):\n%s", tc.name, cut, tc.cut, diff)
		}
	}
}

func TestAttributesAreReadAsTheyWereWrittenUpToOneThatIsCutShort(t *testing.T) {
	b := AppendAttribute(nil, 1|unix.NLA_F_NESTED, AppendAttribute(nil, 2, []byte{1, 2, 3, 4}))
	b = AppendAttribute(b, 3, []byte{9})
	b = append(b, 200, 0, 0, 0)
	var got []string
	for kind, v := range Attributes(b) {
		got = append(got, fmt.Sprint(kind, v))
		for kind, v := range Attributes(v) {
			got = append(got, fmt.Sprint(kind, Uint32(v)))
		}
	}
	if diff := cmp.Diff([]string{"1 [8 0 2 0 1 2 3 4]", "2 16909060", "3 [9]"}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
