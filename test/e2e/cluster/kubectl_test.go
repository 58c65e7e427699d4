// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairlead.dev/test/e2e/cluster/traffic"
	"fairlead.dev/test/e2e/controlplane"
)

// kubectlCommand is a kubectl as an administrator, in the namespace of the case
// if it has one.
func (k *testCase) kubectlCommand(ctx context.Context, args ...string) *exec.Cmd {
	k.Helper()
	path, err := controlplane.Kubectl.Path()
	if err != nil {
		k.Fatal(err)
	}
	global := []string{"--kubeconfig", k.Kubeconfig}
	if k.namespace != "" {
		global = append(global, "--namespace", k.namespace)
	}
	cmd := exec.CommandContext(ctx, path, append(global, args...)...)
	cmd.Env = append(os.Environ(), "HOME="+filepath.Join(scratch, "tmp"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	return cmd
}

// kubectl gives what it prints, and fails the test with what it complains about.
func (k *testCase) kubectl(args ...string) string {
	k.Helper()
	out, complaints, err := k.tryKubectl("", args...)
	if err != nil {
		k.Fatalf("kubectl %s: %v: %s", strings.Join(args, " "), err, complaints)
	}
	return out
}

func (k *testCase) tryKubectl(stdin string, args ...string) (out, complaints string, err error) {
	k.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(k.Context()), patience) // what cleans up asks, too
	defer cancel()
	cmd := k.kubectlCommand(ctx, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	err = cmd.Run()
	return stdout.String(), stderr.String(), err
}

func TestKubectlWorksAgainstThePodRunner(t *testing.T) {
	k := newCase(t)
	for _, n := range k.nodes {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "server-" + n.name, Labels: map[string]string{"app": "server"}}, Spec: serverSpec()}
		pod.Spec.NodeSelector = map[string]string{corev1.LabelHostname: n.name}
		pod.Spec.Containers[0].Env = append(pod.Spec.Containers[0].Env, corev1.EnvVar{Name: "TALK", Value: "yes"})
		pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{
			Name: "failing", Image: workloadImage, ImagePullPolicy: corev1.PullNever, Args: []string{"echo", "I failed"}})
		if _, err := k.client.CoreV1().Pods(k.namespace).Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	k.expose("server", "server", nil)
	for _, n := range k.nodes {
		pod := "server-" + n.name
		k.eventually(func() error {
			p, err := k.client.CoreV1().Pods(k.namespace).Get(t.Context(), pod, metav1.GetOptions{})
			if err != nil {
				return err
			}
			restarts := 0
			for _, s := range p.Status.ContainerStatuses {
				restarts += int(s.RestartCount)
				if s.Name == "server" && !s.Ready {
					return fmt.Errorf("%s is not ready", pod)
				}
			}
			if restarts == 0 {
				return fmt.Errorf("%s: nothing was restarted yet", pod)
			}
			return nil
		})
		sub := func(name string, f func(k *testCase, n *node, pod string)) {
			t.Run(n.name+"/"+name, func(t *testing.T) {
				f(&testCase{T: t, cluster: k.cluster, namespace: k.namespace}, n, pod)
			})
		}
		sub("logs", (*testCase).testLogs)
		sub("exec", (*testCase).testExec)
		sub("port-forward", (*testCase).testPortForward)
		sub("describe", (*testCase).testDescribe)
		sub("usage", (*testCase).testUsage)
		sub("health and metrics", (*testCase).testHealth)
		sub("the API from a Pod", (*testCase).testAPIFromPod)
		sub("a stranger", (*testCase).testStranger)
	}
	out := k.kubectl("get", "nodes", "-o", "wide")
	for _, n := range k.nodes {
		if !regexp.MustCompile(`(?m)^` + n.name + `\s+Ready\s.*` + regexp.QuoteMeta(n.ipv4.String()) + `\s.*containerd://`).MatchString(out) {
			t.Errorf("kubectl get nodes -o wide:\n%s", out)
		}
	}
}

func (k *testCase) testLogs(n *node, pod string) {
	if out := k.kubectl("logs", pod, "-c", "server"); !strings.HasPrefix(out, "serving\n") && !strings.Contains(out, "\nserving\n") || !strings.Contains(out, "line 0\n") {
		k.Errorf("logs: %.300q", out)
	}
	if out := k.kubectl("logs", pod, "-c", "server", "--tail=2", "--timestamps"); !regexp.MustCompile(`^(20\S+Z line \d+\n){2}$`).MatchString(out) {
		k.Errorf("logs --tail=2 --timestamps: %q", out)
	}
	if out := k.kubectl("logs", pod, "-c", "failing", "--previous"); out != "I failed\n" {
		k.Errorf("logs --previous: %q", out)
	}
	ctx, cancel := context.WithTimeout(k.Context(), patience)
	defer cancel()
	cmd := k.kubectlCommand(ctx, "logs", pod, "-c", "server", "-f", "--since=1s")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		k.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for range 30 { // of 100 ms each: more than there was
		if !lines.Scan() {
			k.Error("logs -f ended")
			break
		}
	}
	cancel()
	_ = cmd.Wait()
}

func (k *testCase) testExec(n *node, pod string) {
	if out := k.kubectl("exec", pod, "-c", "server", "--", "/workload", "echo", "hello", "there"); out != "hello there\n" {
		k.Errorf("exec: %q", out)
	}
	input := strings.Repeat("0123456789abcdef", 64<<10/16)
	out, complaints, err := k.tryKubectl(input, "exec", "-i", pod, "-c", "server", "--", "/workload", "echo", "-")
	if err != nil || out != input {
		k.Errorf("exec -i: %d bytes of %d came back, %v: %s", len(out), len(input), err, complaints)
	}
	_, complaints, err = k.tryKubectl("", "exec", pod, "-c", "server", "--", "/workload", "exit")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 7 || !strings.Contains(complaints, "exit code 7") {
		k.Errorf("exec of what ends with 7: %v: %s", err, complaints)
	}
}

func (k *testCase) testPortForward(n *node, pod string) {
	for what, want := range map[string]string{"pod/" + pod: pod, "service/server": ""} {
		ctx, cancel := context.WithTimeout(k.Context(), patience)
		port := ":8080"
		if want == "" {
			port = ":80"
		}
		cmd := k.kubectlCommand(ctx, "port-forward", what, port)
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			k.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		local := regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(line)
		if err != nil || local == "" {
			k.Errorf("port-forward %s: %q, %v", what, line, err)
		} else {
			for range 3 {
				if a := k.outside.ask(traffic.TCP, local, 20*time.Second); a.Server == "" || want != "" && a.Server != want {
					k.Errorf("port-forward %s: %+v", what, a)
				}
			}
		}
		cancel()
		_ = cmd.Wait()
	}
}

func (k *testCase) testDescribe(n *node, pod string) {
	var out string
	k.eventually(func() error {
		out = k.kubectl("describe", "pod", pod)
		for _, want := range []string{"Scheduled", "Pulled", "Created", "Started", "BackOff", "kubelet", "QoS Class:"} {
			if !strings.Contains(out, want) {
				return fmt.Errorf("kubectl describe pod has no %q:\n%s", want, out)
			}
		}
		return nil
	})
	if got := k.kubectl("describe", "node", n.name); !strings.Contains(got, pod) || !strings.Contains(got, "PodCIDRs:") {
		k.Errorf("kubectl describe node:\n%s", got)
	}
}

// testUsage asks for what metrics-server asks for `kubectl top`.
func (k *testCase) testUsage(n *node, pod string) {
	k.eventually(func() error {
		out := k.kubectl("get", "--raw", "/api/v1/nodes/"+n.name+"/proxy/metrics/resource")
		for _, want := range []string{
			`(?m)^node_cpu_usage_seconds_total [\d.e+]+ \d+$`, `(?m)^node_memory_working_set_bytes [\d.e+]+ \d+$`,
			`(?m)^container_cpu_usage_seconds_total\{container="server",namespace="` + k.namespace + `",pod="` + pod + `"\} [\d.e+-]+ \d+$`,
			`(?m)^pod_cpu_usage_seconds_total\{namespace="` + k.namespace + `",pod="` + pod + `"\} [\d.e+-]+ \d+$`,
			`(?m)^pod_memory_working_set_bytes\{namespace="` + k.namespace + `",pod="` + pod + `"\} [1-9][\d.e+]+ \d+$`,
			`(?m)^container_start_time_seconds\{container="server",namespace="` + k.namespace + `",pod="` + pod + `"\} 1\.\d+e\+09$`,
			`(?m)^scrape_error 0$`, `(?m)^resource_scrape_error 0$`,
			`(?m)^container_memory_working_set_bytes\{container="server",namespace="` + k.namespace + `",pod="` + pod + `"\} [1-9][\d.e+]+ \d+$`,
		} {
			if !regexp.MustCompile(want).MatchString(out) {
				return fmt.Errorf("/metrics/resource has no %s:\n%.3000s", want, out)
			}
		}
		return nil
	})
	if out := k.kubectl("get", "--raw", "/api/v1/nodes/"+n.name+"/proxy/stats/summary"); !strings.Contains(out, `"`+pod+`"`) || !strings.Contains(out, "workingSetBytes") {
		k.Errorf("/stats/summary: %.2000s", out)
	}
	if out := k.kubectl("get", "--raw", "/api/v1/namespaces/"+k.namespace+"/pods/"+pod+":8080/proxy/"); !strings.Contains(out, `"Server":"`+pod+`"`) {
		k.Errorf("the Pod through the API server's proxy: %q", out)
	}
}

// testHealth asks for what load balancers and Prometheus ask of kubelets.
func (k *testCase) testHealth(n *node, _ string) {
	for path, want := range map[string]string{
		"healthz": `^ok$`, "healthz/ping": `^ok$`, "healthz/syncloop": `^ok$`,
		"healthz?verbose": `^\[\+\]ping ok\n\[\+\]syncloop ok\nhealthz check passed\n$`,
		"metrics":         `(?m)^fairlead_build_info\{.*dataplane=.*\} 1$`,
	} {
		out := k.kubectl("get", "--raw", "/api/v1/nodes/"+n.name+"/proxy/"+path)
		if !regexp.MustCompile(want).MatchString(out) {
			k.Errorf("/%s of %s lacks %s:\n%.2000s", path, n.name, want, out)
		}
	}
}

// testAPIFromPod asks the API by the Service kubernetes, with the token and the
// authority that the Pod was given.
func (k *testCase) testAPIFromPod(n *node, pod string) {
	out := k.kubectl("exec", pod, "-c", "server", "--", "/workload", "api", "https://kubernetes.default.svc/apis/authentication.k8s.io/v1/selfsubjectreviews")
	for _, want := range []string{"system:serviceaccount:" + k.namespace + ":default", `authentication.kubernetes.io/pod-name`, pod, n.name} {
		if !strings.Contains(out, want) {
			k.Errorf("the API says of the Pod %s", out)
		}
	}
}

func (k *testCase) testStranger(n *node, pod string) {
	c := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	for token, want := range map[string]int{"": http.StatusUnauthorized, controlplane.NobodyToken: http.StatusForbidden, controlplane.AdminToken: http.StatusOK} {
		r, err := http.NewRequestWithContext(k.Context(), http.MethodGet, "https://"+hostPort(n.ipv4.String(), 10250)+"/pods", nil)
		if err != nil {
			k.Fatal(err)
		}
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := c.Do(r)
		if err != nil {
			k.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode != want {
			k.Errorf("the kubelet's API with the token %q answers %s, want %d", token, resp.Status, want)
		}
	}
}
