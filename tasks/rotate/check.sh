#!/bin/sh
set -eu
sh test.sh
here=$(pwd)
top=$(mktemp -d)
trap 'rm -rf "$top"' EXIT
expect() { # FOLDER KEEP STATUS WHAT IS LEFT
    status=0
    "$here/rotate.sh" "$1" "$2" > /dev/null 2>&1 || status=$?
    left=$(cd "$1" && for file in * ; do [ -e "$file" ] && printf '%s|' "$file"; done || true)
    [ "$status" = "$3" ] && [ "$left" = "$4" ] || { echo "rotate.sh $1 $2: status $status, left $left"; exit 1; }
}
mkdir "$top/my files"
cd "$top/my files"
touch "2026-01-01 a b.tar" "2026-01-02 c.tar" "2026-01-03 *.tar" notes.txt
cd "$top"
expect "$top/my files" x 2 "2026-01-01 a b.tar|2026-01-02 c.tar|2026-01-03 *.tar|notes.txt|"
expect "$top/my files" 3 0 "2026-01-01 a b.tar|2026-01-02 c.tar|2026-01-03 *.tar|notes.txt|"
expect "$top/my files" 10 0 "2026-01-01 a b.tar|2026-01-02 c.tar|2026-01-03 *.tar|notes.txt|"
expect "$top/my files" 2 0 "2026-01-02 c.tar|2026-01-03 *.tar|notes.txt|"
expect "$top/my files" 0 0 "notes.txt|"
expect "$top/my files" 1 0 "notes.txt|"
mkdir ./-dash && touch ./-dash/-a.tar ./-dash/-b.tar
expect ./-dash 1 0 "-b.tar|"
