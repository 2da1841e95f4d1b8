#!/bin/sh
# reboot.sh USER
# Reboots the device. The agent is told before, so that it reports the job when the device is up again, and does not
# run it a second time.
. "${0%/*}/handler-lib.sh"
take_user "${1-}"
mark=${OTANDEM_REBOOT_MARK-}
if [ -n "$mark" ]; then
  printf '%s\n' "${OTANDEM_JOB_ID-}" >"$mark" || fail "cannot tell the agent of the reboot: $mark"
fi
sync
status=0
if has systemctl; then
  as_user systemctl reboot || status=$?
elif has reboot; then
  as_user reboot || status=$?
else
  as_user shutdown -r now || status=$?
fi
if [ "$status" != 0 ]; then
  [ -z "$mark" ] || rm -f "$mark"
  fail "the device does not reboot (status $status)"
fi
