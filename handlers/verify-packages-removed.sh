#!/bin/sh
# verify-packages-removed.sh USER PACKAGE...
# Fails if any of the packages is installed, and names those that are.
. "${0%/*}/handler-lib.sh"
take_user "${1-}"
[ $# -eq 0 ] || shift
names package "$@"
manager=$(package_manager) || fail "no package manager: apt-get, dnf, yum, opkg or apk"
present=
for package in $names; do
  if is_installed "$package"; then present="$present $package"; fi
done
[ -z "$present" ] || fail "still installed:$present"
