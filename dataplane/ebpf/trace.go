// SPDX-License-Identifier: Apache-2.0

package ebpf

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"fairlead.dev/bpf"
	"fairlead.dev/dataplane"
)

// Tracer listens to the programs that an agent attached.
type Tracer struct {
	maps  map[string]*ebpf.Map
	names map[uint32]portID
	lock  *os.File
}

var _ dataplane.Tracer = (*Tracer)(nil)

// Flags and enums of bpf/layout.h.
const (
	traceOnlyDrops    = 1 << 0
	traceOnlyServices = 1 << 1
	traceKnownFlows   = 1 << 2

	traceNoService = 0xffffffff
)

var (
	traceKinds = [...]string{1: dataplane.DecisionNew, dataplane.DecisionAffinity, dataplane.DecisionKnown, dataplane.DecisionRejected, dataplane.DecisionDropped}
	traceSides = [...]string{"", "uplink", "pod", "host"}
)

// listenFor is how long the programs take a listener for alive that says
// nothing more, and renewEvery how often it does.
const (
	listenFor  = 3 // seconds
	renewEvery = time.Second
)

// OpenTracer opens what an agent pinned below bpffs. There is one listener at
// a time.
func OpenTracer(bpffs string) (*Tracer, error) {
	o := Options{BPFFS: bpffs}.withDefaults()
	t := &Tracer{maps: map[string]*ebpf.Map{}}
	for _, name := range []string{"services", "trace_events", "trace_listener", "trace_counts", "trace_services"} {
		path := filepath.Join(o.pinDir(), "maps", name)
		m, err := ebpf.LoadPinnedMap(path, nil)
		if err != nil {
			t.Close()
			if errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("no %s is pinned in %s: start `fairlead run` of this version or give the agent's --bpffs", name, o.pinDir())
			}
			return nil, fmt.Errorf("open pinned map %s: %w", path, err)
		}
		t.maps[name] = m
	}
	var err error
	if t.lock, err = os.Open(filepath.Join(o.pinDir(), "maps")); err == nil {
		err = unix.Flock(int(t.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		t.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.New("another fairlead trace listens on this node: stop it first")
		}
		return nil, fmt.Errorf("lock %s: %w", o.pinDir(), err)
	}
	return t, nil
}

// Close stops listening.
func (t *Tracer) Close() error {
	closeMaps(t.maps)
	if t.lock != nil {
		return t.lock.Close()
	}
	return nil
}

// Trace implements dataplane.Tracer.
func (t *Tracer) Trace(ctx context.Context, o dataplane.TraceOptions, each func(dataplane.Decision)) (lost uint64, err error) {
	in, err := ringbuf.NewReader(t.maps["trace_events"])
	if err != nil {
		return 0, fmt.Errorf("read trace events: %w", err)
	}
	defer in.Close()
	mem, err := mapArray(t.maps["trace_counts"], unix.PROT_READ)
	if err != nil {
		return 0, err
	}
	defer unix.Munmap(mem)
	lostNow := func() uint64 { return atomic.LoadUint64(&sliceOf[bpf.FairleadTraceCount](mem, 1)[0].Lost) }
	if err := drainTrace(in); err != nil {
		return 0, err
	}
	before := lostNow()
	defer func() {
		lost = lostNow() - before
		err = errors.Join(err, t.listen(bpf.FairleadTraceSettings{}))
	}()
	return 0, t.hear(ctx, o, in, each)
}

// drainTrace drops what an earlier listener left unread.
func drainTrace(in *ringbuf.Reader) error {
	var r ringbuf.Record
	for in.AvailableBytes() > 0 {
		in.SetDeadline(time.Now())
		if err := in.ReadInto(&r); errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read trace events: %w", err)
		}
	}
	return nil
}

func (t *Tracer) hear(ctx context.Context, o dataplane.TraceOptions, in *ringbuf.Reader, each func(dataplane.Decision)) error {
	stop := context.AfterFunc(ctx, func() { in.SetDeadline(time.Now()) })
	defer stop()
	var renewed time.Time
	var r ringbuf.Record
	for ctx.Err() == nil {
		if time.Since(renewed) >= renewEvery {
			renewed = time.Now()
			if err := t.choose(o); err != nil {
				return err
			}
			if err := t.listen(settingsOf(o)); err != nil {
				return err
			}
			in.SetDeadline(renewed.Add(renewEvery))
			if ctx.Err() != nil { // its deadline may have been replaced just now
				return nil
			}
		}
		err := in.ReadInto(&r)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read trace events: %w", err)
		}
		if len(r.RawSample) < int(unsafe.Sizeof(bpf.FairleadTraceEvent{})) {
			return fmt.Errorf("trace event of %d bytes: the agent is of another version", len(r.RawSample))
		}
		each(t.decode((*bpf.FairleadTraceEvent)(unsafe.Pointer(&r.RawSample[0]))))
	}
	return nil
}

// settingsOf is what the programs are told.
func settingsOf(o dataplane.TraceOptions) bpf.FairleadTraceSettings {
	s := bpf.FairleadTraceSettings{UntilSeconds: monotonicSeconds() + listenFor, PerSecond: o.PerSecond}
	if o.OnlyDrops {
		s.Flags |= traceOnlyDrops
	}
	if o.Wants != nil {
		s.Flags |= traceOnlyServices
	}
	if o.KnownFlows {
		s.Flags |= traceKnownFlows
	}
	return s
}

func (t *Tracer) listen(s bpf.FairleadTraceSettings) error {
	if err := t.maps["trace_listener"].Put(uint32(0), &s); err != nil {
		return fmt.Errorf("write map trace_listener: %w", err)
	}
	return nil
}

// choose reads the names anew, and tells the programs which are wanted.
func (t *Tracer) choose(o dataplane.TraceOptions) error {
	var err error
	if t.names, err = readNames(t.maps["services"]); err != nil {
		return err
	}
	if o.Wants == nil {
		return nil
	}
	wanted := map[uint32]bool{}
	for id, n := range t.names {
		if o.Wants(n.service, n.portName) {
			wanted[id] = true
		}
	}
	m := t.maps["trace_services"]
	var gone []uint32
	err = eachEntry(m, func(id uint32, _ *uint8) {
		if !wanted[id] {
			gone = append(gone, id)
		}
		delete(wanted, id)
	})
	for _, id := range gone {
		err = errors.Join(err, m.Delete(id))
	}
	for id := range wanted {
		if e := m.Put(id, uint8(1)); isFull(e) {
			return fmt.Errorf("%d Service ports are asked for: trace fewer, or all", len(wanted))
		} else if e != nil {
			err = errors.Join(err, e)
		}
	}
	if err != nil {
		return fmt.Errorf("write map trace_services: %w", err)
	}
	return nil
}

// decode puts an event into words.
func (t *Tracer) decode(e *bpf.FairleadTraceEvent) dataplane.Decision {
	d := dataplane.Decision{
		Time:     time.Now().Add(time.Duration(int64(e.TimeNs) - monotonicNanoseconds())),
		Path:     "tc",
		Protocol: dataplane.Protocol(e.Protocol).String(),
		Client:   tracedAddress(e.Client, e.ClientPort), Frontend: tracedAddress(e.Frontend, e.FrontendPort),
		Masquerade: e.Flags&conntrackMasquerade != 0,
	}
	if int(e.Kind) < len(traceKinds) {
		d.Kind = traceKinds[e.Kind]
	}
	if int(e.Path) < len(traceSides) {
		d.From = traceSides[e.Path]
	}
	if e.Path == 0 {
		d.Path, d.PID, d.Command = "socket", e.Pid, cString(e.Comm[:])
	}
	if e.Backend != (bpf.FairleadAddress{}) {
		d.Backend = tracedAddress(e.Backend, e.BackendPort)
	}
	if e.Service != traceNoService {
		n := t.names[e.Service]
		d.Service, d.PortName = n.service.String(), n.portName
	}
	if d.Kind == dataplane.DecisionRejected || d.Kind == dataplane.DecisionDropped {
		if int(e.Reason) < len(dropReasons) {
			d.Reason = dropReasons[e.Reason]
		}
	}
	return d
}

// tracedAddress is the zero AddrPort for the cookie of a network namespace
// whose address is not known yet (bpf/sock.h).
func tracedAddress(a bpf.FairleadAddress, port uint16) netip.AddrPort {
	address := decodeAddress(a)
	if b := address.As16(); address.Is6() && b[0] == 0xff {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(address, swap16(port))
}
