// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"fairlead.dev/dataplane"
	"fairlead.dev/dataplane/nsthread"
)

var (
	// swept is a Frontend whose Backends come and go, stable one whose stay.
	swept, stable = netip.MustParseAddrPort("10.96.0.53:53"), netip.MustParseAddrPort("10.96.0.54:53")
	// silent are Backends that take every packet and answer none.
	silent = []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")}
)

// space is a network namespace that no process is in.
type space struct{ file netns.NsHandle }

// newSpace makes one that is not mounted either.
func newSpace(t testing.TB) *space {
	t.Helper()
	s := &space{file: netns.None()}
	if err := nsthread.Run(func() (err error) { s.file, err = netns.New(); return err }); err != nil {
		t.Fatalf("make network namespace: %v", err)
	}
	t.Cleanup(func() { s.file.Close() })
	return s
}

func (s *space) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(s.file)) }

// do runs f in the namespace.
func (s *space) do(t testing.TB, f func() error) {
	t.Helper()
	if err := nsthread.In(s.file, f); err != nil {
		t.Fatal(err)
	}
}

// withSilence gives a namespace a way to the silent Backends.
func (s *space) withSilence(t testing.TB) *space {
	t.Helper()
	s.do(t, func() error {
		veth := netlink.NewVeth(netlink.LinkAttrs{Name: "near"})
		veth.PeerName = "far"
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		near, err := netlink.LinkByName("near")
		if err != nil {
			return err
		}
		far, err := netlink.LinkByName("far")
		if err != nil {
			return err
		}
		address, _ := netlink.ParseAddr("192.0.2.1/24")
		err = errors.Join(netlink.LinkSetUp(far), netlink.LinkSetUp(near), netlink.AddrAdd(near, address))
		for _, a := range silent {
			err = errors.Join(err, netlink.NeighAdd(&netlink.Neigh{
				LinkIndex: near.Attrs().Index, Family: netlink.FAMILY_V4, State: netlink.NUD_PERMANENT, IP: a.AsSlice(),
				HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 99}, // nobody's
			}))
		}
		return err
	})
	return s
}

// mounted mounts it as a container runtime does.
func (s *space) mounted(t testing.TB) *space {
	t.Helper()
	s.mount(t, fmt.Sprintf("fairlead-test-%d-%d", os.Getpid(), labs.Add(1)))
	return s
}

func (s *space) mount(t testing.TB, name string) (path string) {
	t.Helper()
	path = filepath.Join("/run/netns", name)
	err := os.MkdirAll("/run/netns", 0o755)
	if err == nil {
		err = os.WriteFile(path, nil, 0o444)
	}
	if err == nil {
		err = unix.Mount(s.path(), path, "", unix.MS_BIND, "")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { netns.DeleteNamed(name) })
	return path
}

// socket is one of the namespace, connected to a Frontend.
func (s *space) socket(t testing.TB, kind int, to netip.AddrPort) (fd int) {
	t.Helper()
	s.do(t, func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return connect(fd, to)
	})
	return fd
}

func connect(fd int, to netip.AddrPort) error {
	err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
	if errors.Is(err, unix.EINPROGRESS) {
		return nil
	}
	return err
}

// ended waits until each socket has an error, and counts those that have none.
// A poll() that waits would keep the sweeper from a lone processor.
func ended(sockets []int, within time.Duration) (alive int) {
	deadline := time.Now().Add(within)
	for _, fd := range sockets {
		for {
			p := []unix.PollFd{{Fd: int32(fd)}}
			if _, err := unix.Poll(p, 0); err == nil && p[0].Revents&unix.POLLERR != 0 {
				break
			}
			if time.Now().After(deadline) {
				alive++
				break
			}
			time.Sleep(100 * time.Microsecond)
		}
	}
	return alive
}

func closeSockets(sockets []int) {
	for _, fd := range sockets {
		unix.Close(fd)
	}
}

// flip gives the Frontend of both protocols the next of two Backends.
func flip(t testing.TB, d *Dataplane, at netip.AddrPort, i int) {
	t.Helper()
	b := dataplane.Backend{Address: silent[i%2], Port: 53}
	c := dataplane.Change{Services: map[dataplane.ServiceName]*dataplane.Service{}}
	for _, p := range []dataplane.Protocol{dataplane.UDP, dataplane.TCP} {
		s := clusterIP(fmt.Sprintf("%s-%s", p, at.Addr()), at.String(), p, b)
		c.Services[s.Name] = s
	}
	if err := d.Apply(context.Background(), c); err != nil {
		t.Fatal(err)
	}
}

// sweepers are a dataplane's ways to find what it has to end, of which none
// runs yet.
func sweepers(t testing.TB, d *Dataplane) map[string]*sweeper {
	t.Helper()
	if haveKfunc("bpf_sock_destroy") != nil {
		t.Skip("this kernel cannot end sockets (bpf_sock_destroy, 6.5)")
	}
	d.stop()
	d.workers.Wait()
	without := *d.programs
	without.FairleadSweepFind = nil
	s, err := newSweeper(&without, d.maps, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	out := map[string]*sweeper{"everywhere": s}
	if d.sweeper.find != nil {
		out["found"] = d.sweeper
	}
	return out
}

// keepRunning lets a sweeper run until the test ends. Closing the dataplane stops it.
func keepRunning(t testing.TB, s *sweeper) {
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.run(ctx) }()
	t.Cleanup(func() { stop(); <-done })
}

// eachWay runs a test with each way to find sockets, on a dataplane whose
// Frontends have their first Backend.
func eachWay(t *testing.T, f func(t *testing.T, d *Dataplane)) {
	for _, way := range []string{"everywhere", "found"} {
		t.Run(way, func(t *testing.T) {
			d := newLab(t).open()
			s := sweepers(t, d)[way]
			if s == nil {
				t.Skip("this kernel does not let socket storage be walked")
			}
			own := d.sweeper
			d.sweeper = s
			t.Cleanup(func() { d.sweeper = own })
			if _, err := d.Sync(t.Context(), table()); err != nil {
				t.Fatal(err)
			}
			flip(t, d, swept, 0)
			flip(t, d, stable, 0)
			f(t, d)
		})
	}
}

func TestASweepEndsSocketsInWhateverNamespaceTheyAre(t *testing.T) {
	eachWay(t, func(t *testing.T, d *Dataplane) {
		keepRunning(t, d.sweeper)
		inhabited, left, passed, busy := newSpace(t).withSilence(t), newSpace(t).withSilence(t).mounted(t), newSpace(t).withSilence(t).mounted(t), newSpace(t).withSilence(t).mounted(t)
		inhabited.inhabit(t)
		stale := map[string]int{
			"UDP in a namespace of a process":    inhabited.socket(t, unix.SOCK_DGRAM, swept),
			"UDP in a namespace of no process":   left.socket(t, unix.SOCK_DGRAM, swept),
			"UDP in a namespace of many sockets": busy.socket(t, unix.SOCK_DGRAM, swept),
			"TCP that is half open":              left.socket(t, unix.SOCK_STREAM, swept),
			"TCP in a namespace of a process":    inhabited.socket(t, unix.SOCK_STREAM, swept),
		}
		moved := busy.socket(t, unix.SOCK_DGRAM, swept)
		busy.do(t, func() error { return connect(moved, netip.AddrPortFrom(silent[0], 9)) })
		alive := map[string]int{
			"UDP to another Service":             busy.socket(t, unix.SOCK_DGRAM, stable),
			"UDP to the Backend itself":          busy.socket(t, unix.SOCK_DGRAM, netip.AddrPortFrom(silent[0], 53)),
			"UDP that was connected elsewhere":   moved,
			"half-open TCP to another Service":   left.socket(t, unix.SOCK_STREAM, stable),
			"half-open TCP to the Backend":       left.socket(t, unix.SOCK_STREAM, netip.AddrPortFrom(silent[0], 53)),
			"UDP of a namespace with no other":   newSpace(t).withSilence(t).mounted(t).socket(t, unix.SOCK_DGRAM, stable),
			"UDP to a Service, elsewhere passed": passed.socket(t, unix.SOCK_DGRAM, stable),
		}
		reader := readElsewhere(t, passed.socket(t, unix.SOCK_DGRAM, swept))

		flip(t, d, swept, 1)
		for what, fd := range stale {
			if ended([]int{fd}, 3*time.Second) > 0 {
				t.Errorf("%s: 3 s after its Backend was removed it goes on", what)
			}
		}
		if said := reader(3 * time.Second); !strings.Contains(said, "connection abort") {
			t.Errorf("the process that a socket was passed to says %q, want a connection abort", said)
		}
		for what, fd := range alive {
			if ended([]int{fd}, 0) == 0 {
				t.Errorf("%s: it was ended", what)
			}
			unix.Close(fd)
		}
		for _, fd := range stale {
			unix.Close(fd)
		}
	})
}

// readStdin is a process that reads once and says how that ended.
func readStdin() {
	_, err := os.Stdin.Read(make([]byte, 1))
	fmt.Print(err)
}

// startReader starts it in the namespace that the calling thread is in.
func startReader(t *testing.T, stdin *os.File) (said func(within time.Duration) string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	var out bytes.Buffer
	cmd.Env, cmd.Stdin, cmd.Stdout = append(os.Environ(), playsRole+"=reader"), stdin, &out
	if err := cmd.Start(); err != nil {
		t.Error(err)
		return func(time.Duration) string { return "" }
	}
	done := make(chan struct{})
	go func() { defer close(done); cmd.Wait() }()
	t.Cleanup(func() { cmd.Process.Kill(); <-done })
	return func(within time.Duration) string {
		select {
		case <-done:
			return out.String()
		case <-time.After(within):
			return "nothing yet"
		}
	}
}

// inhabit gives the namespace a process.
func (s *space) inhabit(t *testing.T) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	defer r.Close()
	s.do(t, func() error { startReader(t, r); return nil })
}

// readElsewhere leaves the only descriptor of a socket to a process of the
// machine's first network namespace. What that says when it ends is returned.
func readElsewhere(t *testing.T, fd int) (said func(within time.Duration) string) {
	t.Helper()
	unix.SetNonblock(fd, false)
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	if err := nsthread.Run(func() error { said = startReader(t, f); return nil }); err != nil {
		t.Fatal(err)
	}
	return said
}

// A socket marks its Backend as used after it has chosen it. Where that came
// too late for the Change, the Backend looks as if no socket had it.
func TestASocketThatWasChoosingWhenItsBackendWentIsEnded(t *testing.T) {
	d := newLab(t).open()
	if d.sweeper.find == nil {
		t.Skip("this kernel does not let socket storage be walked")
	}
	if _, err := d.Sync(t.Context(), table()); err != nil {
		t.Fatal(err)
	}
	flip(t, d, swept, 0)
	time.Sleep(sweepLooks[len(sweepLooks)-1] + 100*time.Millisecond) // the look for an agent before
	fd := newSpace(t).withSilence(t).mounted(t).socket(t, unix.SOCK_DGRAM, swept)
	defer unix.Close(fd)
	for i := range d.states {
		d.states[i].SocketUsed = 0
	}
	flip(t, d, swept, 1)
	if ended([]int{fd}, 3*time.Second) > 0 {
		t.Error("3 s after its Backend was removed it goes on")
	}
}

// BenchmarkSweep is from the Change that removes a Backend to the end of the
// last of eight sockets that were connected to it, in two of 100 namespaces.
// Each way to find them comes in turn, when its sweeper has rested.
func BenchmarkSweep(b *testing.B) {
	for name, kind := range map[string]int{"UDP": unix.SOCK_DGRAM, "TCP": unix.SOCK_STREAM} {
		b.Run(name, func(b *testing.B) {
			d := newLab(b).open()
			ways := sweepers(b, d)
			own := d.sweeper
			b.Cleanup(func() { d.sweeper = own })
			for _, s := range ways {
				keepRunning(b, s)
			}
			spaces := make([]*space, 100)
			for i := range spaces {
				spaces[i] = newSpace(b).withSilence(b).mounted(b)
			}
			if _, err := d.Sync(context.Background(), table()); err != nil {
				b.Fatal(err)
			}
			flip(b, d, swept, 0)
			time.Sleep(2 * time.Second) // the sweeps for an agent before
			took, flips := map[string][]time.Duration{}, 0
			for i := range b.N {
				for way, s := range ways {
					d.sweeper = s
					var sockets []int
					for k := range 8 {
						sockets = append(sockets, spaces[(37*i+50*(k%2))%100].socket(b, kind, swept))
					}
					flips++
					begin := time.Now()
					flip(b, d, swept, flips)
					if alive := ended(sockets, 10*time.Second); alive > 0 {
						b.Fatalf("%s: %d of 8 sockets were not ended", way, alive)
					}
					t := time.Since(begin)
					took[way] = append(took[way], t)
					closeSockets(sockets)
					time.Sleep(max(1200*time.Millisecond, (sweepRest+4)*t)) // its further looks, and its rest
				}
			}
			b.ReportMetric(0, "ns/op")
			for way, times := range took {
				slices.Sort(times)
				at := func(q float64) float64 {
					return float64(times[int(q*float64(len(times)-1))].Microseconds()) / 1000
				}
				b.ReportMetric(at(.5), way+"-p50-ms")
				b.ReportMetric(at(.99), way+"-p99-ms")
				if found := took["found"]; way == "everywhere" && len(found) > 0 {
					slices.Sort(found)
					b.ReportMetric(at(.5)*1000/float64(found[int(.5*float64(len(found)-1))].Microseconds()), "p50-ratio")
				}
			}
		})
	}
}
