// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/spf13/pflag"

	"fairlead.dev/controller/config"
)

// addRunFlags binds the flags to c, whose values are the defaults.
func addRunFlags(f *pflag.FlagSet, c *config.Configuration) {
	f.StringVar(&c.Kubeconfig, "kubeconfig", c.Kubeconfig, "read objects from the API server that this `FILE` names; in a pod the default is its service account")
	f.StringVar(&c.Manifests, "manifests", c.Manifests, "read objects from the YAML files in this `DIR`, in place of an API server")
	f.StringVar(&c.NodeName, "node-name", c.NodeName, "`NAME` of this node's Node object (default: the hostname in lower case)")
	f.Var(listFlag{&c.BindAddress}, "bind-address", "`IP` to use as the node's primary one, at most one of each family (default: as the Node object says)")

	f.StringVar(&c.Dataplane, "dataplane", c.Dataplane, "auto, ebpf, nftables, iptables or ipvs")
	f.StringVar(&c.Pods, "pods", c.Pods, "off, or cri to run the node's Pods too")

	f.Var(listFlag{&c.ServiceCIDR}, "service-cidr", "`CIDRs` of ClusterIPs; with --manifests, Services without a clusterIP get one from here (then 10.96.0.0/16,fd00:10:96::/112 where not set)")
	f.Var(listFlag{&c.ClusterCIDR}, "cluster-cidr", "`CIDRs` of pods (default: those of the Node object)")
	f.Var(listFlag{&c.NodePortAddresses}, "nodeport-addresses", "`CIDRs` and the words primary, localhost, all: the addresses that take NodePort traffic (default: all of the node's)")

	f.Var(listFlag{&c.ExternalIPs}, "external-ips", "which externalIPs of Services are served: allow, deny or `CIDRs` (default allow; see docs/security.md)")
	f.Var(listFlag{&c.LoadBalancerIPs}, "load-balancer-ips", "which load balancers' addresses (status.loadBalancer) are served: allow, deny or `CIDRs` (default allow)")

	f.StringVar(&c.MetricsBindAddress, "metrics-bind-address", c.MetricsBindAddress, "`IP:PORT` of /metrics; empty turns it off")
	f.StringVar(&c.HealthzBindAddress, "healthz-bind-address", c.HealthzBindAddress, "`IP:PORT` of /healthz and /livez; empty turns it off")
	f.StringVar(&c.MetricsAuth, "metrics-auth", c.MetricsAuth, "none, or delegated: TLS, and only for those whom the API server lets get the path")
	f.StringVar(&c.MetricsTLSCertFile, "metrics-tls-cert-file", c.MetricsTLSCertFile, "`FILE` with the certificate of the metrics address (default: no TLS, or one signed by itself with --metrics-auth delegated)")
	f.StringVar(&c.MetricsTLSPrivateKeyFile, "metrics-tls-private-key-file", c.MetricsTLSPrivateKeyFile, "`FILE` with its key")
	f.BoolVar(&c.StatusPage, "status-page", c.StatusPage, "serve /status, a page for browsers, on the metrics address")
	f.BoolVar(&c.Profiling, "profiling", c.Profiling, "serve /debug/pprof/ on the metrics address")

	f.StringVar(&c.CgroupRoot, "cgroup-root", c.CgroupRoot, "cgroup2 `DIR` whose processes get the socket hooks (default: the root of the cgroup2 mount)")
	f.StringVar(&c.BPFFS, "bpffs", c.BPFFS, "`DIR` in a mounted bpffs; pins go into its directory fairlead")
	f.Var(listFlag{&c.Devices}, "devices", "`NAMES` of the devices that lead out of the node; a trailing * matches any rest (default: found)")
	f.BoolVar(&c.TakeOver, "take-over", c.TakeOver, "remove the rules of a kube-proxy that has ended, once this agent's are in force; established connections go on")
	f.StringVar(&c.StateDir, "state-dir", c.StateDir, "`DIR` for what must survive a restart and is not in the kernel")
	f.StringVar(&c.MasqueradePorts, "masquerade-ports", c.MasqueradePorts, "`FIRST-LAST` source ports of masqueraded flows; keep out of net.ipv4.ip_local_port_range (default 1024-29999)")

	for _, e := range []struct {
		to          *int
		name, usage string
	}{
		{&c.ConntrackMax, "conntrack-max", "entries of the conntrack map, two for each flow (0: by the machine's memory)"},
		{&c.FrontendsMax, "frontends-max", "entries of the frontend map (0: default)"},
		{&c.SlotsMax, "slots-max", "sum of the Backends of all Frontends (0: default)"},
		{&c.ServicesMax, "services-max", "Service ports (0: default)"},
		{&c.AffinityMax, "affinity-max", "clients with session affinity (0: default)"},
		{&c.DatagramsMax, "datagrams-max", "peers of unconnected UDP sockets (0: default)"},
	} {
		f.IntVar(e.to, e.name, *e.to, e.usage)
	}
	f.DurationVar(&c.ConntrackTCPTimeoutEstablished.Duration, "conntrack-tcp-timeout-established", 0, "how long an established TCP flow may be idle (0: default)")
	f.DurationVar(&c.ConntrackTCPTimeoutCloseWait.Duration, "conntrack-tcp-timeout-close-wait", 0, "how long an opening or closing TCP flow may be idle (0: default)")
	f.DurationVar(&c.ConntrackUDPTimeout.Duration, "conntrack-udp-timeout", 0, "how long a UDP flow without a reply, or shorter than 2 s, may be idle (0: default)")
	f.DurationVar(&c.ConntrackUDPTimeoutStream.Duration, "conntrack-udp-timeout-stream", 0, "how long a longer UDP flow with replies may be idle (0: default)")

	f.IntVar(&c.IPTablesMasqueradeBit, "iptables-masquerade-bit", c.IPTablesMasqueradeBit, "bit of the packet mark that --dataplane iptables uses")
	f.StringVar(&c.IPVSScheduler, "ipvs-scheduler", c.IPVSScheduler, "how --dataplane ipvs chooses Backends: rr, lc, sh, mh, ...")
	f.BoolVar(&c.IPVSStrictARP, "ipvs-strict-arp", c.IPVSStrictARP, "with --dataplane ipvs: answer no ARP for addresses of Services")
	f.DurationVar(&c.IPVSTCPTimeout.Duration, "ipvs-tcp-timeout", 0, "how long an established TCP connection of IPVS may be idle (0: the kernel's)")
	f.DurationVar(&c.IPVSTCPFinTimeout.Duration, "ipvs-tcpfin-timeout", 0, "how long a closing TCP connection of IPVS may be idle (0: the kernel's)")
	f.DurationVar(&c.IPVSUDPTimeout.Duration, "ipvs-udp-timeout", 0, "how long UDP of IPVS may be idle (0: the kernel's)")

	f.StringVar(&c.CRISocket, "cri-socket", c.CRISocket, "`SOCKET` of the container runtime (CRI v1), for --pods cri")
	f.StringVar(&c.PodLogDir, "pod-log-dir", c.PodLogDir, "`DIR` of the logs of containers")
	f.StringVar(&c.PodCgroupRoot, "pod-cgroup-root", c.PodCgroupRoot, "`CGROUP` of all Pods")
	f.StringVar(&c.CgroupDriver, "cgroup-driver", c.CgroupDriver, "the container runtime's: cgroupfs or systemd")
	f.IntVar(&c.MaxPods, "max-pods", c.MaxPods, "Pods that the node takes")
	f.Var(listFlag{&c.EvictionHard}, "eviction-hard", "`SIGNAL<QUANTITY,...`: with less available Pods are evicted; what is not named is not looked at")
	f.IntVar(&c.ImageGCHighThreshold, "image-gc-high-threshold", c.ImageGCHighThreshold, "percent of their filesystem from which on images are removed (100: not before the disk is short)")
	f.IntVar(&c.ImageGCLowThreshold, "image-gc-low-threshold", c.ImageGCLowThreshold, "percent of their filesystem down to which images are removed")
	f.Var(listFlag{&c.ClusterDNS}, "cluster-dns", "`IPS` of the cluster's resolver, for Pods (default: the node's resolvers)")
	f.StringVar(&c.ClusterDomain, "cluster-domain", c.ClusterDomain, "domain that Pods search")
	f.StringVar(&c.ResolvConf, "resolv-conf", c.ResolvConf, "the node's resolv.conf, for Pods")
	f.StringVar(&c.PodNetwork, "pod-network", c.PodNetwork, "off, or host-gw: bridge-less Pods, with routes between nodes of one subnet")
	f.Var(listFlag{&c.PodCIDR}, "pod-cidr", "`CIDRS` of this node's Pods, for --pod-network (default: those of the Node object)")
	f.StringVar(&c.KubeletBindAddress, "kubelet-bind-address", c.KubeletBindAddress, "`IP:PORT` of the kubelet's API (logs, exec, stats), with an API server as the source; empty turns it off")
	f.StringVar(&c.ClientCAFile, "client-ca-file", c.ClientCAFile, "`FILE` with the authorities of client certificates, for the kubelet's API and --metrics-auth delegated")
	f.StringVar(&c.TLSCertFile, "tls-cert-file", c.TLSCertFile, "`FILE` with the certificate of the kubelet's API (default: one signed by itself)")
	f.StringVar(&c.TLSPrivateKeyFile, "tls-private-key-file", c.TLSPrivateKeyFile, "`FILE` with its key")
	f.BoolVar(&c.KubeletRotateServerCertificates, "kubelet-rotate-server-certificates", c.KubeletRotateServerCertificates, "have the cluster sign the certificate of the kubelet's API, once somebody approved it (kubectl certificate approve)")
	f.Var(listFlag{&c.NodeLabels}, "node-labels", "`KEY=VALUE,...` put on the Node")
	f.Var(listFlag{&c.RegisterWithTaints}, "register-with-taints", "`KEY=VALUE:EFFECT,...` of a Node that is created")
	f.BoolVar(&c.DrainOnStop, "drain-on-stop", c.DrainOnStop, "end the Pods when the agent is told to stop")

	f.StringVar(&c.LogLevel, "log-level", c.LogLevel, "debug, info, warn or error")
	f.IntVarP(&c.V, "v", "v", c.V, "klog verbosity; 4 and more is --log-level debug")
	f.StringVar(&c.LogFormat, "log-format", c.LogFormat, "text or json")

	f.SetNormalizeFunc(kubeProxyNames)
}

// kubeProxyNames understands kube-proxy's names of flags that have another here.
func kubeProxyNames(_ *pflag.FlagSet, name string) pflag.NormalizedName {
	switch name {
	case "hostname-override":
		name = "node-name"
	case "logging-format":
		name = "log-format"
	}
	return pflag.NormalizedName(name)
}

// listFlag is a list with commas; a repeated flag replaces the list.
type listFlag struct{ list *config.List }

func (l listFlag) String() string {
	if l.list == nil {
		return ""
	}
	return l.list.String()
}

func (l listFlag) Set(s string) error {
	*l.list = config.ParseList(s)
	return nil
}

func (l listFlag) Type() string { return "list" }

// underFlags gives the file's configuration with what the command line set
// explicitly put on top. flags are bound to the result's place, c.
func underFlags(f *pflag.FlagSet, c *config.Configuration, file config.Configuration) error {
	explicit := map[string]string{}
	f.Visit(func(flag *pflag.Flag) { explicit[flag.Name] = flag.Value.String() })
	*c = file
	for name, value := range explicit {
		if flag := f.Lookup(name); flag.Name != "config" {
			if err := flag.Value.Set(value); err != nil {
				return usagef("--%s: %w", name, err)
			}
		}
	}
	// A source on the command line takes the place of the file's.
	_, kubeconfig := explicit["kubeconfig"]
	_, manifests := explicit["manifests"]
	switch {
	case manifests && !kubeconfig:
		c.Kubeconfig = ""
	case kubeconfig && !manifests:
		c.Manifests = ""
	}
	return nil
}
