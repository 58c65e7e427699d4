#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The second half of the demo: a node without a control plane runs examples/web,
# two Pods, a ConfigMap and a Service, from a directory, with a containerd of its
# own. All of it is in namespaces that end with this script; the machine's own
# containerd, network and directories are not touched.
# Usage: web-demo.sh FAIRLEAD RESPONDER
set -euo pipefail
cd "$(dirname "$0")/.."
fairlead=$(realpath "$1") responder=$(realpath "$2")

say() { printf '\n\033[1m# %s\033[0m\n' "$*"; }

# The outer script makes what needs the machine, and removes the cgroups.
if [ -z "${FAIRLEAD_WEB_DEMO:-}" ]; then
	export FAIRLEAD_WEB_DEMO=fairlead-web-demo-$$
	work=$(mktemp -d "/tmp/$FAIRLEAD_WEB_DEMO.XXXXXX")
	cleanup() {
		status=$?
		set +e
		for _ in $(seq 50); do
			left=$(awk '{ for (i = 7; $i != "-"; i++); if ($(i + 1) ~ /^cgroup/) print $5 }' /proc/self/mountinfo | while read -r top; do
				[ -d "$top/$FAIRLEAD_WEB_DEMO" ] && find "$top/$FAIRLEAD_WEB_DEMO" -depth -type d -exec rmdir {} \; 2>/dev/null
				[ -d "$top/$FAIRLEAD_WEB_DEMO" ] && echo "$top"
			done)
			[ -z "$left" ] && break
			sleep 0.1
		done
		rm -rf "$work"
		[ $status = 0 ] || echo "web demo failed with status $status" >&2
		exit $status
	}
	trap cleanup EXIT
	trap 'exit 130' INT TERM
	image() { ${GO:-go} run ./examples/image -name "fairlead.example/$1:1" -binary "$responder" -o "$work/$1.tar" "${@:2}"; }
	image responder && image pause -- -pause
	unshare --net --mount --pid --fork --kill-child --mount-proc "$0" "$fairlead" "$responder" "$work"
	exit
fi

work=$3 dir=/run/fairlead-web-demo agent=
trap '[ $? = 0 ] || tail -n 30 "$dir"/*.log >&2' EXIT
trap 'exit 130' INT TERM
mount --make-rshared /
for d in /run /var/lib; do mount -t tmpfs -o mode=755 tmpfs "$d"; done
mkdir -p "$dir"/{cni,manifests,bpf,log} && mount -t bpf bpf "$dir/bpf"

# This script is in a cgroup beside those of the Pods.
root=$(awk '{ for (i = 7; $i != "-"; i++); if ($(i + 1) == "cgroup2") { print $5; exit } }' /proc/self/mountinfo)
if [ -z "$root" ]; then
	root=$dir/cgroup2
	mkdir "$root" && mount -t cgroup2 none "$root"
fi
mkdir -p "$root/$FAIRLEAD_WEB_DEMO/demo" && echo 0 >"$root/$FAIRLEAD_WEB_DEMO/demo/cgroup.procs"

run() { printf '$ %s\n' "$*"; "$@"; }
ctl() { # COMMAND FLAG-THAT-FINDS-THE-NODE ...: without the flag in what is shown
	printf '$ fairlead %s\n' "$1${3:+ ${*:3}}"
	# shellcheck disable=SC2086
	"$fairlead" "$1" $2 "${@:3}"
}
socket="--cri-socket=$dir/containerd.sock" state="--state-dir=$dir/state" pins="--bpffs=$dir/bpf"
until_() { # SECONDS WHAT COMMAND...: waits
	for _ in $(seq $(($1 * 20))); do
		"${@:3}" && return
		kill -0 "$agent" 2>/dev/null || break
		sleep 0.05
	done
	echo "not within $1 s: $2" >&2
	return 1
}
ask() { curl --silent --show-error --fail --max-time 2 http://10.96.0.80/; }
ready() { [ "$("$fairlead" pods "$state" 2>/dev/null | grep -c " $1 *Running")" = "$2" ]; }
both_answer() { [ "$(for _ in $(seq 12); do ask; done 2>/dev/null | cut -d' ' -f1 | sort -u | wc -l)" = 2 ]; }
process() { pgrep -f -- "^/responder -name=$1 "; }
limit() { # of the CPU of a process: microseconds in each 100,000
	local path file
	for file in cpu.max cpu.cfs_quota_us; do
		path=$(awk -F: '$2 == "" || $2 ~ /(^|,)cpu(,|$)/ { print $3 }' "/proc/$(process "$1")/cgroup" | while read -r p; do
			awk '{ for (i = 7; $i != "-"; i++); if ($(i + 1) ~ /^cgroup/) print $5 }' /proc/self/mountinfo | sed "s|\$|$p/$file|"
		done)
		for path in $path; do [ -e "$path" ] && { cut -d' ' -f1 "$path"; return; }; done
	done
}
is_limit() { [ "$(limit "$1")" = "$2" ]; }

say "A node with a container runtime, and no control plane"
ip link set lo up
ip link add uplink type veth peer name nowhere
ip link set uplink up && ip link set nowhere up
ip addr add 192.0.2.11/24 dev uplink && ip route add default via 192.0.2.1
cat >"$dir/config.toml" <<CONFIG
version = 2
root = "$dir/root"
state = "$dir/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs"]
[grpc]
  address = "$dir/containerd.sock"
[ttrpc]
  address = "$dir/containerd.sock.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "$dir/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "fairlead.example/pause:1"
  restrict_oom_score_adj = true
  disable_apparmor = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$dir/cni"
CONFIG
cat >"$dir/cni/10-pods.conflist" <<CONFLIST
{"cniVersion": "0.4.0", "name": "pods", "plugins": [{"type": "ptp", "ipMasq": false,
 "ipam": {"type": "host-local", "dataDir": "$dir/ipam", "ranges": [[{"subnet": "10.88.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
CONFLIST
containerd --config "$dir/config.toml" --log-level warn >"$dir/containerd.log" 2>&1 &
agent=$!
import() { ctr -a "$dir/containerd.sock" -n k8s.io images import "$work/$1.tar" >/dev/null 2>>"$dir/import.log"; }
until_ 20 "containerd answers" test -S "$dir/containerd.sock"
until_ 20 "the image is there" import pause
import responder
run containerd --version

start_agent() {
	"$fairlead" run --manifests "$dir/manifests" --pods cri "$socket" --eviction-hard 'memory.available<1Mi' --node-name node1 --bind-address 192.0.2.11 --cluster-cidr 10.88.0.0/16 \
		"$pins" --cgroup-root "$root/$FAIRLEAD_WEB_DEMO" --pod-cgroup-root "/$FAIRLEAD_WEB_DEMO/kubepods" --pod-log-dir "$dir/log" "$state" \
		--metrics-bind-address= --healthz-bind-address= >>"$dir/agent.log" 2>&1 &
	agent=$!
}
say "fairlead runs examples/web: two Pods, their ConfigMap and a Service"
cp examples/web/*.yaml "$dir/manifests"
start_agent
until_ 30 "both Pods are ready" ready 1/1 2
cat "$dir/agent.log"
ctl pods "$state"
ctl dump "$pins" services

say "The Service answers from both"
until_ 10 "both Pods answer" both_answer
for _ in 1 2 3 4; do ask; done

say "An edit of the ConfigMap reaches the files in the containers"
run sed -i 's/message: hello/message: good morning/' "$dir/manifests/web.yaml"
new_message() { ask | grep -q 'good morning'; }
until_ 10 "the answers have the new message" new_message
ask

say "Logs, and a command in a Pod: it asks the Service from inside"
ctl logs "$socket" web-0
ctl exec "$socket" web-0 -- /responder -get http://10.96.0.80/

say "One Pod's process is killed: the other one answers, and it is restarted"
(while [ ! -e "$dir/enough" ]; do ask 2>&1 | sed 's/ .*saw.*/ answered/; s/^curl.*/nobody, before it was noticed/' || true; sleep 0.02; done) >"$dir/answers" &
load=$!
sleep 0.3
run kill -9 "$(process web-0)"
restarted() { "$fairlead" pods "$state" | grep -q 'web-0 *1/1 *Running *1 '; }
until_ 20 "web-0 was restarted" restarted
until_ 10 "both Pods answer" both_answer
touch "$dir/enough" && wait "$load"
sort "$dir/answers" | uniq -c
ctl pods "$state"

say "A limit is changed, and nothing is restarted"
before=$(process web-0)
echo "web-0 may use $(limit web-0) us of CPU in each 100000"
run sed -i 's/cpu: 200m/cpu: 500m/' "$dir/manifests/web-0.yaml"
until_ 10 "the limit is the new one" is_limit web-0 50000
echo "web-0 may use $(limit web-0) us of CPU in each 100000"
[ "$(process web-0)" = "$before" ] || { echo "web-0 was restarted" >&2; exit 1; }

say "The agent is killed: Pods and Service go on, and the next agent takes them over"
run kill -9 "$agent"
wait "$agent" 2>/dev/null || true
for _ in 1 2 3; do ask; done
start_agent
until_ 20 "both Pods are ready" ready 1/1 2
[ "$(process web-0)" = "$before" ] || { echo "web-0 was restarted" >&2; exit 1; }
ctl pods "$state"

say "The files are removed, and so are the Pods"
run rm "$dir"/manifests/*.yaml
none() { ! "$fairlead" pods "$state" | grep -q web && ! process web; }
until_ 20 "the Pods are gone" none
ctl pods "$state"
kill "$agent" && wait "$agent"
"$fairlead" cleanup "$pins" >/dev/null

say "All of it worked; cleaning up"
