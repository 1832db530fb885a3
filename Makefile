# Two commands for everyone: `make demo` shows the whole system, `make test` proves it. `make help` lists the rest.
# Caches live outside the tree, in ${XDG_CACHE_HOME:-~/.cache}/portcullis.

SHELL := /bin/sh
.DEFAULT_GOAL := help

CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/portcullis
export PORTCULLIS_ENVOY ?= $(CACHE)/envoy-1.40.0/envoy

# The one build line, everywhere. Sources come from vendor/, which `go mod vendor` makes and nothing commits: the bytes of a
# binary differ between vendor and module cache.
export GOTOOLCHAIN := local
GOBUILD := CGO_ENABLED=0 GOFLAGS= go build -trimpath -buildvcs=false -mod=vendor -ldflags='-s -w -buildid='

COMMANDS := $(notdir $(wildcard cmd/*-* cmd/initializer cmd/meshproxy cmd/coordinator cmd/portcullis))
LABTOOLS := demo shop simtee matrix meshbench cabench
SOURCES := $(shell find . -name '*.go' -not -path './vendor/*' -not -path './tests/demo/out/*') go.mod go.sum

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: demo-packages envoy build ## show the whole job in pretended podVMs; KEEP=1 leaves the artefacts in demo/out
	@bin/demo $(if $(KEEP),--keep) $(DEMOFLAGS)

.PHONY: demo-broken
demo-broken: demo-packages envoy build ## break each thing that the demo checks, one at a time, and want its check to fail
	@bin/demo --prove-checks

.PHONY: test
test: test-packages envoy validate build lint ## all checks and tests
	@echo "make test: what needs a real API server is left to make test-cluster" >&2
	PORTCULLIS_CLUSTER=off PORTCULLIS_VALIDATE=$(VALIDATE) CGO_ENABLED=1 GOFLAGS=-mod=vendor go test -race -timeout 20m ./...
	GOFLAGS= go -C tools/prometheus test -count=1 ./... # of docs/, which Go's cache of tests does not look at
	GOFLAGS= go -C tools/openapi test -count=1 ./...

.PHONY: docs-test
docs-test: test-packages vendor/modules.txt ## what the documentation says, by doing it: every command, link, flag, code and message; part of make test
	CGO_ENABLED=1 GOFLAGS=-mod=vendor go test -race -count=1 ./tests/docs

.PHONY: test-cluster
test-cluster: test-packages vendor/modules.txt ## what is asked of Kubernetes, against a real kube-apiserver and etcd; the first time builds them, some 8 minutes
	@tools/test-cluster.sh $(CACHE)

.PHONY: matrix
matrix: test-packages matrix-packages envoy build ## the gate against hostile networks, hosts and rules, row by row; MUTATE=1 weakens the guard and wants each weakness noticed
	@bin/matrix $(if $(MUTATE),--mutate) $(MATRIXFLAGS)

.PHONY: soak
soak: test-packages matrix-packages envoy validate build ## what takes long: a storm against the gate, the mesh proxy under load, a million forgeries, 10^5 files
	@bin/matrix --run '^swap-storm' --storm 60s
	PORTCULLIS_SOAK=1 GOFLAGS=-mod=vendor go test -count 1 -timeout 30m -v ./meshproxy/... \
		-run '^(TestRotationUnderLoad|TestManyIdleConnections|TestLargeTransferBothWays|TestChaos|TestEnvoyAcceptsRandomConfigurations)$$'
	PORTCULLIS_SOAK=1 GOFLAGS=-mod=vendor go test -count 1 -timeout 120m -v ./attestation/... \
		-run '^TestNoMutatedEvidenceIsAccepted$$'
	PORTCULLIS_SOAK=1 GOFLAGS=-mod=vendor go test -count 1 -timeout 30m -v ./manifest -run '^TestChainsOfRandomManifestsVerifyEverywhere$$'
	PORTCULLIS_SOAK=1 GOFLAGS=-mod=vendor go test -count 1 -timeout 60m -v ./cmd/coordinator -run '^TestKilledAtRandom$$'
	PORTCULLIS_SOAK=1 GOFLAGS=-mod=vendor go test -count 1 -timeout 60m -v ./coordinator -run '^TestMemoryIsFlatOverManyCertificates$$'
	PORTCULLIS_SOAK=1 PORTCULLIS_VALIDATE=$(VALIDATE) GOFLAGS=-mod=vendor go test -count 1 -timeout 120m -v ./generate -run '^TestProperty'
	GOFLAGS=-mod=vendor go test -run '^$$' -fuzz '^FuzzInject$$' -fuzztime 5m ./generate
	PORTCULLIS_SOAK=1 $(MAKE) --no-print-directory test-image

.PHONY: ci
ci: sslyze test test-cluster matrix demo demo-broken test-oci test-image test-nix ## what a change must pass

.PHONY: build
build: $(COMMANDS:%=bin/%) $(LABTOOLS:%=bin/%) ## build every command into bin/

bin/demo: MAIN = ./tests/demo
bin/shop: MAIN = ./tests/demo/shop
bin/simtee: MAIN = ./tests/simtee/cmd/simtee
bin/matrix: MAIN = ./tests/matrix
bin/meshbench: MAIN = ./tests/bench/mesh
bin/cabench: MAIN = ./tests/bench/ca
bin/standin-agent: MAIN = ./tests/podvm/standin
bin/demo-vm: MAIN = ./tests/podvm/demo
bin/%: MAIN = ./cmd/$*
bin/%: $(SOURCES) vendor/modules.txt
	@mkdir -p bin
	$(GOBUILD) -o $@ $(MAIN)

vendor/modules.txt: $(SOURCES)
	go mod vendor
	@touch $@

.PHONY: lint
lint: vendor/modules.txt $(CACHE)/tools/.built ## formatting, go vet, staticcheck, shellcheck where it is installed
	@bad=$$(git ls-files -co --exclude-standard '*.go' | xargs $(CACHE)/tools/gofumpt -l); [ -z "$$bad" ] || { echo "not gofumpt-ed: $$bad" >&2; exit 1; }
	GOFLAGS=-mod=vendor go vet ./...
	GOFLAGS=-mod=vendor $(CACHE)/tools/staticcheck ./...
	@if command -v shellcheck >/dev/null; then git ls-files '*.sh' .ci/run | xargs shellcheck; fi

$(CACHE)/tools/.built: tools/go.mod tools/go.sum
	@mkdir -p $(@D)
	GOFLAGS= GOBIN=$(@D) go -C tools install tool
	@touch $@

.PHONY: bench
bench: test-packages matrix-packages envoy build ## what the mesh costs, beside plaintext and beside iptables with Envoy's defaults: a table, and bin/bench.{svg,json}
	@bin/meshbench --svg bin/bench.svg --json bin/bench.json $(BENCHFLAGS)

.PHONY: bench-generate
bench-generate: vendor/modules.txt ## what generate costs for 10,000 documents, beside reading and writing them with a YAML library: a table
	@mkdir -p bin
	$(GOBUILD) -o bin/generatebench ./tests/bench/generate
	@bin/generatebench $(BENCHFLAGS)

.PHONY: bench-ca
bench-ca: test-packages build $(CACHE)/peers/.built ## what a certificate costs the Coordinator, beside step-ca and the SPIRE server
	@bin/cabench --peers $(CACHE)/peers $(BENCHFLAGS)

# Each peer is built from a module of its own, with the versions that its makers chose. SPIRE's SQLite needs cgo.
$(CACHE)/peers/.built: $(wildcard tests/bench/ca/peers/*/go.*)
	@mkdir -p $(@D)
	GOFLAGS= GOBIN=$(@D) CGO_ENABLED=0 go -C tests/bench/ca/peers/stepca install tool
	GOFLAGS= GOBIN=$(@D) CGO_ENABLED=1 go -C tests/bench/ca/peers/spire install tool
	@touch $@

.PHONY: microbench
microbench: build ## benchmarks of the packages
	CGO_ENABLED=0 GOFLAGS=-mod=vendor go test -run '^$$' -bench . -benchmem ./...

.PHONY: envoy
envoy: ## fetch the pinned Envoy into the cache
	@tools/envoy.sh $(dir $(PORTCULLIS_ENVOY))

# Named by what it is made of, so that it is built once.
VALIDATE := $(CACHE)/validate-$(shell cat tests/cluster/validate/go.sum tests/cluster/validate/main.go | sha256sum | cut -c1-16)/validate

.PHONY: validate
validate: $(VALIDATE) ## build Kubernetes' own validation into the cache: a minute of two cores, once
$(VALIDATE):
	@mkdir -p $(@D)
	@echo "building Kubernetes' validation into $(@D), once" >&2
	CGO_ENABLED=0 GOFLAGS= go -C tests/cluster/validate build -trimpath -ldflags='-s -w' -o $@.new .
	@mv $@.new $@

# glibc for the official Envoy, by the name that is pinned.
export PORTCULLIS_LIBC ?= $(CACHE)/libc/$(shell sed -n 's/.*  \(libc6_.*\)/\1/p' image/oci/pins.sha256)

.PHONY: oci
oci: oci-packages envoy bin/initializer bin/meshproxy bin/coordinator ## write the containers' OCI images into bin/oci, without a container runtime, and print their digests
	@tools/libc.sh $(dir $(PORTCULLIS_LIBC))
	@GOFLAGS= go -C image/oci run . --bin $(CURDIR)/bin --license $(CURDIR)/LICENSE --envoy $(abspath $(PORTCULLIS_ENVOY)) \
		--libc $(abspath $(PORTCULLIS_LIBC)) --version $(VERSION) --out $(CURDIR)/bin/oci

.PHONY: test-oci
test-oci: demo-packages oci build ## make the OCI images again elsewhere, look into them, and run the demo from them
	@tools/packages.sh skopeo
	GOFLAGS= go -C image/oci test -count=1 ./... # of bin/, which Go's cache of tests does not look at
	@bin/demo --images bin/oci

VERSION := $(shell sed -n 's/^const Version = "\(.*\)"/\1/p' version.go)

# An image for use has the kata-agent that you built; docs/image.md says how. One with the stand-in is called by that name.
IMAGE := bin/image$(if $(KATA_AGENT),,-standin)

IMAGE_PROGRAMS := $(addprefix bin/,podvm-guard podvm-attest podvm-initdata initializer meshproxy portcullis standin-agent)

.PHONY: image
image: image-packages envoy $(IMAGE_PROGRAMS) ## build the podVM image into bin/image, as root; KATA_AGENT=path bakes that agent in, without it bin/image-standin is for tests
	@$(if $(KATA_AGENT),:,echo "make image: no KATA_AGENT: this image has the stand-in for tests, which runs no containers" >&2)
	@image/build.sh --out $(CURDIR)/$(IMAGE) --agent $(abspath $(or $(KATA_AGENT),bin/standin-agent))

.PHONY: sysext
sysext: image-packages $(IMAGE_PROGRAMS) ## pack the gate for podVM images of others: a systemd system extension and a .deb, in bin/sysext
	@image/sysext.sh --out $(CURDIR)/bin/sysext --version $(VERSION)

.PHONY: units
units: vendor/modules.txt ## lay the units and their links out as in an image, without programs, into bin/units
	@rm -rf bin/units
	@GOFLAGS= go run -mod=vendor ./image/install --sets "guard mesh coordinator" --only units --to bin/units
	@find bin/units ! -type d | sort

# What boots images: the variants for tests, and roots that somebody else built.
.PHONY: podvm-images
podvm-images: image-packages envoy $(IMAGE_PROGRAMS) bin/simtee bin/coordinator bin/demo-vm
	@tests/podvm/images.sh $(CURDIR)/bin/podvm

.PHONY: test-image
test-image: podvm-images ## boot the podVM image's root in containers, as root: order, refusals, knocks; and the gate in a plain Debian
	@tools/packages.sh systemd-container bsdutils iproute2 util-linux erofs-utils
	@PACKAGES=newest image/sysext.sh --out $(CURDIR)/bin/sysext --version $(VERSION)
	@tests/podvm/foreign.sh $(CURDIR)/bin/podvm
	PORTCULLIS_PODVM=$(CURDIR)/bin/podvm GOFLAGS=-mod=vendor go test -count=1 -v ./tests/podvm/nspawn

.PHONY: test-vm
test-vm: podvm-images vm-packages ## boot the podVM image under qemu, whole: order, tampering, what a host hands over; some 8 minutes without KVM
	PORTCULLIS_PODVM=$(CURDIR)/bin/podvm GOFLAGS=-mod=vendor go test -count=1 -v -timeout 60m ./tests/podvm/vm

.PHONY: demo-vm
demo-vm: podvm-images vm-packages ## two podVMs under qemu in one mesh: a minute or two without KVM; KEEP=1 leaves consoles and logs in demo/vm
	@bin/demo-vm --image bin/podvm/simulated $(if $(KEEP),--keep demo/vm)

.PHONY: image-repro
image-repro: image-packages oci-packages envoy ## build image, extension, package and OCI images twice in different surroundings, and compare every byte
	@image/repro.sh

.PHONY: test-nix
test-nix: nix-packages build oci units ## try the Nix builds and modules, with a Nix of its own, as root: the same bytes as make, twice the same
	@nix/ci.sh

.PHONY: sslyze
sslyze: ## fetch the pinned sslyze into the cache; with it `make test` compares the ports with Mozilla's recommendations
	@tools/packages.sh python3 python3-venv
	@tools/sslyze.sh $(CACHE)/sslyze-6.3.1

.PHONY: demo-packages test-packages matrix-packages oci-packages image-packages nix-packages vm-packages
demo-packages:
	@tools/packages.sh nftables netbase iproute2 util-linux ca-certificates python3 $(if $(wildcard $(PORTCULLIS_ENVOY)),,python3-pip) $(if $(filter 0,$(shell id -u)),,uidmap)
test-packages: demo-packages
	@tools/packages.sh gcc libc6-dev openssl curl uidmap systemd chromium jq bash-completion groff-base patch gnutls-bin
matrix-packages:
	@tools/packages.sh iptables
oci-packages:
	@tools/packages.sh apt $(if $(wildcard $(PORTCULLIS_ENVOY)),,python3 python3-pip)

vm-packages:
	@tools/packages.sh qemu-system-x86 ovmf mtools erofs-utils nftables
nix-packages:
	@tools/packages.sh mmdebstrap debian-archive-keyring util-linux $(if $(shell command -v cargo),,cargo)
image-packages:
	@tools/packages.sh mmdebstrap debian-archive-keyring util-linux dpkg apt $(if $(wildcard $(PORTCULLIS_ENVOY)),,python3 python3-pip)

.PHONY: clean
clean: ## remove what the build made; caches stay
	rm -rf bin vendor demo/out demo/vm
