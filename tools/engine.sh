#!/usr/bin/env bash
# Fills .cache/engine with what the tests and the demo run on:
#
#   bin/ollama                               the pinned version, built; or a link to one on the PATH
#   lib/ollama/{llama-server,llama-quantize} its helpers, from Debian's testing suite
#   {sentence,noise,embed}.gguf              small models that tools/testmodels writes
#
# Writes nothing else but Go's own caches, and needs neither root nor, once all is there, a network.
# parts.sh says when a part is made anew.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
engine=$PWD/.cache/engine
target=engine into=$engine
. tools/parts.sh
. tools/apt.sh

# The oldest Ollama that runs llama-server as a child.
oldest=0.30
# What the helpers are fetched from, when there is no installed Ollama.
suite=forky

main() {
	begin_parts
	mkdir -p "$engine"/{bin,lib/ollama}

	if find_ollama; then
		part ollama link_ollama bin/ollama "$found $found_version"
	else
		can_build || fail "on $(uname -s) $(uname -m) it uses an installed Ollama, and none of version $oldest or later is on the PATH: install Ollama, then run it again"
		part ollama build_ollama bin/ollama "$(cat tools/go.mod tools/go.sum)"
		part llama.cpp fetch_llama_cpp lib/ollama/llama-quantize "$suite $(cat tools/apt.sh)"
	fi
	part models write_models embed.gguf "$(cat tools/go.mod tools/testmodels/*.go)"
}

# find_ollama looks on the PATH for an Ollama that is new enough and has its helpers, and sets
# $found and $found_version. What an earlier run built does not count.
find_ollama() {
	local path home helpers
	path=$(command -v ollama) && path=$(realpath "$path") || return 1
	[[ $path != "$(realpath "$engine")"/* ]] || return 1
	# Asks no server: its warning that there is none is the line with the program's own version.
	found_version=$(OLLAMA_HOST=127.0.0.1:1 "$path" --version 2>/dev/null </dev/null |
		sed -n 's/.*version is \([0-9][0-9.]*\).*/\1/p' | tail -n 1) || return 1
	[[ -n $found_version ]] || return 1
	[[ $(printf '%s\n' "$oldest" "$found_version" | sort -V | head -n 1) == "$oldest" ]] || {
		say "the Ollama on the PATH is $found_version, older than $oldest: not used"
		return 1
	}
	found=$path
	home=$(dirname "$path")
	for helpers in "$home/../lib/ollama" "$home/lib/ollama" "$home"; do
		[[ ! -x $helpers/llama-server ]] || return 0
	done
	say "the Ollama on the PATH has no llama-server beside it: not used"
	return 1
}

link_ollama() {
	ln -s "$found" "$work/ollama"
	mv "$work/ollama" "$engine/bin/ollama"
	version="ollama $found_version, on the PATH"
}

can_build() {
	[[ $(uname -s) == Linux && $(uname -m) == x86_64 ]]
}

build_ollama() {
	local number
	command -v "$(go env CC)" >/dev/null ||
		fail "Ollama needs a C compiler to build: install gcc and libc6-dev, or Ollama $oldest or later"
	number=$(go list -C tools -m -f '{{.Version}}' github.com/ollama/ollama)
	say "building ollama $number (a minute or two)"
	CGO_ENABLED=1 go build -C tools -ldflags "-X github.com/ollama/ollama/version.Version=${number#v}" \
		-o "$work/ollama" github.com/ollama/ollama || fail "ollama $number did not build (above)"
	mv "$work/ollama" "$engine/bin/ollama"
	version="ollama ${number#v}, built"
}

# fetch_llama_cpp unpacks Debian's llama.cpp into a folder of its own, and writes wrappers that run its
# programs there.
fetch_llama_cpp() {
	local root=$work/llama.cpp lib=usr/lib/x86_64-linux-gnu library program
	unpack_packages "$root" "$suite" "install Ollama $oldest or later" llama.cpp-tools
	# Of the packages that it needs, only the libraries are needed.
	rm -rf "${root:?}"/{etc,var,usr/share,usr/sbin,usr/include,$lib/gconv}
	# ggml looks for its processors' variants beside the program, which is then the loader.
	for library in "$root/$lib"/ggml/backends0/*.so; do
		ln -s "ggml/backends0/${library##*/}" "$root/$lib/"
	done
	mkdir "$root/wrappers"
	for program in llama-server llama-quantize; do
		wrap "$root" "usr/bin/$program" "$root/wrappers/$program" "$lib" "$lib/llama"
	done
	version=$("$root/wrappers/llama-server" --version 2>&1 </dev/null | sed -n 's/^version: //p') || true
	[[ -n $version ]] ||
		fail "llama-server of Debian's $suite does not start: $("$root/wrappers/llama-server" --version 2>&1 | tail -n 1)"
	version="llama.cpp $version, from Debian's $suite"

	rm -f "$engine"/lib/ollama/llama-*
	rm -rf "$engine/lib/llama.cpp"
	mv "$root" "$engine/lib/llama.cpp"
	for program in llama-server llama-quantize; do
		ln -s "../llama.cpp/wrappers/$program" "$engine/lib/ollama/"
	done
}

write_models() {
	local model
	mkdir "$work/models"
	go run -C tools ./testmodels -out "$work/models" </dev/null || fail "the models were not written (above)"
	# embed.gguf last: with it and the stamp, all are there.
	for model in sentence noise embed; do
		mv "$work/models/$model.gguf" "$engine/$model.gguf"
	done
	version="models sentence, noise, embed"
}

main "$@"
