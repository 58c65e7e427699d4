// SPDX-License-Identifier: Apache-2.0

// Package config holds what `fairlead run` can be told and reads it from a
// file: fairlead's own, or an unchanged KubeProxyConfiguration. It knows no
// command line library and opens nothing but that file.
package config

import (
	"encoding/json"
	"errors"
	"os"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Configuration is every setting of the agent. Each field names its key in a
// FairleadConfiguration and its flag; the zero value of one that has no default
// here means what its comment says.
type Configuration struct {
	// Kubeconfig is the file that says how to reach the API server. With
	// Manifests empty as well: the pod's service account.
	Kubeconfig string `json:"kubeconfig" flag:"kubeconfig"`
	// Manifests is a directory of YAML to read instead of an API server.
	Manifests string `json:"manifests" flag:"manifests"`
	// NodeName is the name of this node's Node object. Empty: the hostname in
	// lower case, as the kubelet has it.
	NodeName string `json:"nodeName" flag:"node-name"`
	// BindAddress is one address of the node for each family at most, to use
	// as its primary ones. Empty or unspecified: as the Node object says.
	BindAddress List `json:"bindAddress" flag:"bind-address"`

	// Dataplane is auto, ebpf, nftables, iptables or ipvs.
	Dataplane string `json:"dataplane" flag:"dataplane"`
	// Pods is off or cri.
	Pods string `json:"pods" flag:"pods"`

	// ServiceCIDR are the ranges of ClusterIPs. Empty: unknown.
	ServiceCIDR List `json:"serviceCIDR" flag:"service-cidr"`
	// ClusterCIDR are the ranges of pods. Empty: those of the Node object.
	ClusterCIDR List `json:"clusterCIDR" flag:"cluster-cidr"`
	// NodePortAddresses are CIDRs and the words primary, localhost and all.
	NodePortAddresses List `json:"nodePortAddresses" flag:"nodeport-addresses"`

	// ExternalIPs and LoadBalancerIPs say which spec.externalIPs and which
	// status.loadBalancer.ingress IPs are served: allow, deny or CIDRs. Empty:
	// allow.
	ExternalIPs     List `json:"externalIPs" flag:"external-ips"`
	LoadBalancerIPs List `json:"loadBalancerIPs" flag:"load-balancer-ips"`

	// MetricsBindAddress and HealthzBindAddress are HOST:PORT, or HOST for the
	// usual port. Empty: not served.
	MetricsBindAddress string `json:"metricsBindAddress" flag:"metrics-bind-address"`
	HealthzBindAddress string `json:"healthzBindAddress" flag:"healthz-bind-address"`
	// MetricsAuth is none, or delegated: TLS, and only whom the API server knows
	// and lets get the path.
	MetricsAuth string `json:"metricsAuth" flag:"metrics-auth"`
	// MetricsTLSCertFile and MetricsTLSPrivateKeyFile are the certificate of the
	// metrics address. Empty: no TLS or, where MetricsAuth needs it, one that is
	// signed by itself.
	MetricsTLSCertFile       string `json:"metricsTLSCertFile" flag:"metrics-tls-cert-file"`
	MetricsTLSPrivateKeyFile string `json:"metricsTLSPrivateKeyFile" flag:"metrics-tls-private-key-file"`
	// StatusPage serves /status on the metrics address.
	StatusPage bool `json:"statusPage" flag:"status-page"`
	// Profiling serves /debug/pprof/ on the metrics address.
	Profiling bool `json:"profiling" flag:"profiling"`

	// CgroupRoot is the cgroup2 directory whose processes get the socket hooks.
	// Empty: the root of the cgroup2 mount.
	CgroupRoot string `json:"cgroupRoot" flag:"cgroup-root"`
	// BPFFS is the mount of bpffs; pins go into its directory fairlead.
	BPFFS string `json:"bpffs" flag:"bpffs"`
	// Devices are the uplinks, the side that is not pods; a trailing * matches
	// any rest. Empty: found.
	Devices List `json:"devices" flag:"devices"`
	// TakeOver: the rules of a kube-proxy that has ended are removed once the
	// Dataplane is in force.
	TakeOver bool `json:"takeOver" flag:"take-over"`
	// StateDir holds what must survive a restart and is not in the kernel.
	StateDir string `json:"stateDir" flag:"state-dir"`

	// MasqueradePorts is MIN-MAX, the source ports of masqueraded flows,
	// inclusive. Empty: the Dataplane's default.
	MasqueradePorts string `json:"masqueradePorts" flag:"masquerade-ports"`

	// Sizes of the kernel maps, in entries. 0: the Dataplane's default. A flow
	// takes two entries of ConntrackMax.
	ConntrackMax int `json:"conntrackMax" flag:"conntrack-max"`
	FrontendsMax int `json:"frontendsMax" flag:"frontends-max"`
	SlotsMax     int `json:"slotsMax" flag:"slots-max"`
	ServicesMax  int `json:"servicesMax" flag:"services-max"`
	AffinityMax  int `json:"affinityMax" flag:"affinity-max"`
	DatagramsMax int `json:"datagramsMax" flag:"datagrams-max"`

	// How long a flow of the packet path may be silent. 0: the Dataplane's
	// default.
	ConntrackTCPTimeoutEstablished metav1.Duration `json:"conntrackTCPTimeoutEstablished" flag:"conntrack-tcp-timeout-established"`
	ConntrackTCPTimeoutCloseWait   metav1.Duration `json:"conntrackTCPTimeoutCloseWait" flag:"conntrack-tcp-timeout-close-wait"`
	ConntrackUDPTimeout            metav1.Duration `json:"conntrackUDPTimeout" flag:"conntrack-udp-timeout"`
	ConntrackUDPTimeoutStream      metav1.Duration `json:"conntrackUDPTimeoutStream" flag:"conntrack-udp-timeout-stream"`

	// IPTablesMasqueradeBit, 0 to 31, is the bit of the packet mark that the
	// iptables Dataplane uses between two chains.
	IPTablesMasqueradeBit int `json:"iptablesMasqueradeBit" flag:"iptables-masquerade-bit"`

	// IPVSScheduler is one of the kernel's: rr, wrr, lc, wlc, lblc, lblcr, sh,
	// dh, mh, sed, nq, fo, ovf.
	IPVSScheduler string `json:"ipvsScheduler" flag:"ipvs-scheduler"`
	// IPVSStrictARP keeps other devices from answering ARP for the addresses
	// of Services.
	IPVSStrictARP bool `json:"ipvsStrictARP" flag:"ipvs-strict-arp"`
	// IPVS's timeouts of idle connections. 0: the kernel's are left.
	IPVSTCPTimeout    metav1.Duration `json:"ipvsTCPTimeout" flag:"ipvs-tcp-timeout"`
	IPVSTCPFinTimeout metav1.Duration `json:"ipvsTCPFinTimeout" flag:"ipvs-tcpfin-timeout"`
	IPVSUDPTimeout    metav1.Duration `json:"ipvsUDPTimeout" flag:"ipvs-udp-timeout"`

	// What follows is for Pods cri.

	// CRISocket is the container runtime's, a path or unix:///path.
	CRISocket string `json:"criSocket" flag:"cri-socket"`
	// PodLogDir is where the logs of containers are.
	PodLogDir string `json:"podLogDir" flag:"pod-log-dir"`
	// PodCgroupRoot is the cgroup of all Pods, CgroupDriver (cgroupfs or
	// systemd) the runtime's.
	PodCgroupRoot string `json:"podCgroupRoot" flag:"pod-cgroup-root"`
	CgroupDriver  string `json:"cgroupDriver" flag:"cgroup-driver"`
	// MaxPods is how many Pods the node takes.
	MaxPods int `json:"maxPods" flag:"max-pods"`
	// EvictionHard are SIGNAL<QUANTITY: with less available Pods are evicted, as
	// the kubelet's evictionHard. Not named: not looked at.
	EvictionHard List `json:"evictionHard" flag:"eviction-hard"`
	// From ImageGCHighThreshold percent of their filesystem on, images are removed
	// down to ImageGCLowThreshold. 100: not before the disk is short.
	ImageGCHighThreshold int `json:"imageGCHighThreshold" flag:"image-gc-high-threshold"`
	ImageGCLowThreshold  int `json:"imageGCLowThreshold" flag:"image-gc-low-threshold"`
	// ClusterDNS are the resolvers of Pods with dnsPolicy ClusterFirst, empty:
	// the node's; ClusterDomain is the domain that they search.
	ClusterDNS    List   `json:"clusterDNS" flag:"cluster-dns"`
	ClusterDomain string `json:"clusterDomain" flag:"cluster-domain"`
	// ResolvConf is the node's resolv.conf.
	ResolvConf string `json:"resolvConf" flag:"resolv-conf"`
	// PodNetwork is off, or host-gw. PodCIDR are this node's ranges for it, of
	// each family one at most; empty: those of the Node object.
	PodNetwork string `json:"podNetwork" flag:"pod-network"`
	PodCIDR    List   `json:"podCIDR" flag:"pod-cidr"`
	// KubeletBindAddress is where the kubelet's API is served, with an API
	// server as the source. Empty: not at all.
	KubeletBindAddress string `json:"kubeletBindAddress" flag:"kubelet-bind-address"`
	// ClientCAFile verifies client certificates of the kubelet's API, and of the
	// metrics address with MetricsAuth delegated;
	// TLSCertFile and TLSPrivateKeyFile are its own. Empty: one that is signed
	// by itself.
	ClientCAFile      string `json:"clientCAFile" flag:"client-ca-file"`
	TLSCertFile       string `json:"tlsCertFile" flag:"tls-cert-file"`
	TLSPrivateKeyFile string `json:"tlsPrivateKeyFile" flag:"tls-private-key-file"`
	// KubeletRotateServerCertificates has the cluster sign the certificate of the
	// kubelet's API (kubernetes.io/kubelet-serving), and the next one in time.
	KubeletRotateServerCertificates bool `json:"kubeletRotateServerCertificates" flag:"kubelet-rotate-server-certificates"`
	// NodeLabels are KEY=VALUE, RegisterWithTaints KEY=VALUE:EFFECT, of a Node
	// that is created.
	NodeLabels         List `json:"nodeLabels" flag:"node-labels"`
	RegisterWithTaints List `json:"registerWithTaints" flag:"register-with-taints"`
	// DrainOnStop ends the Pods when the agent is told to stop.
	DrainOnStop bool `json:"drainOnStop" flag:"drain-on-stop"`

	// LogLevel is debug, info, warn or error.
	LogLevel string `json:"logLevel" flag:"log-level"`
	// V is klog's verbosity; 4 and more means LogLevel debug.
	V int `json:"v" flag:"v"`
	// LogFormat is text or json.
	LogFormat string `json:"logFormat" flag:"log-format"`
}

// The ports of kube-proxy's servers and of the kubelet's API.
const (
	metricsPort = "10249"
	healthzPort = "10256"
	kubeletPort = "10250"
)

// Default is the configuration of an agent that was told nothing.
func Default() Configuration {
	return Configuration{
		Dataplane:          "auto",
		Pods:               "off",
		MetricsBindAddress: "127.0.0.1:" + metricsPort,
		HealthzBindAddress: "0.0.0.0:" + healthzPort,
		MetricsAuth:        "none",
		BPFFS:              "/sys/fs/bpf",
		StateDir:           "/var/lib/fairlead",

		CRISocket:            "/run/containerd/containerd.sock",
		PodLogDir:            "/var/log/pods",
		PodCgroupRoot:        "/kubepods",
		CgroupDriver:         "cgroupfs",
		MaxPods:              110, // the kubelet's
		EvictionHard:         List{"memory.available<100Mi", "nodefs.available<10%", "imagefs.available<15%", "nodefs.inodesFree<5%", "imagefs.inodesFree<5%"},
		ImageGCHighThreshold: 85,
		ImageGCLowThreshold:  80,
		ClusterDomain:        "cluster.local",
		ResolvConf:           "/etc/resolv.conf",
		PodNetwork:           "off",
		KubeletBindAddress:   "0.0.0.0:" + kubeletPort,

		IPTablesMasqueradeBit: 14, // kube-proxy's
		IPVSScheduler:         "rr",

		LogLevel:  "info",
		LogFormat: "text",
	}
}

// List is a list of strings. In a file it may also be one string with commas,
// as kube-proxy's clusterCIDR is.
type List []string

// UnmarshalJSON takes ["a","b"] or "a,b".
func (l *List) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*l = ParseList(one)
		return nil
	}
	var many []string
	if err := json.Unmarshal(b, &many); err != nil {
		return errors.New("want a list of strings, or one string with commas")
	}
	*l = many
	return nil
}

// String is the inverse of ParseList.
func (l List) String() string { return strings.Join(l, ",") }

// ParseList splits at commas. Spaces and empty parts do not count.
func ParseList(s string) List {
	var l List
	for part := range strings.SplitSeq(s, ",") {
		if part = strings.TrimSpace(part); part != "" {
			l = append(l, part)
		}
	}
	return l
}

// Complete fills in what depends on the machine: the node's name.
func (c *Configuration) Complete() error {
	if c.NodeName == "" {
		host, err := os.Hostname()
		if err != nil {
			return err
		}
		c.NodeName = host
	}
	c.NodeName = strings.ToLower(strings.TrimSpace(c.NodeName))
	if c.NodeName == "" {
		return errors.New("this machine has no hostname: set --node-name")
	}
	return nil
}
