# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` install what is missing. The others expect it.

SHELL := /bin/bash
GO ?= go
BIN := bin
IMAGE ?= fairlead:dev
VERSION ?= $(shell git describe --always --dirty 2>/dev/null || echo devel)
LDFLAGS := -s -w -X main.version=$(VERSION)
# gRPC's tracing is a page made by html/template, which has the linker keep
# every method there is: 28 MB of them, in the file and in memory.
export GOFLAGS := $(GOFLAGS) -tags=grpcnotrace
CLANG_FORMAT ?= clang-format-19
# Packages whose tests spend their time in the kernel, which is too slow under
# the race detector; those of the pod runner that need containerd; the rest.
KERNEL_PACKAGES := ./bpf/... ./dataplane/ebpf ./dataplane/nftables ./dataplane/iptables ./dataplane/ipvs ./dataplane/netfilter ./dataplane/nfnetlink ./dataplane/nsthread ./dataplane/uplink
POD_PACKAGES := ./podrunner ./podrunner/containerdtest ./podrunner/cri ./podrunner/housekeeping ./podrunner/kubeletapi ./podrunner/podnetwork ./podrunner/volume/... ./test/pods ./image/... ./manifests/node
PURE_PACKAGES = $(shell $(GO) list ./... | grep -v -E '/(bpf|dataplane/(ebpf|nftables|iptables|ipvs|netfilter|nfnetlink|nsthread|uplink)|test/(conformance|resilience|observe|bench|vm|pods)|image|manifests/node|podrunner/(containerdtest|cri|housekeeping|kubeletapi|podnetwork|volume))(/[a-z]+)*$$|/podrunner$$')

.PHONY: all build demo test tools tools-demo lint generate check-generated unit kernel pods conformance resilience observe vm vm-kube-proxy e2e soak programs kubernetes-conformance manifests vuln image bench bench-pods fuzz clean

all: build

build: $(BIN)/fairlead $(BIN)/responder

.PHONY: $(BIN)/fairlead $(BIN)/responder
$(BIN)/fairlead:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/fairlead
$(BIN)/responder:
	CGO_ENABLED=0 $(GO) build -trimpath -o $@ ./examples/responder

## The main job on real input, in namespaces: examples/basic, then examples/web
## with its Pods on a containerd of its own.
demo: tools-demo build
	examples/demo.sh $(BIN)/fairlead $(BIN)/responder
	examples/web-demo.sh $(BIN)/fairlead $(BIN)/responder

## Everything that CI checks.
test: tools
	$(MAKE) lint check-generated manifests vuln
	$(MAKE) unit
	$(MAKE) kernel
	.ci/beside $(BIN)/programs.log programs $(MAKE) pods
	$(MAKE) conformance
	$(MAKE) resilience
	$(MAKE) observe
	.ci/beside $(BIN)/vm.log vm $(MAKE) e2e
	$(MAKE) vm-kube-proxy
	$(MAKE) build && examples/demo.sh $(BIN)/fairlead $(BIN)/responder && examples/web-demo.sh $(BIN)/fairlead $(BIN)/responder
	.ci/leftovers

tools-demo:
	.ci/install demo
tools:
	.ci/install test

lint:
	@bad=$$(gofmt -l $$(git ls-files '*.go' | grep -v _bpfe)); [ -z "$$bad" ] || { echo "gofmt: $$bad"; exit 1; }
	$(CLANG_FORMAT) --dry-run -Werror bpf/*.h bpf/*.c
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	cd test/e2e && $(GO) vet ./...
	for f in examples/*.sh .ci/run .ci/install .ci/leftovers .ci/beside .ci/vuln; do bash -n "$$f" || exit 1; done
	@bad=$$(git grep -l 'k8s.io/kubernetes' -- '*.go' go.mod ':!test/e2e'); [ -z "$$bad" ] || { echo "the main module imports k8s.io/kubernetes: $$bad"; exit 1; }

generate:
	$(GO) generate ./...

## Regenerates in a copy of the tree and compares.
check-generated:
	@tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && git ls-files -z | tar --null -T - -cf - | tar -C "$$tmp" -xf - && \
	(cd "$$tmp" && $(GO) generate ./...) && \
	for f in $$(git ls-files '*_bpfe[lb].o' '*_bpfe[lb].go' 'manifests/install.yaml'); do \
		cmp "$$f" "$$tmp/$$f" || { echo "$$f is not what \`make generate\` makes: run it and commit"; exit 1; }; done

unit:
	$(GO) test -race $(PURE_PACKAGES)

kernel:
	$(GO) test -timeout 20m $(KERNEL_PACKAGES)

## Against a real containerd, in namespaces of their own.
pods:
	$(GO) test -timeout 20m -p 1 $(POD_PACKAGES)

conformance:
	$(GO) test -timeout 30m -v ./test/conformance | .ci/summary

## IPVS, which few kernels of build machines have, and the eBPF dataplane on
## Debian's kernels, in emulated machines. KERNEL_MATRIX=whole plays every variant.
vm:
	FAIRLEAD_KERNEL_MATRIX=$${KERNEL_MATRIX:-1} $(GO) test -timeout 60m -parallel 2 -v ./test/vm | .ci/summary

## From the real kube-proxy's ipvs mode and back, in a machine with that.
vm-kube-proxy: programs
	FAIRLEAD_KERNEL_MATRIX=kube-proxy $(GO) test -timeout 40m -v -run KubeProxys ./test/vm | .ci/summary

resilience:
	$(GO) test -timeout 20m -v ./test/resilience | .ci/summary

## Sockets, metrics, dashboard and status of a running agent, by Prometheus and Chromium.
observe:
	$(GO) test -timeout 15m -v ./test/observe | .ci/summary

manifests:
	promtool check rules manifests/prometheus/rules.yaml
	promtool test rules manifests/prometheus/rules_test.yaml
	$(GO) test ./manifests/gen

## Against a real control plane, built as Go modules and cached; test/e2e/cluster
## with nodes that run Pods. One package after another: each has the machine.
## In namespaces without a way out: what is downloaded is downloaded before.
e2e: image programs
	cd test/e2e && $(GO) test -count 1 -timeout 30m -p 1 ./...

## Kubernetes' own conformance tests about Pods, volumes and Services, against a
## cluster of two fairlead nodes. Takes half an hour, and is not part of `make test`.
kubernetes-conformance: image programs
	.ci/install test && .ci/install conformance
	cd test/e2e && $(GO) run ./cmd/build-controlplane e2e.test agnhost nonewprivs
	cd test/e2e && FAIRLEAD_CONFORMANCE=$${FAIRLEAD_CONFORMANCE:-yes} $(GO) test -count 1 -timeout 120m -v -run KubernetesOwn ./cluster

## Those of the control plane: the first time takes a quarter of an hour.
programs:
	cd test/e2e && $(GO) run ./cmd/build-controlplane

## The image as an OCI tar, for amd64 and arm64, without a registry.
image:
	@mkdir -p $(BIN)
	$(GO) run ./image -name $(IMAGE) -version $(VERSION) -o $(BIN)/fairlead-image.tar

## Known vulnerabilities in what the binary calls. Without a network: not checked.
vuln:
	.ci/vuln ./cmd/...

## The cluster of test/e2e/cluster under load, churn, kills and upgrades.
soak: programs
	cd test/e2e && FAIRLEAD_SOAK=$${FAIRLEAD_SOAK:-20m} $(GO) test -timeout 60m -count 1 -v -run 'TestSoak$$' ./cluster

bench: build
	$(GO) run ./test/bench -fairlead $(BIN)/fairlead

## Pod starts and the cost at rest, beside the bare CRI calls: of the runner
## alone, of the agent, and of the agent with 100 Pods.
bench-pods:
	$(GO) test -run '^$$' -bench PodStart -benchtime 20x ./podrunner
	$(GO) test -run '^$$' -bench PodStart -benchtime 20x ./test/pods
	$(GO) test -run '^$$' -bench HundredPods -benchtime 1x -timeout 20m ./test/pods

fuzz:
	for t in $$($(GO) list ./... | xargs -n1 -I{} sh -c '$(GO) test -list "^Fuzz" {} 2>/dev/null | grep ^Fuzz | sed "s|^|{} |"' | tr ' ' ':'); do \
		$(GO) test -run '^$$' -fuzz "^$${t##*:}$$" -fuzztime $${FUZZTIME:-30s} -fuzzminimizetime 10x "$${t%%:*}" || exit 1; done

clean:
	rm -rf $(BIN)
