#!/bin/sh
# usage: rotate.sh FOLDER KEEP
# Deletes all but the KEEP newest backups (files that end in .tar, newest by name: they begin with their date) of a folder.
set -eu
folder=$1
keep=$2
cd $folder
for file in $(ls *.tar | sort -r | tail -n +$keep); do
    rm $file
done
