// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"strconv"
	"sync"
	"syscall"
	"time"
)

// clusterArgs are the API server's flags for a cluster with nodes, and with
// servers of further APIs in Pods. Those it asks itself, without a proxy's
// Services where it runs.
func (c *ControlPlane) clusterArgs() []string {
	return []string{
		"--client-ca-file", c.file("ca.crt"),
		"--authorization-mode", "Node", // beside RBAC
		"--enable-admission-plugins", "NodeRestriction",
		"--kubelet-client-certificate", c.file("kubelet-client.crt"),
		"--kubelet-client-key", c.file("kubelet-client.key"),
		"--kubelet-certificate-authority", c.file("ca.crt"),
		"--kubelet-preferred-address-types", "InternalIP,Hostname",
		"--enable-aggregator-routing",
		"--proxy-client-cert-file", c.file(frontProxy + ".crt"),
		"--proxy-client-key-file", c.file(frontProxy + ".key"),
		"--requestheader-client-ca-file", c.file("front-proxy-ca.crt"),
		"--requestheader-allowed-names", frontProxy,
		"--requestheader-username-headers", "X-Remote-User",
		"--requestheader-group-headers", "X-Remote-Group",
		"--requestheader-extra-headers-prefix", "X-Remote-Extra-",
	}
}

// SigningDuration is how long a certificate is valid that the controllers sign,
// the shortest that a CertificateSigningRequest can ask for.
const SigningDuration = 10 * time.Minute

// controller is a program that is started again when it ends, as a static Pod of
// a control plane is.
type controller struct {
	mu      sync.Mutex
	process *process
	stopped bool
}

// restartAfter is how long one that ended is left alone.
const restartAfter = time.Second

func (c *ControlPlane) startControllers() error {
	common := []string{"--kubeconfig", c.Kubeconfig, "--leader-elect=false", "--bind-address", "127.0.0.1", "--profiling=false",
		"--kube-api-qps", "300", "--kube-api-burst", "600"}
	manager := append([]string{
		"--allocate-node-cidrs", "--cluster-cidr", PodCIDRs, "--service-cluster-ip-range", ServiceCIDRs,
		"--node-cidr-mask-size-ipv4", "24", "--node-cidr-mask-size-ipv6", "64",
		"--service-account-private-key-file", c.file("service-account.key"), "--root-ca-file", c.file("ca.crt"),
		"--cluster-signing-cert-file", c.file("ca.crt"), "--cluster-signing-key-file", c.file("ca.key"), "--cluster-signing-duration", SigningDuration.String(),
		"--concurrent-service-endpoint-syncs", "10", "--concurrent-endpoint-syncs", "5", "--horizontal-pod-autoscaler-sync-period", "5s",
	}, common...)
	for _, k := range []struct {
		program Binary
		args    []string
	}{{ControllerManager, manager}, {Scheduler, common}} {
		path, err := k.program.Path()
		if err != nil {
			return err
		}
		port, err := freePort()
		if err != nil {
			return err
		}
		run := &controller{}
		log := c.file(string(k.program) + ".log")
		begin := func() (*process, error) {
			return start(log, path, append([]string{"--secure-port", strconv.Itoa(port)}, k.args...)...)
		}
		if run.process, err = begin(); err != nil {
			return err
		}
		c.controllers = append(c.controllers, run)
		go run.keep(begin)
	}
	return nil
}

func (k *controller) keep(begin func() (*process, error)) {
	for {
		k.mu.Lock()
		p := k.process
		k.mu.Unlock()
		<-p.done
		time.Sleep(restartAfter)
		k.mu.Lock()
		if k.stopped {
			k.mu.Unlock()
			return
		}
		if next, err := begin(); err == nil {
			k.process = next
		}
		k.mu.Unlock()
	}
}

func (k *controller) stop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.stopped = true
	k.process.stop(syscall.SIGKILL, time.Second)
}

// RestartControllers kills the scheduler and the controllers, which come back a
// second later: as those that lost their lease with the API server do. They
// would take up to half a minute to find one that returns.
func (c *ControlPlane) RestartControllers() {
	for _, k := range c.controllers {
		k.mu.Lock()
		_ = k.process.cmd.Process.Kill()
		k.mu.Unlock()
	}
}

// Logs gives the end of the log of each program, for a test that failed.
func (c *ControlPlane) Logs(bytes int) map[string]string {
	out := map[string]string{}
	for _, name := range []string{"kube-apiserver", string(ControllerManager), string(Scheduler)} {
		out[name] = tail(c.file(name+".log"), bytes)
	}
	return out
}
