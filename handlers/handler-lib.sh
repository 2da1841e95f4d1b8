# What the job handlers beside this file share. Sourced, never run.
#
# Each handler is called as HANDLER USER ARGUMENT...; USER may be empty, and then things are done as the caller.
# shellcheck shell=sh

set -eu

# fail MESSAGE...: the step fails and says why.
fail() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

has() {
  command -v "$1" >/dev/null 2>&1
}

# take_user USER: as whom the handler works. A user who is not there is an error: to go on as root instead would be
# more than the job asked for.
take_user() {
  user=${1-}
  case $user in
    '') return 0 ;;
    -*) fail "\"$user\" is no user name" ;;
  esac
  id "$user" >/dev/null 2>&1 || fail "there is no user \"$user\" on this device"
}

# as_user COMMAND...: runs it as that user.
as_user() {
  if [ -z "$user" ] || [ "$user" = "$(id -un)" ]; then
    "$@"
  elif has sudo; then
    sudo -u "$user" -n "$@"
  elif [ "$(id -u)" = 0 ] && has su; then
    # Without the end of its options su takes those of the command for its own.
    # shellcheck disable=SC2016 # for the shell of the other user
    su -s /bin/sh -c 'exec "$@"' -- "$user" sh "$@"
  else
    fail "cannot become user \"$user\": install sudo and allow it, or leave runAsUser out"
  fi
}

# names WHAT ARGUMENT...: puts the words of all arguments into $names, one argument may hold several. A word that a
# tool would take for an option is refused.
names() {
  what=$1
  shift
  # From here on: no word means the files of some directory.
  set -f
  names=
  # shellcheck disable=SC2048 # words are what is wanted
  for word in $*; do
    case $word in
      -*) fail "\"$word\" is no name of a $what" ;;
    esac
    names="$names${names:+ }$word"
  done
  [ -n "$names" ] || fail "no $what is named"
}

# in_background COMMAND...: runs it after SECONDS, in a session of its own, which the end of the job does not end.
in_background() {
  seconds=$1
  shift
  # shellcheck disable=SC2016 # for the shell in the background
  set -- sh -c 'sleep "$1"; shift; exec "$@"' sh "$seconds" "$@"
  if has setsid; then
    setsid "$@" </dev/null >/dev/null 2>&1 &
  else
    "$@" </dev/null >/dev/null 2>&1 &
  fi
}

# package_manager: prints the one of this device.
package_manager() {
  for manager in apt-get dnf yum opkg apk; do
    if has "$manager"; then
      echo "$manager"
      return 0
    fi
  done
  return 1
}

# is_installed PACKAGE
is_installed() {
  case $manager in
    apt-get)
      # Removed packages whose configuration is kept are still known, and not installed.
      # shellcheck disable=SC2016 # a format of dpkg
      [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
      ;;
    dnf | yum) rpm -q "$1" >/dev/null 2>&1 ;;
    opkg)
      case $(opkg status "$1" 2>/dev/null) in
        *"Status: install "*" installed"*) return 0 ;;
        *) return 1 ;;
      esac
      ;;
    apk) apk info -e "$1" >/dev/null 2>&1 ;;
  esac
}

# service_action ACTION SERVICE: start, stop or restart, with whatever keeps services here.
service_action() {
  case $2 in
    */*) fail "\"$2\" is no name of a service" ;;
  esac
  for directory in "${SVDIR:-/etc/service}" /var/service /service; do
    if has sv && [ -d "$directory/$2" ]; then
      as_user sv "$1" "$directory/$2"
      return
    fi
  done
  if has systemctl; then
    as_user systemctl "$1" "$2"
  elif has service; then
    as_user service "$2" "$1"
  elif [ -x "${OTANDEM_INIT_DIR:-/etc/init.d}/$2" ]; then
    as_user "${OTANDEM_INIT_DIR:-/etc/init.d}/$2" "$1"
  else
    fail "nothing here can $1 \"$2\": there is no systemctl, no service, no /etc/init.d/$2 and no runit service"
  fi
}

# each_service ACTION NAME...: all of them are tried; one that fails fails the step.
each_service() {
  action=$1
  shift
  names service "$@"
  status=0
  for service in $names; do
    service_action "$action" "$service" || {
      status=$?
      echo "${0##*/}: $action of \"$service\" failed with status $status" >&2
    }
  done
  return "$status"
}
