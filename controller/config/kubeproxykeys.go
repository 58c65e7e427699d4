// SPDX-License-Identifier: Apache-2.0

package config

// treatment is what becomes of a key of a KubeProxyConfiguration that is set.
type treatment string

const (
	mapped  treatment = "mapped"  // it takes effect
	always  treatment = "always"  // fairlead does so whatever the key says
	warned  treatment = "warned"  // it has no effect, and a warning names it
	refused treatment = "refused" // the file is an error
)

// kubeProxyKey is one key of kubeproxy.config.k8s.io/v1alpha1. docs/migration.md
// shows this table; a test compares both, and this table with the Go types.
type kubeProxyKey struct {
	path      string
	treatment treatment
	// advice says what the key becomes or, for a warning, what to do instead.
	advice string
	// quiet are values, besides "not set", that need no warning: kube-proxy's
	// defaults, and what fairlead does anyway.
	quiet []string
	// loud are values of a mapped key that get the warning in loudAdvice.
	loud       []string
	loudAdvice string
}

const (
	noPeriod  = "a change is programmed when it arrives; there is no period"
	noMark    = "no packet marks are used"
	noWindows = "Windows only"
	noClient  = "the API client is not tuned by hand"
)

var kubeProxyKeys = []kubeProxyKey{
	{path: "apiVersion", treatment: mapped, advice: "names the kind of file"},
	{path: "kind", treatment: mapped, advice: "names the kind of file"},
	{path: "featureGates", treatment: warned, advice: "fairlead has no feature gates"},

	{path: "clientConnection.kubeconfig", treatment: mapped, advice: "--kubeconfig"},
	{path: "clientConnection.acceptContentTypes", treatment: warned, advice: noClient},
	{path: "clientConnection.contentType", treatment: warned, advice: noClient, quiet: []string{"application/vnd.kubernetes.protobuf"}},
	{path: "clientConnection.qps", treatment: warned, advice: noClient, quiet: []string{"5"}},
	{path: "clientConnection.burst", treatment: warned, advice: noClient, quiet: []string{"10"}},

	{path: "logging.format", treatment: mapped, advice: "--log-format"},
	{path: "logging.verbosity", treatment: mapped, advice: "--v: 4 and more is --log-level debug"},
	{path: "logging.flushFrequency", treatment: warned, advice: "logs are not buffered", quiet: []string{"5000000000", "5s"}},
	{path: "logging.vmodule", treatment: warned, advice: "set --log-level"},
	{path: "logging.options", treatment: warned, advice: "logs go to stderr, unbuffered"},

	{path: "hostnameOverride", treatment: mapped, advice: "--node-name"},
	{path: "bindAddress", treatment: mapped, advice: "--bind-address; an IPv6 one also moves the default of the two below to IPv6"},
	{path: "healthzBindAddress", treatment: mapped, advice: "--healthz-bind-address; empty is the default, port 0 turns it off"},
	{path: "metricsBindAddress", treatment: mapped, advice: "--metrics-bind-address; empty is the default, port 0 turns it off"},
	{path: "bindAddressHardFail", treatment: always, advice: "an address that cannot be bound always ends the agent"},
	{path: "enableProfiling", treatment: mapped, advice: "--profiling"},
	{path: "showHiddenMetricsForVersion", treatment: warned, advice: "no metrics are hidden"},

	{path: "mode", treatment: mapped,
		advice: "nftables with no nodePortAddresses: --nodeport-addresses primary, kube-proxy's default there; kernelspace is refused. The mode does not choose --dataplane",
		loud:   []string{"iptables", "ipvs", "nftables"}, loudAdvice: "the technology is chosen by --dataplane"},

	{path: "iptables.masqueradeBit", treatment: mapped, advice: "--iptables-masquerade-bit; only --dataplane iptables marks packets"},
	{path: "iptables.masqueradeAll", treatment: warned, advice: "only what Kubernetes asks for is masqueraded"},
	{path: "iptables.localhostNodePorts", treatment: warned, advice: "leave localhost out of nodePortAddresses for false", quiet: []string{"true"}},
	{path: "iptables.syncPeriod", treatment: warned, advice: noPeriod, quiet: []string{"30s"}},
	{path: "iptables.minSyncPeriod", treatment: warned, advice: noPeriod, quiet: []string{"1s"}},

	{path: "ipvs.syncPeriod", treatment: warned, advice: noPeriod, quiet: []string{"30s"}},
	{path: "ipvs.minSyncPeriod", treatment: warned, advice: noPeriod, quiet: []string{"1s"}},
	{path: "ipvs.scheduler", treatment: mapped, advice: "--ipvs-scheduler; for --dataplane ipvs only"},
	{path: "ipvs.excludeCIDRs", treatment: always, advice: "virtual servers of others are never touched"},
	{path: "ipvs.strictARP", treatment: mapped, advice: "--ipvs-strict-arp; for --dataplane ipvs only"},
	{path: "ipvs.tcpTimeout", treatment: mapped, advice: "--ipvs-tcp-timeout; for --dataplane ipvs only"},
	{path: "ipvs.tcpFinTimeout", treatment: mapped, advice: "--ipvs-tcpfin-timeout; for --dataplane ipvs only"},
	{path: "ipvs.udpTimeout", treatment: mapped, advice: "--ipvs-udp-timeout; for --dataplane ipvs only"},

	{path: "nftables.masqueradeBit", treatment: warned, advice: noMark, quiet: []string{"14"}},
	{path: "nftables.masqueradeAll", treatment: warned, advice: "only what Kubernetes asks for is masqueraded"},
	{path: "nftables.syncPeriod", treatment: warned, advice: noPeriod, quiet: []string{"30s"}},
	{path: "nftables.minSyncPeriod", treatment: warned, advice: noPeriod, quiet: []string{"1s"}},

	{path: "winkernel.networkName", treatment: warned, advice: noWindows},
	{path: "winkernel.sourceVip", treatment: warned, advice: noWindows},
	{path: "winkernel.enableDSR", treatment: warned, advice: noWindows},
	{path: "winkernel.rootHnsEndpointName", treatment: warned, advice: noWindows},
	{path: "winkernel.forwardHealthCheckVip", treatment: warned, advice: noWindows},
	{path: "windowsRunAsService", treatment: refused, advice: "Windows only"},

	{path: "detectLocalMode", treatment: mapped,
		advice: "ClusterCIDR: clusterCIDR; NodeCIDR: the Node object's podCIDRs, and clusterCIDR is not used",
		loud:   []string{"BridgeInterface", "InterfaceNamePrefix"}, loudAdvice: "pods are told by address: by clusterCIDR or, without it, the Node object's podCIDRs"},
	{path: "detectLocal.bridgeInterface", treatment: warned, advice: "pods are told by address"},
	{path: "detectLocal.interfaceNamePrefix", treatment: warned, advice: "pods are told by address"},
	{path: "clusterCIDR", treatment: mapped, advice: "--cluster-cidr"},
	{path: "nodePortAddresses", treatment: mapped, advice: "--nodeport-addresses"},

	{path: "oomScoreAdj", treatment: warned, advice: "set it where the agent is started", quiet: []string{"-999"}},
	{path: "conntrack.maxPerCore", treatment: mapped, advice: "--conntrack-max, times the CPUs, at least conntrack.min, times two (a flow takes two entries); 0 is fairlead's default"},
	{path: "conntrack.min", treatment: mapped, advice: "--conntrack-max at least, unless maxPerCore is 0"},
	{path: "conntrack.tcpEstablishedTimeout", treatment: mapped, advice: "--conntrack-tcp-timeout-established"},
	{path: "conntrack.tcpCloseWaitTimeout", treatment: mapped, advice: "--conntrack-tcp-timeout-close-wait"},
	{path: "conntrack.tcpBeLiberal", treatment: always, advice: "sequence numbers are never a reason to drop"},
	{path: "conntrack.udpTimeout", treatment: mapped, advice: "--conntrack-udp-timeout"},
	{path: "conntrack.udpStreamTimeout", treatment: mapped, advice: "--conntrack-udp-timeout-stream"},
	{path: "configSyncPeriod", treatment: warned, advice: "the API server is watched, never listed again by the clock", quiet: []string{"15m0s"}},
	{path: "portRange", treatment: warned, advice: "kube-proxy does not use it either"},
}

// kubeProxyKeyOf is Key for a KubeProxyConfiguration.
func kubeProxyKeyOf(flag string) string {
	switch flag {
	case "kubeconfig":
		return "clientConnection.kubeconfig"
	case "node-name":
		return "hostnameOverride"
	case "log-format":
		return "logging.format"
	case "conntrack-max":
		return "conntrack.maxPerCore and conntrack.min"
	case "conntrack-tcp-timeout-established":
		return "conntrack.tcpEstablishedTimeout"
	case "conntrack-tcp-timeout-close-wait":
		return "conntrack.tcpCloseWaitTimeout"
	case "conntrack-udp-timeout":
		return "conntrack.udpTimeout"
	case "conntrack-udp-timeout-stream":
		return "conntrack.udpStreamTimeout"
	case "iptables-masquerade-bit":
		return "iptables.masqueradeBit"
	case "ipvs-scheduler":
		return "ipvs.scheduler"
	case "ipvs-strict-arp":
		return "ipvs.strictARP"
	case "ipvs-tcp-timeout":
		return "ipvs.tcpTimeout"
	case "ipvs-tcpfin-timeout":
		return "ipvs.tcpFinTimeout"
	case "ipvs-udp-timeout":
		return "ipvs.udpTimeout"
	}
	return Key(flag) // bindAddress, clusterCIDR and so on have the same name
}
