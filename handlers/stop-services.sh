#!/bin/sh
# stop-services.sh USER SERVICE...
# Stops services. All are tried; the step fails if one does not stop.
. "${0%/*}/handler-lib.sh"
take_user "${1-}"
[ $# -eq 0 ] || shift
each_service stop "$@"
