# replicad: every target that people and CI use. `make help` lists them.

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
PREFIX  ?= /usr/local
DESTDIR ?=
SEEDS   ?= 1000
SEED    ?=
TIME    ?= 10s
SIZE    ?= 64M
HOURS   ?=
ROUNDS  ?= 60
JOBS    ?= 2
TIMEOUT ?= 15m
PKG     ?= ./...
MUTANT  ?= all

GO      ?= go
TOOL     = $(GO) tool -modfile=tools.mod
LDFLAGS  = -s -w -X main.version=$(VERSION)
SOURCES  = $(shell find . -name '*.go' -not -path './.git/*')

.DEFAULT_GOAL := help
.PHONY: help build demo test race lint tidy sim kill crash mutants fuzz bench torture install clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## static binary in bin/replicad
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/replicad ./cmd/replicad

demo: build ## the whole story on this machine, without root (SIZE=64M)
	bin/replicad demo --size $(SIZE)

test: ## all tests that need no extra package
	$(GO) test -timeout $(TIMEOUT) $(PKG)

race: ## the same under the race detector (needs a C compiler)
	CGO_ENABLED=1 $(GO) test -race -timeout $(TIMEOUT) $(PKG)

lint: ## format, vet, staticcheck, modern Go, and the house rules
	@unformatted="$$($(TOOL) gofumpt -l $(SOURCES))" || exit 1; \
	if [ -n "$$unformatted" ]; then echo "not gofumpt'ed:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(TOOL) staticcheck ./...
	$(GO) fix -diff ./...
	$(MAKE) --no-print-directory tidy

tidy: ## the house rules alone (internal/tidy)
	$(GO) test -count=1 ./internal/tidy

sim: ## simulated pairs: SEEDS=1000 seeds, or replay of one with SEED=n
ifeq ($(SEED),)
	$(GO) test -count=1 -timeout $(TIMEOUT) -v -run '^TestSim$$' ./replica/sim -seeds=$(SEEDS)
else
	$(GO) test -count=1 -timeout $(TIMEOUT) -v ./replica/sim -seed=$(SEED)
endif

kill: ## kill -9 of real daemons under load, REPLICAD_KILL_ROUNDS=10 rounds of each kind
	REPLICAD_KILL_ROUNDS=$${REPLICAD_KILL_ROUNDS:-10} $(GO) test -count=1 -timeout $(TIMEOUT) -v -run '^TestKill' ./cmd/replicad

crash: ## machines that lose power, histories that must be linearizable: ROUNDS=60 of each kind
	REPLICAD_POWER_ROUNDS=$(ROUNDS) REPLICAD_LINEAR_ROUNDS=$(ROUNDS) $(GO) test -count=1 -timeout $(TIMEOUT) -v -run '^(TestPower|TestLinearizability|TestFlushCoversAllConnections)$$' ./internal/crashtest

mutants: ## planted bugs, MUTANT=all or a name: the simulator or a named test must catch every one
	$(GO) test -count=1 -timeout $(TIMEOUT) -parallel 2 -tags mutants -v -run '^TestMutants$$/all/$(if $(filter all,$(MUTANT)),,^$(MUTANT)$$)' ./replica/sim

fuzz: ## every fuzz target of PKG=./... for TIME=10s, two side by side
	@TIME=$(TIME) GO="$(GO)" .ci/fuzz $(PKG)

bench: ## speed beside go-nbd, nbdkit and qemu-nbd; table, and rows in bin/bench.csv
	@mkdir -p bin
	$(GO) run ./bench -csv bin/bench.csv -md bin/bench.md

torture: build ## real daemons under every fault: ROUNDS=60 rounds, HOURS=n, or the plan of one SEED=n
	$(GO) run ./internal/torture -binary bin/replicad -parallel $(JOBS) \
		$(if $(SEED),-seed $(SEED) -rounds 1,$(if $(HOURS),-hours $(HOURS),-rounds $(ROUNDS)))

install: build ## binary and licence below DESTDIR and PREFIX=/usr/local
	install -D -m 0755 bin/replicad $(DESTDIR)$(PREFIX)/sbin/replicad
	install -D -m 0644 LICENSE $(DESTDIR)$(PREFIX)/share/doc/replicad/LICENSE

clean: ## remove what was built
	rm -rf bin
