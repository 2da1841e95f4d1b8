#!/bin/sh
# restart-services.sh USER SERVICE...
# Restarts services. All are tried; the step fails if one does not restart. The agent that runs this job, under either of
# its names, is restarted last, a moment after the step has ended, so that the job can be reported.
. "${0%/*}/handler-lib.sh"
take_user "${1-}"
[ $# -eq 0 ] || shift
names service "$@"
others=''
itself=''
for service in $names; do
  case $service in
    otandem | otandem.service | aws-iot-device-client | aws-iot-device-client.service) itself=$service ;;
    *) others="$others${others:+ }$service" ;;
  esac
done
if [ -n "$others" ]; then each_service restart "$others"; fi
if [ -n "$itself" ]; then
  # The service manager ends what belongs to the agent, this handler included, so it must not be waited for.
  if has systemctl; then
    as_user systemctl --no-block restart "$itself"
  else
    # shellcheck disable=SC2016 # for the shell in the background
    in_background 3 sh -c '. "$1/handler-lib.sh"; take_user "$2"; service_action restart "$3"' sh \
      "${0%/*}" "$user" "$itself"
  fi
fi
