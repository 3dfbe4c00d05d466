#!/bin/bash
# Installs what scripts/debian-packages.txt lists for the given purposes and this machine lacks.
# Never fails for want of root or of apt-get: it says what is missing, and what needs it will say so again.
set -euo pipefail

list="$(dirname "$0")/debian-packages.txt"
missing=()
while read -r purpose package proof _; do
    [[ " $* " == *" $purpose "* ]] || continue
    [[ "$proof" == /* ]] && test -e "$proof" && continue
    [[ "$proof" != /* ]] && command -v "$proof" > /dev/null && continue
    missing+=("$package")
done < <(grep -v '^#' "$list")

[[ ${#missing[@]} -gt 0 ]] || exit 0
if [[ "$(id -u)" != 0 ]] || ! command -v apt-get > /dev/null; then
    echo "== Not installed, and this is not root on Debian: ${missing[*]} (apt-get install ${missing[*]})" >&2
    exit 0
fi
echo "== Debian packages: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null
