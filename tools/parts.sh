# Sourced by engine.sh and bench.sh: a folder that is filled part by part. A part is made anew when
# its recipe or its source has changed; each is made in a folder of its own and moved into place
# whole, so that an interrupted run leaves no half.
#
# $target names the make target, $into the folder; begin_parts sets $work, which is gone at the end.
# shellcheck shell=bash disable=SC2034,SC2154 # variables of the script that sources this

fail() {
	echo "make $target: $*" >&2
	exit 1
}

say() {
	echo "$target: $*"
}

begin_parts() {
	mkdir -p "$into"/stamps
	if command -v flock >/dev/null; then
		exec 9>"$into/lock"
		flock 9
	fi
	work=$into/work
	rm -rf "$work" # of an interrupted run
	mkdir "$work"
	trap 'rm -rf "$work"' EXIT
}

# part NAME RECIPE RESULT SOURCE runs the function RECIPE unless RESULT is there and was made by
# this very recipe from this very source. The recipe leaves what there is to print in $version.
part() {
	local stamp=$into/stamps/$1 key version=
	key=$({ declare -f "$2" && printf '%s\n' "$4"; } | checksum)
	if [[ -e $into/$3 && -f $stamp ]] && { read -r had && read -r version; } <"$stamp" && [[ $had == "$key" ]]; then
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
