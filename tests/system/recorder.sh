#!/bin/sh
# What stands for the tools of a device that must not do their work on the machine of the test. Installed under the name
# of each, in the directory that is put in place of HERE, it writes down who called it and how: one line in `calls`, with
# tabs between the words. Beside it may lie NAME.status, what it ends with, and NAME.then, what it does.
here='HERE'
name=${0##*/}
line="$(id -un)	$name"
for word in "$@"; do
  line="$line	$word"
done
printf '%s\n' "$line" >>"$here/calls" || exit 99
if [ -f "$here/$name.status" ]; then
  read -r status <"$here/$name.status"
  exit "$status"
fi
# shellcheck source=/dev/null # of the test
if [ -f "$here/$name.then" ]; then . "$here/$name.then"; fi
