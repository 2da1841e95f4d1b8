#!/bin/sh
# install-packages.sh USER PACKAGE...
# Installs packages with the package manager of the device.
. "${0%/*}/handler-lib.sh"
take_user "${1-}"
[ $# -eq 0 ] || shift
names package "$@"
manager=$(package_manager) || fail "no package manager: apt-get, dnf, yum, opkg or apk"
# shellcheck disable=SC2086 # words are what is wanted
case $manager in
  apt-get) as_user env DEBIAN_FRONTEND=noninteractive apt-get install -y $names ;;
  dnf | yum) as_user "$manager" install -y $names ;;
  opkg) as_user opkg install $names ;;
  apk) as_user apk add $names ;;
esac
