#!/bin/sh
# verify-packages-installed.sh USER PACKAGE...
# Fails unless all of the packages are installed, and names those that are not.
. "${0%/*}/handler-lib.sh"
take_user "${1-}"
[ $# -eq 0 ] || shift
names package "$@"
manager=$(package_manager) || fail "no package manager: apt-get, dnf, yum, opkg or apk"
missing=
for package in $names; do
  is_installed "$package" || missing="$missing $package"
done
[ -z "$missing" ] || fail "not installed:$missing"
