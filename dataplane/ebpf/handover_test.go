// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
)

func TestADrainingDataplaneKeepsItsSocketsAndDecidesNothingNew(t *testing.T) {
	if haveKfunc("bpf_sock_destroy") != nil {
		t.Skip("this kernel cannot end sockets (bpf_sock_destroy, 6.5)")
	}
	l := newLab(t)
	server, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	dns := clusterIP("dns", "10.96.0.10:53", dataplane.UDP, backends(server.LocalAddr().String())...)
	ctx, tab := context.Background(), table(dns)
	d, err := New(ctx, l.options)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Sync(ctx, tab); err != nil {
		t.Fatal(err)
	}
	before, err := dial("udp4", "10.96.0.10:53")
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	if err := d.Close(); err != nil { // the agent of before ends
		t.Fatal(err)
	}

	old := NewDraining(l.options)
	if err := old.Begin(ctx, tab); err != nil {
		t.Fatal(err)
	}
	if draining, err := IsDraining(l.options); err != nil || !draining {
		t.Errorf("readers are told that it drains: %t, %v", draining, err)
	}
	if got := before.RemoteAddr().String(); got != "10.96.0.10:53" {
		t.Errorf("while draining a socket of before says its peer is %s", got)
	}
	if _, err := before.Write([]byte("x")); err != nil {
		t.Errorf("while draining a socket of before cannot write: %v", err)
	}
	if c, err := dial("udp4", "10.96.0.10:53"); err == nil {
		c.Close()
		t.Errorf("while draining a new socket still reached %s, by its Service", c.RemoteAddr())
	}
	if carries, err := old.Carries(); err != nil || carries {
		t.Errorf("Carries: %t, %v; sockets need no dataplane", carries, err)
	}

	if err := old.End(ctx); err != nil {
		t.Fatal(err)
	}
	before.SetDeadline(time.Now().Add(time.Second))
	if _, err := before.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) {
		t.Errorf("the socket of before reads %v, want ECONNABORTED: it would stay with its Backend for ever", err)
	}
	if present, err := Present(l.options); err != nil || present {
		t.Errorf("present after its end: %t, %v", present, err)
	}
}
