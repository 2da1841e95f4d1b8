#!/bin/sh
# shutdown.sh USER
# Switches the device off in a minute, so that the job can be reported before.
. "${0%/*}/handler-lib.sh"
take_user "${1-}"
if has shutdown; then
  as_user shutdown -h +1
elif has poweroff; then
  if [ -n "$user" ] && [ "$user" != "$(id -un)" ]; then fail "without shutdown(8) only the agent's own user can do this"; fi
  in_background 60 poweroff
else
  fail "neither shutdown nor poweroff is there"
fi
