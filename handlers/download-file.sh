#!/bin/sh
# download-file.sh USER URL OUTPUT
# Downloads a file to OUTPUT, or into it where it is a directory. What is there is replaced only by a whole file. The
# URL is never printed with its query: that may be what grants access.
. "${0%/*}/handler-lib.sh"
take_user "${1-}"
url=${2-} output=${3-}
if [ -z "$url" ] || [ -z "$output" ]; then fail "a URL and a path are needed"; fi
shown=${url%%[?#]*}
case $url in
  http://* | https://*) ;;
  *) fail "\"$shown\" is no http or https URL" ;;
esac
case $output in
  -*) output=./$output ;;
esac
if as_user test -d "$output"; then
  name=${shown##*/}
  if [ -z "$name" ]; then fail "\"$shown\" names no file: give the path of one"; fi
  output=${output%/}/$name
fi
part=$output.part
status=0
if has wget; then
  as_user wget -q -O "$part" "$url" || status=$?
elif has curl; then
  as_user curl -fsSL -o "$part" "$url" || status=$?
else
  fail "neither wget nor curl is there"
fi
if [ "$status" != 0 ]; then
  as_user rm -f "$part"
  fail "the download of $shown failed with status $status"
fi
as_user mv -f "$part" "$output"
