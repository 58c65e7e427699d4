# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` install what is missing. The others expect it.

SHELL := /bin/bash
GO ?= go
BIN := bin
VERSION ?= $(shell git describe --always --dirty 2>/dev/null || echo devel)
LDFLAGS := -s -w -X main.version=$(VERSION)
CLANG_FORMAT ?= clang-format-19
# Packages whose tests are worth the race detector: all but those that spend
# their time in the kernel, which is too slow under it.
KERNEL_PACKAGES := ./bpf ./dataplane/ebpf ./test/conformance ./test/resilience
PURE_PACKAGES = $(shell $(GO) list ./... | grep -v -E '/(bpf|dataplane/ebpf|test/conformance|test/resilience|test/bench)$$')

.PHONY: all build demo test tools tools-demo lint generate check-generated unit kernel conformance resilience e2e manifests bench fuzz clean

all: build

build: $(BIN)/fairlead $(BIN)/responder

.PHONY: $(BIN)/fairlead $(BIN)/responder
$(BIN)/fairlead:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/fairlead
$(BIN)/responder:
	CGO_ENABLED=0 $(GO) build -trimpath -o $@ ./examples/responder

## The main job on real input: examples/basic, in network namespaces.
demo: tools-demo build
	examples/demo.sh $(BIN)/fairlead $(BIN)/responder

## Everything that CI checks.
test: tools
	$(MAKE) lint check-generated manifests
	$(MAKE) unit
	$(MAKE) kernel
	$(MAKE) conformance
	$(MAKE) resilience
	$(MAKE) e2e
	$(MAKE) build && examples/demo.sh $(BIN)/fairlead $(BIN)/responder
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
	bash -n examples/demo.sh .ci/run .ci/install .ci/leftovers
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
	$(GO) test ./bpf/... ./dataplane/ebpf

conformance:
	$(GO) test -timeout 20m -v ./test/conformance | .ci/summary

resilience:
	$(GO) test -timeout 20m -v ./test/resilience | .ci/summary

manifests:
	@if ls manifests/*rules*.yaml >/dev/null 2>&1; then promtool check rules manifests/*rules*.yaml; fi
	@if ls manifests/*rules_test.yaml >/dev/null 2>&1; then promtool test rules manifests/*rules_test.yaml; fi

## Against a real etcd and kube-apiserver, built as Go modules and cached.
e2e:
	cd test/e2e && $(GO) run ./cmd/build-controlplane && $(GO) test -timeout 20m ./...

bench: build
	$(GO) run ./test/bench -fairlead $(BIN)/fairlead

fuzz:
	for t in $$($(GO) list ./... | xargs -n1 -I{} sh -c '$(GO) test -list "^Fuzz" {} 2>/dev/null | grep ^Fuzz | sed "s|^|{} |"' | tr ' ' ':'); do \
		$(GO) test -run '^$$' -fuzz "^$${t##*:}$$" -fuzztime $${FUZZTIME:-30s} -fuzzminimizetime 10x "$${t%%:*}" || exit 1; done

clean:
	rm -rf $(BIN)
