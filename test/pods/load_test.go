// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// ask makes one request on a connection of its own.
func ask(url string, timeout time.Duration) (string, error) {
	client := http.Client{Timeout: timeout, Transport: &http.Transport{
		DisableKeepAlives: true, DialContext: (&net.Dialer{}).DialContext,
	}}
	resp, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", resp.Status, b)
	}
	return strings.TrimSpace(string(b)), nil
}

// requestTimeout bounds a request under load: a SYN that is lost once is sent
// again after a second.
const requestTimeout = 10 * time.Second

// load is requests, one after the other, until it is stopped.
type load struct {
	stop context.CancelFunc
	done chan struct{}

	mu      sync.Mutex
	answers map[string]int // by who gave it
	failed  []failure
}

type failure struct {
	at  time.Time
	err error
}

func startLoad(url string) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{stop: cancel, done: make(chan struct{}), answers: map[string]int{}}
	go func() {
		defer close(l.done)
		for ctx.Err() == nil {
			begin := time.Now()
			answer, err := ask(url, requestTimeout)
			l.mu.Lock()
			if err != nil {
				l.failed = append(l.failed, failure{begin, err})
			} else {
				who, _, _ := strings.Cut(answer, " ")
				l.answers[who]++
			}
			l.mu.Unlock()
			time.Sleep(2 * time.Millisecond)
		}
	}()
	return l
}

// end stops, and gives the answers by Pod, and what failed.
func (l *load) end() (answers map[string]int, failed []failure) {
	l.stop()
	<-l.done
	return l.answers, l.failed
}
