// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"fmt"
	"strings"
	"time"

	mobyipvs "github.com/moby/ipvs"
)

// timeoutsNote is the index of the note of what timeouts were there.
const timeoutsNote = 100

// applyTimeouts sets the timeouts of Options, and notes what was there.
func (d *Dataplane) applyTimeouts() error {
	o := d.options
	want := mobyipvs.Config{TimeoutTCP: o.TCPTimeout, TimeoutTCPFin: o.TCPFinTimeout, TimeoutUDP: o.UDPTimeout}
	if want == (mobyipvs.Config{}) {
		return nil
	}
	was, err := d.kernel.timeouts()
	if err != nil {
		return err
	}
	if (want.TimeoutTCP == 0 || want.TimeoutTCP == was.TimeoutTCP) && (want.TimeoutTCPFin == 0 || want.TimeoutTCPFin == was.TimeoutTCPFin) &&
		(want.TimeoutUDP == 0 || want.TimeoutUDP == was.TimeoutUDP) {
		return nil
	}
	note := fmt.Sprintf("timeouts %d %d %d", seconds(was.TimeoutTCP), seconds(was.TimeoutTCPFin), seconds(was.TimeoutUDP))
	if err := d.remember(timeoutsNote, note); err != nil {
		return err
	}
	return d.kernel.setTimeouts(want)
}

func seconds(d time.Duration) int { return int(d / time.Second) }

func (k *kernel) timeouts() (mobyipvs.Config, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c, err := k.handle.GetConfig()
	if err != nil {
		return mobyipvs.Config{}, fmt.Errorf("read timeouts of IPVS: %w", err)
	}
	return *c, nil
}

func (k *kernel) setTimeouts(c mobyipvs.Config) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.handle.SetConfig(&c); err != nil {
		return fmt.Errorf("set timeouts of IPVS: %w", err)
	}
	return nil
}

// undoTimeouts sets them to what a note says.
func (k *kernel) undoTimeouts(notes elements) (undone []string, err error) {
	for _, v := range notes {
		text, ok := strings.CutPrefix(v.comment, "timeouts ")
		if !ok {
			continue
		}
		var tcp, fin, udp int
		if _, err := fmt.Sscan(text, &tcp, &fin, &udp); err != nil {
			return nil, fmt.Errorf("note of IPVS timeouts %q: %w", v.comment, err)
		}
		if err := k.setTimeouts(mobyipvs.Config{TimeoutTCP: secondsOf(uint32(tcp)), TimeoutTCPFin: secondsOf(uint32(fin)), TimeoutUDP: secondsOf(uint32(udp))}); err != nil {
			return nil, err
		}
		undone = append(undone, "IPVS timeouts")
	}
	return undone, nil
}
