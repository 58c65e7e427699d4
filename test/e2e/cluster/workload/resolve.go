// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// answerWithin is what a resolver waits before it asks once more.
const answerWithin = time.Second

// resolve NAME FULL-NAME ADDRESS SECONDS looks the name up as programs do, by
// /etc/resolv.conf, and must find the address. For the time given it asks for
// the full name over a connected socket, as NGINX does, and says what came.
func resolve(args []string) error {
	if len(args) != 4 {
		return errors.New("want a name, the full name, the address and how long")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	found, err := (&net.Resolver{PreferGo: true}).LookupHost(ctx, args[0])
	if err != nil || !slices.Contains(found, args[2]) {
		return fmt.Errorf("%s is %v (%w), want %s", args[0], found, err, args[2])
	}
	conf, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return err
	}
	fields := strings.Fields(string(conf))
	i := slices.Index(fields, "nameserver")
	if i < 0 || i+1 == len(fields) {
		return fmt.Errorf("no nameserver in %q", conf)
	}
	last, err := time.ParseDuration(args[3] + "s")
	if err != nil {
		return err
	}
	fmt.Println("READY")
	return keepAsking(net.JoinHostPort(fields[i+1], "53"), args[1], net.ParseIP(args[2]), last)
}

// keepAsking holds its socket for as long as that answers. An error has it open
// another and ask once more, as NGINX does: so ends a socket whose server went.
func keepAsking(server, name string, want net.IP, last time.Duration) error {
	c, err := net.Dial("udp", server)
	if err != nil {
		return err
	}
	defer func() { c.Close() }()
	asked, again, failed := 0, 0, 0
	for end := time.Now().Add(last); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		asked++
		err := askOnce(c, uint16(asked), name, want)
		if err == nil {
			continue
		}
		again++
		fmt.Println(time.Now().Format(time.StampMilli), "asks again:", err)
		c.Close()
		if c, err = net.Dial("udp", server); err != nil {
			return err
		}
		if err := askOnce(c, uint16(asked), name, want); err != nil {
			failed++
			fmt.Println(time.Now().Format(time.StampMilli), "failed:", err)
		}
	}
	fmt.Printf("asked %d again %d failed %d\n", asked, again, failed)
	return nil
}

func askOnce(c net.Conn, id uint16, name string, want net.IP) error {
	n, err := dnsmessage.NewName(name)
	if err != nil {
		return err
	}
	q := dnsmessage.Message{Header: dnsmessage.Header{ID: id}, Questions: []dnsmessage.Question{{Name: n, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	b, err := q.Pack()
	if err != nil {
		return err
	}
	if err := c.SetDeadline(time.Now().Add(answerWithin)); err != nil {
		return err
	}
	if _, err := c.Write(b); err != nil {
		return err
	}
	var buffer [1500]byte
	for {
		got, err := c.Read(buffer[:])
		if err != nil {
			return err
		}
		var m dnsmessage.Message
		if err := m.Unpack(buffer[:got]); err != nil {
			return err
		}
		if m.ID != id {
			continue // to a question that was asked again
		}
		if len(m.Answers) == 1 {
			if a, ok := m.Answers[0].Body.(*dnsmessage.AResource); ok && net.IP(a.A[:]).Equal(want) {
				return nil
			}
		}
		return fmt.Errorf("%v: %v", m.RCode, m.Answers)
	}
}
