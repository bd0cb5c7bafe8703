#!/bin/sh
set -eu
sh test.sh
here=$(pwd)
top=$(mktemp -d)
trap 'rm -rf "$top"' EXIT
cd "$top"
show() { "$here/withenv.sh" env sh -c 'for each; do eval "printf \"%s|\" \"\$$each\""; done' sh "$@"; }
same() { [ "$1" = "$2" ] || { echo "expected $2"; echo "got      $1"; exit 1; }; }
cat > env <<'FILE'
# a comment with A=B

A=$(touch run) `touch run` ; touch run
B=x=y
C=it's "fine" \n $HOME
D='single # not a comment'
E="
F=
G=''
H=a  b   * ?
file=changed
line=l
name=n
value=v
count=7
words=9
FILE
printf 'LAST=no newline' >> env
same "$(show A B C D)" '$(touch run) `touch run` ; touch run|x=y|it'"'"'s "fine" \n $HOME|single # not a comment|'
same "$(show E F G H LAST)" '"|||a  b   * ?|no newline|'
same "$(show file line name value count words)" 'changed|l|n|v|7|9|'
[ ! -e run ] || { echo "something of the file was run"; exit 1; }
same "$("$here/withenv.sh" env printf '<%s>' 'a b' '' '*' 'c=d')" '<a b><><*><c=d>'
for bad in 'no value' '1A=b' 'A B=c' '=x' 'A-B=c'; do
    printf 'GOOD=1\n%s\n' "$bad" > bad
    status=0
    "$here/withenv.sh" bad touch ran 2> /dev/null || status=$?
    [ "$status" = 2 ] && [ ! -e ran ] || { echo "'$bad': status $status"; exit 1; }
done
