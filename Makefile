# Two commands do everything on a fresh machine: make demo, make test.
GO      ?= go
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
PLATFORMS := linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64

.PHONY: demo test figures bench build engine clients node lint cross clean

demo: build engine            ## a real cluster on this machine
	bin/ollamamax demo

test: engine clients          ## every test and linter
	OLLAMAMAX_ENGINE=$(CURDIR)/.cache/engine OLLAMAMAX_CLIENTS=$(CURDIR)/.cache/clients $(GO) test -race -parallel 3 -timeout 25m ./...
	$(GO) test -C tools ./...
	$(GO) test -C bench -race ./...
	$(MAKE) lint figures

figures: engine               ## what measures, without the race detector: prints what it finds
	OLLAMAMAX_ENGINE=$(CURDIR)/.cache/engine $(GO) test -count=1 -v -timeout 15m -run 'Figures|Losing|AllNodes' ./e2e
	$(GO) test -count=1 -v -timeout 5m -run 'Figures|KillNine|EightNodes' ./internal/models/exchange/...

bench: build                  ## beside nginx, HAProxy and Caddy: docs/benchmarks.md (BENCH='-rounds 1 -only unary-32': a quick look)
	tools/bench.sh
	.cache/bench/bin/runner $(BENCH)

build:                        ## bin/ollamamax
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ollamamax ./cmd/ollamamax

engine:                       ## a real Ollama and the test models in .cache/engine
	tools/engine.sh

clients: node .cache/clients/stamp  ## npm's clients of Ollama, OpenAI and Anthropic in .cache/clients

node:
	@command -v npm >/dev/null && node -e 'process.exit(parseInt(process.versions.node) < 18 ? 1 : 0)' || \
	  { echo 'make clients: the tests need Node 18 or later with npm on the PATH' >&2; exit 1; }

# In a folder of another name until it is whole.
.cache/clients/stamp: e2e/clients/package.json e2e/clients/package-lock.json e2e/clients/.npmrc | node
	rm -rf .cache/clients .cache/clients.new
	mkdir -p .cache/clients.new
	cp $^ .cache/clients.new
	cd .cache/clients.new && npm ci
	touch .cache/clients.new/stamp
	mv .cache/clients.new .cache/clients

lint: .cache/bin/staticcheck
	@test -z "$$(gofmt -l cmd internal e2e tools bench)" || { gofmt -l cmd internal e2e tools bench; echo 'gofmt -w these files'; exit 1; }
	$(GO) vet ./...
	$(GO) vet -C tools ./...
	$(GO) vet -C bench ./...
	.cache/bin/staticcheck ./...
	GOOS=windows .cache/bin/staticcheck ./cmd/... ./internal/...

.cache/bin/staticcheck: tools/go.mod
	$(GO) build -C tools -o ../$@ honnef.co/go/tools/cmd/staticcheck
	touch $@

cross:                        ## the program for every platform, in bin/
	@for p in $(PLATFORMS); do \
	  os=$${p%/*}; arch=$${p#*/}; ext=; [ $$os = windows ] && ext=.exe; \
	  echo "build $$p"; \
	  GOOS=$$os GOARCH=$$arch CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ollamamax-$$os-$$arch$$ext ./cmd/ollamamax || exit 1; \
	done

clean:
	rm -rf bin .cache
