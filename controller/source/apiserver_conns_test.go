// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"errors"
	"net"
	"testing"
)

func TestClosedConnsCloseWhatIsOpenAndRefuseWhatIsNew(t *testing.T) {
	var far []net.Conn
	pipe := func(context.Context, string, string) (net.Conn, error) {
		near, other := net.Pipe()
		far = append(far, other)
		return near, nil
	}
	c := &conns{}
	dial := c.dialWith(pipe)
	for range 2 {
		if _, err := dial(t.Context(), "tcp", ""); err != nil {
			t.Fatal(err)
		}
	}
	third, err := dial(t.Context(), "tcp", "")
	if err != nil {
		t.Fatal(err)
	}
	if err := third.Close(); err != nil {
		t.Fatal(err)
	}
	if len(c.open) != 2 {
		t.Errorf("%d connections are known, want 2", len(c.open))
	}
	c.close()
	for i, conn := range far {
		if _, err := conn.Write([]byte("x")); err == nil {
			t.Errorf("connection %d is open", i)
		}
	}
	if _, err := dial(t.Context(), "tcp", ""); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a dial after close returns %v, want net.ErrClosed", err)
	}
}
