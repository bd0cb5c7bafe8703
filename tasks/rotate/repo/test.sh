#!/bin/sh
# Makes a folder of backups and looks at what is left of it.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for day in 01 02 03 04; do : > "$folder/2026-01-$day.tar"; done
"$here/rotate.sh" "$folder" 2
left=$(ls "$folder" | tr '\n' ' ')
[ "$left" = "2026-01-03.tar 2026-01-04.tar " ] || { echo "left: $left"; exit 1; }
echo ok
