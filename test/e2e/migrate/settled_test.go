// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
)

// Metrics of kube-proxy's, for each family: when it last heard of something, and
// when it last had it all in the kernel.
const (
	lastQueued = "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{"
	lastSynced = "kubeproxy_sync_proxy_rules_last_timestamp_seconds{"
)

// settled waits until the running kube-proxy has written all that it knows, which
// it does once a second, one family after the other.
func (w *town) settled() {
	w.t.Helper()
	client := &http.Client{Timeout: glance, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (c net.Conn, err error) {
			err = w.thread.Do(func() (err error) {
				c, err = new(net.Dialer).DialContext(ctx, network, address)
				return err
			})
			return c, err
		},
	}}
	w.eventually(func() error {
		queued, synced := map[string]float64{}, map[string]float64{}
		resp, err := client.Get("http://127.0.0.1:10249/metrics")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		lines := bufio.NewScanner(resp.Body)
		for lines.Scan() {
			for name, times := range map[string]map[string]float64{lastQueued: queued, lastSynced: synced} {
				if rest, ok := strings.CutPrefix(lines.Text(), name); ok {
					family, value, _ := strings.Cut(rest, "} ")
					if times[family], err = strconv.ParseFloat(value, 64); err != nil {
						return err
					}
				}
			}
		}
		for _, family := range []string{`ip_family="IPv4"`, `ip_family="IPv6"`} {
			if queued[family] == 0 || synced[family] < queued[family] {
				return fmt.Errorf("kube-proxy has not written all: last heard %v, last wrote %v", queued, synced)
			}
		}
		return lines.Err()
	})
}
