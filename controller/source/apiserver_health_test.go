// SPDX-License-Identifier: Apache-2.0

package source

import (
	"net"
	"net/url"
	"os"
	"syscall"
	"testing"
)

func TestAProblemThatLastsIsOneLineWhateverTheOwnPort(t *testing.T) {
	lost := func(port int) error {
		return &url.Error{Op: "Get", URL: "https://192.0.2.1:6443/api/v1/services?watch=true", Err: &net.OpError{
			Op: "read", Net: "tcp",
			Source: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 9), Port: port}, Addr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 6443},
			Err: os.NewSyscallError("read", syscall.ECONNRESET),
		}}
	}
	services := kind{resource: "services"}
	const want = "services: read tcp 192.0.2.1:6443: read: connection reset by peer; retrying"
	for _, port := range []int{40001, 40002} {
		if got := problemLine(services, lost(port)); got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
}
