# Sourced by engine.sh and bench.sh: programs out of Debian's packages, without root and without
# touching the system. An apt of its own fetches them with all that they need, the C library too; the
# machine's gives the mirror and the way to reach it.
# shellcheck shell=bash disable=SC2154 # variables of the script that sources this

# needs_apt fails with advice, unless Debian's packages can be used here.
needs_apt() {
	local advice=$1 tool
	[[ $(uname -s) == Linux && $(uname -m) == x86_64 ]] ||
		fail "Debian's packages are used on Linux x86_64 only, and this is $(uname -s) $(uname -m): $advice"
	for tool in apt-get dpkg-deb; do
		command -v $tool >/dev/null || fail "there is no $tool to use Debian's packages with: $advice"
	done
}

# unpack_packages ROOT SUITE ADVICE PACKAGE... unpacks the packages of a suite, and what they need,
# into ROOT. ADVICE is what else a user can do.
unpack_packages() {
	local root=$1 suite=$2 advice=$3 apt=$work/apt log=$work/apt.log mirror reason package
	shift 3
	needs_apt "$advice"

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

	say "fetching $* from Debian's $suite"
	: >"$log"
	for mirror in $(mirrors); do
		echo "deb $(signed_by) $mirror $suite main" >"$apt/sources"
		apt-get -c "$apt/conf" -q --error-on=any update >>"$log" 2>&1 </dev/null && break
		: >"$apt/sources"
	done
	reason=$(last_words "$log")
	[[ -s $apt/sources ]] ||
		fail "no mirror of apt's has Debian's $suite: ${reason:-apt names no source of packages}; check apt's sources and the network, or $advice"
	apt-get -c "$apt/conf" -q -y --download-only install "$@" >>"$log" 2>&1 </dev/null ||
		fail "$* did not download: $(last_words "$log")"

	for package in "$apt"/archives/*.deb; do
		dpkg-deb -x "$package" "$root"
	done
	rm -rf "$apt"
}

# wrap ROOT PROGRAM FILE LIBRARIES writes a script that runs ROOT's PROGRAM with ROOT's own loader and
# LIBRARIES, folders in ROOT. The script finds ROOT beside its own folder.
wrap() {
	local root=$1 program=$2 file=$3 loader path= folder
	shift 3
	loader=lib/x86_64-linux-gnu/ld-linux-x86-64.so.2
	[[ -e $root/$loader ]] || loader=usr/$loader
	for folder in "$@"; do
		path+=${path:+:}\$root/$folder
	done
	cat >"$file" <<-END
		#!/bin/sh
		unset LD_LIBRARY_PATH
		root=\$(dirname "\$(readlink -f "\$0")")/..
		exec "\$root/$loader" --library-path "$path" "\$root/$program" "\$@"
	END
	chmod +x "$file"
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
