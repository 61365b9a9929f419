# Two commands do everything on a fresh machine: make demo, make test.
GO      ?= go
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
PLATFORMS := linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64

.PHONY: demo test figures build engine lint cross clean

demo: build engine            ## a real cluster on this machine
	bin/ollamamax demo

test: engine                  ## every test and linter
	OLLAMAMAX_ENGINE=$(CURDIR)/.cache/engine $(GO) test -race -timeout 10m ./...
	$(GO) test -C tools ./...
	$(MAKE) lint figures

figures: engine               ## what measures, without the race detector: prints what it finds
	OLLAMAMAX_ENGINE=$(CURDIR)/.cache/engine $(GO) test -count=1 -v -timeout 10m -run 'Figures|Losing|AllNodes' ./e2e

build:                        ## bin/ollamamax
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ollamamax ./cmd/ollamamax

engine:                       ## a real Ollama and the test models in .cache/engine
	tools/engine.sh

lint: .cache/bin/staticcheck
	@test -z "$$(gofmt -l cmd internal e2e tools)" || { gofmt -l cmd internal e2e tools; echo 'gofmt -w these files'; exit 1; }
	$(GO) vet ./...
	$(GO) vet -C tools ./...
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
