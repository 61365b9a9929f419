#!/usr/bin/env bash
# Fills .cache/bench with what `make bench` compares and measures with:
#
#   bin/{nginx,haproxy} of the machine's Debian, unpacked; or links to those on the PATH
#   bin/caddy           the version that bench/go.mod pins, built
#   bin/{fakeengine,runner} of this checkout, built
#
# Writes nothing else but Go's own caches, and needs neither root nor, once all is there, a network.
# parts.sh says when a part is made anew.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
target=bench into=$PWD/.cache/bench
. tools/parts.sh
. tools/apt.sh

main() {
	begin_parts
	mkdir -p "$into/bin"
	proxy nginx
	proxy haproxy
	part caddy build_caddy bin/caddy "$(cat bench/go.mod bench/go.sum)"
	go build -o "$into/bin/fakeengine" ./internal/engine/enginetest/fakeengine
	go build -C bench -o "$into/bin/runner" .
}

# proxy NAME has a program of that name in bin: the machine's own, or else Debian's.
proxy() {
	name=$1
	if found=$(PATH=$PATH:/usr/local/sbin:/usr/sbin command -v "$name"); then
		part "$name" link_proxy "bin/$name" "$found"
	else
		suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-stable}")
		part "$name" fetch_proxy "bin/$name" "$suite $(cat tools/apt.sh)"
	fi
}

link_proxy() {
	ln -sfn "$found" "$into/bin/$name"
	version="$name, on the PATH"
}

fetch_proxy() {
	local root=$work/$name file
	unpack_packages "$root" "$suite" "install $name" "$name"
	# Of the packages that it needs, only the libraries are needed.
	mkdir "$root/wrappers"
	mv "$root/usr/sbin/$name" "$root/wrappers/$name.program"
	rm -rf "${root:?}"/{bin,etc,lib64,sbin,var} "$root"/usr/{bin,include,lib32,lib64,libexec,sbin,share} \
		"$root"/usr/lib/{dpkg,init,systemd,tmpfiles.d,x86_64-linux-gnu/{gconv,perl*,libperl*}}
	wrap "$root" "wrappers/$name.program" "$root/wrappers/$name" {,usr/}lib/x86_64-linux-gnu
	"$root/wrappers/$name" -v >/dev/null 2>"$work/said" </dev/null ||
		fail "$name of Debian's $suite does not start: $(tail -n 1 "$work/said")"
	rm -rf "$into/$name"
	mv "$root" "$into/$name"
	ln -sfn "../$name/wrappers/$name" "$into/bin/$name"
	version="$name, from Debian's $suite"
}

build_caddy() {
	local number module=github.com/caddyserver/caddy/v2
	number=$(go list -C bench -m -f '{{.Version}}' $module)
	say "building caddy $number (a few minutes)"
	go build -C bench -trimpath -ldflags "-s -w -X $module.CustomVersion=$number" -o "$work/caddy" $module/cmd/caddy ||
		fail "caddy $number did not build (above)"
	mv "$work/caddy" "$into/bin/caddy"
	version="caddy $number, built"
}

main "$@"
