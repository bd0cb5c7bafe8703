#!/bin/sh
set -eu
here=$(cd "$(dirname "$0")" && pwd)
file=$(mktemp)
trap 'rm -f "$file"' EXIT
printf '# settings\nGREETING=hello there\nQUOTED="a b"\n' > "$file"
said=$("$here/withenv.sh" "$file" sh -c 'echo "$GREETING,$QUOTED"')
[ "$said" = "hello there,a b" ] || { echo "said: $said"; exit 1; }
echo ok
