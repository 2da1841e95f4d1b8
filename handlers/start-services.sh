#!/bin/sh
# start-services.sh USER SERVICE...
# Starts services. All are tried; the step fails if one does not start.
. "${0%/*}/handler-lib.sh"
take_user "${1-}"
[ $# -eq 0 ] || shift
each_service start "$@"
