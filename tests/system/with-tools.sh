#!/bin/sh
# with-tools.sh DIRECTORY COMMAND...: runs a command on a machine whose tools are those of DIRECTORY before all others: it
# lies on /usr/local/sbin, with which every search of the agent begins, and on /usr/local/bin, with which that of su
# does. Tools of the same names are covered wherever they are. Seen by the command alone.
set -eu
if [ "$1" != --inside ]; then
  user=
  [ "$(id -u)" = 0 ] || user=--map-root-user
  exec unshare ${user:+"$user"} --mount -- "$0" --inside "$@"
fi
shift
tools=$1
shift
# What is to be covered must be, or nothing runs: the real ones would do what they are told.
ls "$tools/" >/dev/null
for tool in "$tools"/*; do
  [ -x "$tool" ] || continue
  for directory in /usr/local/sbin /usr/local/bin /usr/sbin /usr/bin /sbin /bin; do
    real=$directory/${tool##*/}
    if [ -f "$real" ] && [ ! -L "$real" ]; then mount --bind "$tool" "$real"; fi
  done
done
mount --bind "$tools" /usr/local/sbin
mount --bind "$tools" /usr/local/bin
exec "$@"
