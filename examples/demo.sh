#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The main job on real input: a node, its pods and a client outside, each a
# network namespace; fairlead follows a directory of YAML and the kernel routes
# their traffic. Leaves nothing behind. Usage: demo.sh FAIRLEAD RESPONDER
set -euo pipefail
cd "$(dirname "$0")/.."
fairlead=$(realpath "$1") responder=$(realpath "$2")
id=fairlead-demo-$$
work=$(mktemp -d /tmp/$id.XXXXXX)
agent=

say() { printf '\n\033[1m# %s\033[0m\n' "$*"; }
run() { printf '$ %s\n' "$*"; "$@"; }
# In a namespace, with this script's /sys: `ip netns exec` would hide cgroups.
in_ns() { local ns=$1; shift; nsenter --net="/run/netns/$id-$ns" "$@"; }
ctl() { printf '$ fairlead %s\n' "$*"; "$fairlead" "$@" --bpffs "$work/bpf"; }
ask() { # NAMESPACE URL: prints the answer, and fails without one
	printf '%-8s -> %-28s ' "$1" "$2"
	(
		# The client outside is another machine: no hook of ours sees its sockets.
		[ "$1" != outside ] || echo "$BASHPID" >"$home/cgroup.procs"
		in_ns "$1" curl --silent --show-error --fail --max-time 2 "$2"
	)
}

cleanup() {
	status=$?
	set +e
	[ -n "$agent" ] && kill -9 "$agent" 2>/dev/null && wait "$agent" 2>/dev/null
	jobs -p | xargs -r kill -9 2>/dev/null
	wait 2>/dev/null
	mountpoint -q "$work/bpf" && "$fairlead" cleanup --bpffs "$work/bpf" >"$work/cleanup.log"
	for ns in node a b client outside; do ip netns del "$id-$ns" 2>/dev/null; done
	umount "$work/bpf" 2>/dev/null
	if [ -n "${cgroup:-}" ]; then
		echo $$ >"$home/cgroup.procs"
		rmdir "$cgroup"
	fi
	rm -rf "$work"
	[ $status = 0 ] || echo "demo failed with status $status" >&2
	exit $status
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# This script and all it starts are in a cgroup of their own, so that fairlead's
# socket hooks concern nobody else on this machine.
root=$(awk '$0 ~ / - cgroup2 / { print $5; exit }' /proc/self/mountinfo)
if [ -z "$root" ]; then
	root=$work/cgroup2
	mkdir -p "$root" && mount -t cgroup2 none "$root"
fi
home=$root$(sed -n 's/^0:://p' /proc/self/cgroup)
cgroup=$root/$id
mkdir "$cgroup" && echo $$ >"$cgroup/cgroup.procs"
mkdir "$work/bpf" "$work/manifests" && mount -t bpf bpf "$work/bpf"

say "A node, two pods, a client pod and a client outside, as network namespaces"
for ns in node a b client outside; do
	ip netns add "$id-$ns"
	ip -n "$id-$ns" link set lo up
done
in_ns node sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
pod() { # NAME IPV4 IPV6
	ip -n "$id-node" link add "pod-$1" type veth peer name eth0 netns "$id-$1"
	ip -n "$id-node" link set "pod-$1" up
	ip -n "$id-node" addr add 169.254.1.1/32 dev "pod-$1"
	ip -n "$id-node" addr add fe80::1/64 dev "pod-$1" nodad
	ip -n "$id-$1" link set eth0 up
	ip -n "$id-$1" addr add "$2/32" dev eth0
	ip -n "$id-$1" addr add "$3/128" dev eth0 nodad
	ip -n "$id-$1" route add 169.254.1.1 dev eth0
	ip -n "$id-$1" route add default via 169.254.1.1
	ip -n "$id-$1" route add default via fe80::1 dev eth0
	ip -n "$id-node" route add "$2" dev "pod-$1"
	ip -n "$id-node" route add "$3" dev "pod-$1"
}
pod a 10.244.1.11 fd00:10:244:1::11
pod b 10.244.1.12 fd00:10:244:1::12
pod client 10.244.1.20 fd00:10:244:1::20
ip -n "$id-node" link add uplink type veth peer name eth0 netns "$id-outside"
ip -n "$id-node" link set uplink up && ip -n "$id-outside" link set eth0 up
ip -n "$id-node" addr add 192.0.2.11/24 dev uplink
ip -n "$id-node" addr add 2001:db8::11/64 dev uplink nodad
ip -n "$id-node" route add default via 192.0.2.100
ip -n "$id-outside" addr add 192.0.2.100/24 dev eth0
ip -n "$id-outside" addr add 2001:db8::100/64 dev eth0 nodad
# Not through in_ns: $! is to be the process itself, not a shell around it.
nsenter --net="/run/netns/$id-a" "$responder" -name pod-a &
nsenter --net="/run/netns/$id-b" "$responder" -name pod-b &

say "fairlead follows examples/basic, with no cluster at all"
cp examples/basic/*.yaml "$work/manifests"
start_agent() {
	nsenter --net="/run/netns/$id-node" "$fairlead" run --manifests "$work/manifests" --node-name node1 --bpffs "$work/bpf" \
		--cgroup-root "$cgroup" --state-dir "$work/state" \
		>>"$work/agent.log" 2>&1 &
	agent=$!
	for _ in $(seq 100); do
		in_ns node curl -sf -o "$work/healthz" 127.0.0.1:10256/healthz && return
		kill -0 "$agent" 2>/dev/null || break
		sleep 0.1
	done
	cat "$work/agent.log" >&2
	return 1
}
start_agent
cat "$work/agent.log"

say "The rule table, read from the kernel"
ctl dump services

say "Requests: to the ClusterIP from a pod, to the NodePort from outside"
for _ in 1 2 3; do ask client http://10.96.0.10/; done
ask client "http://[fd00:10:96::10]/"
for _ in 1 2 3; do ask outside http://192.0.2.11:30080/; done
ask outside "http://[2001:db8::11]:30080/"

say "Why does this packet go there?"
node_ctl() { printf '$ fairlead %s\n' "$*"; in_ns node "$fairlead" "$@" --bpffs "$work/bpf"; }
node_ctl explain 10.244.1.20 10.96.0.10:80
node_ctl explain 192.0.2.100 192.0.2.11:30080

say "Decisions, as they are made"
node_ctl trace --for 2s &
tracer=$!
sleep 1
ask client http://10.96.0.10/ >/dev/null
ask outside http://192.0.2.11:30080/ >/dev/null
wait "$tracer"

say "An edit: pod-a leaves the Service web; new connections go to pod-b at once"
slices=$work/manifests/web-endpoints.yaml
sed -e '/10\.244\.1\.11\]/,+1d' -e '/::11"\]/,+1d' "$slices" >"$work/edited"
diff "$slices" "$work/edited" || true
mv "$work/edited" "$slices"
sleep 0.5
for _ in 1 2 3 4; do
	answer=$(ask client http://10.96.0.10/)
	echo "$answer"
	case $answer in *pod-a*) echo "pod-a still gets connections" >&2; exit 1 ;; esac
done

say "A port that the Service does not have: refused at once, not after a timeout"
if in_ns client curl --silent --show-error --max-time 2 http://10.96.0.10:81/; then
	echo "a port that no Service has was answered" >&2
	exit 1
fi

say "The agent is killed; the kernel goes on"
run kill -9 "$agent"
wait "$agent" 2>/dev/null || true
agent=
for _ in 1 2; do ask client http://10.96.0.10/; ask outside http://192.0.2.11:30080/; done
ctl dump services -o wide

say "What went through, and what was refused"
ctl dump counters
ctl dump conntrack

say "A new agent adopts what is there"
: >"$work/agent.log"
start_agent
cat "$work/agent.log"
ask outside http://192.0.2.11:30080/

say "All of it worked; cleaning up"
