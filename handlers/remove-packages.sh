#!/bin/sh
# remove-packages.sh USER PACKAGE...
# Removes packages with the package manager of the device, with their configuration where it knows the difference.
. "${0%/*}/handler-lib.sh"
take_user "${1-}"
[ $# -eq 0 ] || shift
names package "$@"
manager=$(package_manager) || fail "no package manager: apt-get, dnf, yum, opkg or apk"
# shellcheck disable=SC2086 # words are what is wanted
case $manager in
  apt-get) as_user env DEBIAN_FRONTEND=noninteractive apt-get remove -y --purge $names ;;
  dnf | yum) as_user "$manager" remove -y $names ;;
  opkg) as_user opkg remove $names ;;
  apk) as_user apk del $names ;;
esac
