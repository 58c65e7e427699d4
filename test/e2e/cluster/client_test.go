// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairlead.dev/test/e2e/cluster/traffic"
)

// client is a workload program in some place that asks what it is told to.
type client struct {
	name    string
	control string // HOST:PORT of its control API
}

// The ports of the control API: in Pods, and of processes on nodes.
const podControl, hostControl = 9000, 9100

// startClients starts one on each node, one outside, and in a Pod of each node.
func (c *cluster) startClients(ctx context.Context) error {
	program := filepath.Join(scratch, "workload")
	for _, n := range c.nodes {
		p, err := n.start("client on "+n.name, n.logPath("client"), program, "control", fmt.Sprintf(":%d", hostControl))
		if err != nil {
			return err
		}
		c.keep(p)
		c.hosts = append(c.hosts, &client{n.name, hostPort(n.ipv4.String(), hostControl)})
	}
	p, err := startOutside("client outside", filepath.Join(scratch, "outside.log"), program, "control", "127.0.0.1:9100")
	if err != nil {
		return err
	}
	c.keep(p)
	c.outside = &client{"outside", "127.0.0.1:9100"}
	if err := within(patience, func() error { // the controllers make it
		_, err := c.client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		return err
	}); err != nil {
		return err
	}
	for _, n := range c.nodes {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "client-" + n.name}, Spec: serverSpec()}
		pod.Spec.NodeSelector = map[string]string{corev1.LabelHostname: n.name}
		pod.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
		if _, err := c.client.CoreV1().Pods("default").Create(ctx, pod, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	for _, n := range c.nodes {
		var ip string
		err := within(patience, func() error {
			p, err := c.client.CoreV1().Pods("default").Get(ctx, "client-"+n.name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			if !podReady(p) {
				return fmt.Errorf("Pod %s is not Ready: %+v", p.Name, p.Status)
			}
			ip = p.Status.PodIP
			return nil
		})
		if err != nil {
			return err
		}
		c.pods = append(c.pods, &client{"Pod on " + n.name, hostPort(ip, podControl)})
	}
	for _, k := range c.everyone() {
		if err := within(patience, func() error { return k.post("/ask", traffic.Question{}, &traffic.Answer{}) }); err != nil {
			return fmt.Errorf("client %s: %w", k.name, err)
		}
	}
	return nil
}

// everyone are all clients.
func (c *cluster) everyone() []*client {
	return append(append([]*client{c.outside}, c.hosts...), c.pods...)
}

func (c *cluster) keep(p *process) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.processes = append(c.processes, p)
}

var controlClient = &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}

func (k *client) post(path string, question, answer any) error {
	b, err := json.Marshal(question)
	if err != nil {
		return err
	}
	r, err := controlClient.Post("http://"+k.control+path, "application/json", bytes.NewReader(b))
	if err != nil {
		return fmt.Errorf("client %s: %w", k.name, err)
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(r.Body, 1000))
		return fmt.Errorf("client %s: %s: %s", k.name, r.Status, text)
	}
	if answer == nil {
		return nil
	}
	return json.NewDecoder(r.Body).Decode(answer)
}

func (k *client) ask(mode traffic.Mode, to string, limit time.Duration) traffic.Answer {
	var a traffic.Answer
	if err := k.post("/ask", traffic.Question{Mode: mode, To: to, Within: limit}, &a); err != nil {
		a.Failure = err.Error()
	}
	return a
}

// run is a load that runs.
type run struct {
	k       *testCase
	clients []*client
}

// load begins to ask from the clients: each its own plan.
func (k *testCase) load(plans map[*client]traffic.Plan) *run {
	k.Helper()
	r := &run{k: k}
	for c, p := range plans {
		if err := c.post("/load", p, nil); err != nil {
			k.Fatal(err)
		}
		r.clients = append(r.clients, c)
	}
	k.Cleanup(func() {
		for _, c := range r.clients {
			_ = c.post("/stop", nil, nil)
		}
	})
	return r
}

// end ends the load, and fails the test for each question that failed.
func (r *run) end(what string) (total traffic.Report) {
	r.k.Helper()
	for _, c := range r.clients {
		var report traffic.Report
		if err := c.post("/stop", nil, &report); err != nil {
			r.k.Errorf("%s: report of the load: %v", what, err)
			continue
		}
		for _, s := range report.Streams {
			if s.Asked == 0 || s.Asked == s.Failed {
				r.k.Errorf("%s: from %s, %s %s: %d asked, %d failed: the load shows nothing", what, c.name, s.Mode, s.To, s.Asked, s.Failed)
			}
		}
		if asked, failed, _ := report.Totals(); failed > 0 {
			r.k.Errorf("%s: from %s %d of %d questions failed:\n%s", what, c.name, failed, asked, report.Failures())
		}
		total.Streams = append(total.Streams, report.Streams...)
	}
	r.clients = nil
	asked, failed, longest := total.Totals()
	r.k.Logf("%s: %d questions in %d streams, %d failed, %d of UDP moved to another server, %d took a second or more and the longest %v",
		what, asked, len(total.Streams), failed, total.Moved(), total.Slow(), longest.Round(time.Millisecond))
	return total
}

// stopAgent ends the node's agent with the signal.
func (n *node) stopAgent(sig syscall.Signal) error { return n.agent.stop(sig, 30*time.Second) }
