// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	mobyipvs "github.com/moby/ipvs"
	"golang.org/x/sys/unix"
)

func TestConnectionsOfIPVSAreReadAsTheKernelWritesThem(t *testing.T) {
	const text = `Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData
TCP 0AF40109 A455 0A60000A 0050 0AF40102 1F90 ESTABLISHED     899
UDP FD00:0010:0244:0001:0000:0000:0000:0009 A455 FD00:0096:0000:0000:0000:0000:0000:0010 0035 FD00:0000:0000:0000:0000:0000:0000:0002 1F75 UDP             271
TCP 0AF40109 0000 0A60000A 0050 0AF40102 1F90 NONE              12
???  nonsense
`
	var got []connection
	err := eachConnection(strings.NewReader(strings.ReplaceAll(text, "FD00", "fd00")), func(c connection) bool {
		got = append(got, c)
		return true
	})
	want := []connection{
		{unix.IPPROTO_TCP, netip.MustParseAddrPort("10.244.1.9:42069"), netip.MustParseAddrPort("10.96.0.10:80"), "ESTABLISHED", 899 * time.Second},
		{unix.IPPROTO_UDP, netip.MustParseAddrPort("[fd00:10:244:1::9]:42069"), netip.MustParseAddrPort("[fd00:96::10]:53"), "UDP", 271 * time.Second},
		{unix.IPPROTO_TCP, netip.MustParseAddrPort("10.244.1.9:0"), netip.MustParseAddrPort("10.96.0.10:80"), "NONE", 12 * time.Second},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(connection{}), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); err != nil || diff != "" {
		t.Errorf("%v; (-want +got):\n%s", err, diff)
	}
}

// carrier is a virtual server of kube-proxy's of TCP and UDP with a client of its
// own, and kube-proxy's settings.
func carrier(t *testing.T) *Leftovers {
	t.Helper()
	besideIPVS(t, "10.244.1.9", "10.244.1.2")
	for _, name := range []string{"conntrack", "expire_nodest_conn", "expire_quiescent_template"} {
		do(t, os.WriteFile("/proc/sys/net/ipv4/vs/"+name, []byte("1"), 0))
	}
	virtualServer(t, "10.96.0.10:80", 0, "10.244.1.2:8080")
	v := &mobyipvs.Service{Address: net.IPv4(10, 96, 0, 10), Port: 53, Protocol: unix.IPPROTO_UDP, SchedName: "rr", AddressFamily: unix.AF_INET, Netmask: 0xffffffff}
	do(t, withIPVS(func(h *mobyipvs.Handle) error {
		if err := h.NewService(v); err != nil {
			return err
		}
		return h.NewDestination(v, &mobyipvs.Destination{Address: net.IPv4(10, 244, 1, 2), Port: 8053, Weight: 1,
			ConnectionFlags: mobyipvs.ConnectionFlagMasq, AddressFamily: unix.AF_INET})
	}))
	echo(t, "10.244.1.2:8080")
	names(t, "10.244.1.2:8053")
	l, err := Find(t.Context())
	do(t, err)
	return l
}

// from is a socket of an address; port 0 is any. Its port may be used again.
func from(network, address string, port int) *net.Dialer {
	d := &net.Dialer{Timeout: 1500 * time.Millisecond, KeepAlive: -1, Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
	}}
	if network == "udp4" {
		d.LocalAddr = &net.UDPAddr{IP: net.ParseIP(address), Port: port}
	} else {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(address), Port: port}
	}
	return d
}

// ofThoseIPVSKnows is all that IPVS knows, for a failure.
func ofThoseIPVSKnows(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("/proc/thread-self/net/ip_vs_conn")
	do(t, err)
	return string(text)
}

// carries fails the test where the answer is another.
func carries(t *testing.T, l *Leftovers, want bool, when string) {
	t.Helper()
	if got, err := l.Carries(); err != nil || got != want {
		t.Errorf("%s: carries %t, %v; want %t. IPVS knows\n%s", when, got, err, want, ofThoseIPVSKnows(t))
	}
}

// idle lets the emulated machine's clock go on, which costs nothing.
func idle(t *testing.T, d time.Duration) {
	t.Helper()
	if testing.Short() {
		t.Skip("waits for minutes of an emulated machine's time")
	}
	time.Sleep(d)
}

func TestOfIPVSSilentDatagramsHoldNothing(t *testing.T) {
	l := carrier(t)
	c, err := from("udp4", "10.244.1.9", 0).Dial("udp4", "10.96.0.10:53")
	do(t, err)
	defer c.Close()
	_, err = whoAnswers(c)
	do(t, err)
	_, err = l.Withdraw(t.Context())
	do(t, err)
	carries(t, l, true, "right after an answer")
	for range 2 {
		idle(t, datagramIdle-5*time.Second)
		_, err = whoAnswers(c)
		do(t, err)
		carries(t, l, true, "asked every 25 s")
	}
	idle(t, datagramIdle+5*time.Second)
	carries(t, l, false, "silent for 35 s")
}

func TestOfIPVSDatagramsOfTheNodesOwnSocketsHoldWhileTheseAreOpen(t *testing.T) {
	l := carrier(t)
	c, err := net.Dial("udp4", "10.96.0.10:53")
	do(t, err)
	if own := c.LocalAddr().(*net.UDPAddr).IP.String(); own != "10.96.0.10" {
		t.Fatalf("a socket of the node speaks from %s, not from the ClusterIP", own)
	}
	_, err = whoAnswers(c)
	do(t, err)
	_, err = l.Withdraw(t.Context())
	do(t, err)
	idle(t, datagramIdle+5*time.Second)
	carries(t, l, true, "silent for 35 s with an open socket, whose address goes with the device")
	c.Close()
	carries(t, l, false, "silent for 35 s without a socket")
}

func TestOfIPVSConnectionsThatMayGoOnHold(t *testing.T) {
	l := carrier(t)
	d := from("tcp4", "10.244.1.9", 0)
	silent, err := d.Dial("tcp4", "10.96.0.10:80")
	do(t, err, echoes(silent))
	_, err = l.Withdraw(t.Context())
	do(t, err)
	idle(t, 5*time.Minute)
	carries(t, l, true, "an established connection that is silent for 5 min")
	do(t, echoes(silent))
	do(t, silent.(*net.TCPConn).CloseWrite())
	if _, err := io.ReadAll(silent); err != nil { // echo closes with it
		t.Error(err)
	}
	carries(t, l, false, "closed on both sides")
}

func TestOfIPVSAHalfClosedConnectionHolds(t *testing.T) {
	carrier(t)
	late, err := net.Listen("tcp4", "10.244.1.2:8081")
	do(t, err)
	defer late.Close()
	virtualServer(t, "10.96.0.10:81", 0, "10.244.1.2:8081")
	l, err := Find(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c, err := from("tcp4", "10.244.1.9", 0).Dial("tcp4", "10.96.0.10:81")
	do(t, err)
	defer c.Close()
	s, err := late.Accept()
	do(t, err)
	do(t, c.(*net.TCPConn).CloseWrite()) // a request that ends so
	_, err = l.Withdraw(t.Context())
	do(t, err)
	idle(t, 30*time.Second)
	carries(t, l, true, "a client that has closed its side and waits for the answer")
	_, err = s.Write([]byte("x\n"))
	do(t, err, s.Close())
	if n, err := c.Read(make([]byte, 2)); err != nil || n != 2 {
		t.Errorf("the answer to a half-closed connection: %d bytes, %v", n, err)
	}
	idle(t, time.Second)
	carries(t, l, false, "after the answer")
}

func TestOfIPVSEndedConnectionsNeitherHoldNorTakeAnswersOnceItIsGone(t *testing.T) {
	l := carrier(t)
	d := from("tcp4", "10.244.1.9", 4711)
	old, err := d.Dial("tcp4", "10.96.0.10:80")
	do(t, err, echoes(old), old.Close())
	_, err = l.Withdraw(t.Context())
	do(t, err)
	if c, err := d.Dial("tcp4", "10.244.1.2:8080"); err == nil {
		c.Close()
		t.Fatalf("IPVS does not take the answer of the Backend for one of the older connection. It knows\n%s", ofThoseIPVSKnows(t))
	}
	carries(t, l, false, "an ended connection, with an answer to a younger socket")
	_, err = l.Remove()
	do(t, err)
	young, err := d.Dial("tcp4", "10.244.1.2:8080")
	if err != nil {
		t.Fatalf("a younger socket with the port of an ended connection: %v. IPVS knows\n%s", err, ofThoseIPVSKnows(t))
	}
	do(t, echoes(young), young.Close())
}
