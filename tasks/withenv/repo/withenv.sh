#!/bin/sh
# usage: withenv.sh FILE COMMAND [ARGUMENT]...
# Runs a command with the variables of a file: lines NAME=VALUE, empty ones and comments (#). A value is everything after the
# first =, without quotes around the whole of it. Nothing in the file is ever run.
set -eu
file=$1
shift
for line in $(grep -v '^#' "$file"); do
    eval "export $line"
done
exec $*
