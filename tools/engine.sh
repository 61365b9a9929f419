#!/usr/bin/env bash
# Fills .cache/engine with what the tests and the demo run on:
#
#   bin/ollama                               the pinned version, built; or a link to one on the PATH
#   lib/ollama/{llama-server,llama-quantize} its helpers, from Debian's testing suite
#   {sentence,noise,embed}.gguf              small models that tools/testmodels writes
#
# Writes nothing else but Go's own caches, and needs neither root nor, once all is there, a network.
# A part is made anew when its recipe below or its source has changed; each is made in a folder of
# its own and moved into place whole, so that an interrupted run leaves no half.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
engine=$PWD/.cache/engine

# The oldest Ollama that runs llama-server as a child.
oldest=0.30
# What the helpers are fetched from, when there is no installed Ollama.
suite=forky

fail() {
	echo "make engine: $*" >&2
	exit 1
}

say() {
	echo "engine: $*"
}

main() {
	mkdir -p "$engine"/{bin,lib/ollama,stamps}
	if command -v flock >/dev/null; then
		exec 9>"$engine/lock"
		flock 9
	fi
	work=$engine/work
	rm -rf "$work" # of an interrupted run
	mkdir "$work"
	trap 'rm -rf "$work"' EXIT

	if find_ollama; then
		part ollama link_ollama bin/ollama "$found $found_version"
	else
		can_build || fail "on $(uname -s) $(uname -m) it uses an installed Ollama, and none of version $oldest or later is on the PATH: install Ollama, then run it again"
		part ollama build_ollama bin/ollama "$(cat tools/go.mod tools/go.sum)"
		part llama.cpp fetch_llama_cpp lib/ollama/llama-quantize "$suite"
	fi
	part models write_models embed.gguf "$(cat tools/go.mod tools/testmodels/*.go)"
}

# part NAME RECIPE RESULT SOURCE runs the function RECIPE unless RESULT is there and was made by
# this very recipe from this very source. The recipe leaves what there is to print in $version.
part() {
	local stamp=$engine/stamps/$1 key version=
	key=$({ declare -f "$2" && printf '%s\n' "$4"; } | checksum)
	if [[ -e $engine/$3 && -f $stamp ]] && { read -r had && read -r version; } <"$stamp" && [[ $had == "$key" ]]; then
		say "$version"
		return
	fi
	rm -f "$stamp"
	"$2"
	printf '%s\n' "$key" "$version" >"$work/stamp"
	mv "$work/stamp" "$stamp"
	say "$version"
}

checksum() {
	if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi
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

# fetch_llama_cpp unpacks Debian's llama.cpp with all that it needs, its C library too, into a folder
# of its own, and writes wrappers that run its programs there. An apt of its own does it: the
# machine's gives the mirror and the way to reach it, and is not touched.
fetch_llama_cpp() {
	local tool apt=$work/apt root=$work/llama.cpp lib=usr/lib/x86_64-linux-gnu log=$work/log mirror reason package library program
	for tool in apt-get dpkg-deb; do
		command -v $tool >/dev/null ||
			fail "llama.cpp comes from Debian's packages, and there is no $tool: install Ollama $oldest or later"
	done

	mkdir -p "$apt"/lists/partial "$apt"/archives/partial "$root"
	: >"$apt/status"
	# The last lines undo what a machine may have set: hooks, languages, more indexes.
	cat >"$apt/conf" <<-END
		APT::Architecture "amd64";
		APT::Sandbox::User "root";
		APT::Install-Recommends "false";
		Acquire::Retries "3";
		Dir::State "$apt";
		Dir::State::lists "$apt/lists";
		Dir::State::status "$apt/status";
		Dir::Cache "$apt";
		Dir::Cache::archives "$apt/archives";
		Dir::Log "$apt";
		Dir::Etc::sourcelist "$apt/sources";
		Dir::Etc::sourceparts "/dev/null";
		Dir::Etc::preferences "/dev/null";
		Dir::Etc::preferencesparts "/dev/null";
		#clear APT::Update::Pre-Invoke;
		#clear APT::Update::Post-Invoke;
		#clear APT::Update::Post-Invoke-Success;
		#clear DPkg::Pre-Invoke;
		#clear DPkg::Post-Invoke;
		#clear DPkg::Pre-Install-Pkgs;
		#clear Acquire::IndexTargets::deb::DEP-11;
		Acquire::Languages "none";
	END

	say "fetching llama.cpp from Debian's $suite"
	: >"$log"
	for mirror in $(mirrors); do
		echo "deb $(signed_by) $mirror $suite main" >"$apt/sources"
		apt-get -c "$apt/conf" -q --error-on=any update >>"$log" 2>&1 </dev/null && break
		: >"$apt/sources"
	done
	reason=$(last_words "$log")
	[[ -s $apt/sources ]] ||
		fail "no mirror of apt's has Debian's $suite: ${reason:-apt names no source of packages}; check apt's sources and the network, or install Ollama $oldest or later"
	apt-get -c "$apt/conf" -q -y --download-only install llama.cpp-tools >>"$log" 2>&1 </dev/null ||
		fail "llama.cpp-tools did not download: $(last_words "$log")"

	for package in "$apt"/archives/*.deb; do
		dpkg-deb -x "$package" "$root"
	done
	# Of the packages that it needs, only the libraries are needed.
	rm -rf "${root:?}"/{etc,var,usr/share,usr/sbin,usr/include,$lib/gconv}
	# ggml looks for its processors' variants beside the program, which is then the loader.
	for library in "$root/$lib"/ggml/backends0/*.so; do
		ln -s "ggml/backends0/${library##*/}" "$root/$lib/"
	done
	mkdir "$root/wrappers"
	for program in llama-server llama-quantize; do
		cat >"$root/wrappers/$program" <<-END
			#!/bin/sh
			unset LD_LIBRARY_PATH
			root=\$(dirname "\$(readlink -f "\$0")")/..
			lib=\$root/$lib
			exec "\$lib/ld-linux-x86-64.so.2" --library-path "\$lib:\$lib/llama" "\$root/usr/bin/$program" "\$@"
		END
		chmod +x "$root/wrappers/$program"
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

# mirrors prints the addresses of the machine's own package sources, Debian's first as far as apt knows
# them. The plain list works where apt-get update was never run.
# shellcheck disable=SC2016 # apt fills it in
mirrors() {
	{
		apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' || true
		apt-get indextargets --no-release-info --format '$(REPO_URI)' 'Created-By: Packages' || true
	} 2>/dev/null </dev/null | grep -v -e '-security/$' | awk '!seen[$0]++' || true
}

# signed_by prints the option that has Debian's own keys trusted, where they are in their usual place.
signed_by() {
	local keys=/usr/share/keyrings/debian-archive-keyring.gpg
	if [[ -r $keys ]]; then echo "[arch=amd64 signed-by=$keys]"; else echo "[arch=amd64]"; fi
}

# last_words prints the last thing that went wrong according to a log of apt's.
last_words() {
	grep -e '^E:' -e '^Err:' "$1" | tail -n 1 || true
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
