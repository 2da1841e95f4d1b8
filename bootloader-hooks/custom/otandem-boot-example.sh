#!/bin/sh
# An example of a boot program: a bootloader of your own behind RAUC's verbs.
#
# Copy it, keep the verbs, and replace load, save and get-current by what your bootloader understands. The store is
# one block of text that the bootloader reads:
#
#     primary=A        the set to boot
#     A=good           good: boot it; bad: do not; untried: boot it once, after changing it to tried;
#     B=bad            tried: it had its one chance, boot the other one
#
# The loader, at a reset: if primary is `untried`, make it `tried` and boot it; if it is `good`, boot it; in all other
# cases, and when loading fails, boot the other set unless that is `bad`. Without a readable store: A, then B.
#
# Exit code 0 = done. Whatever is printed on standard error goes to the log.
set -eu

STORE=${OTANDEM_BOOT_STORE:-/boot/otandem.env}

load() {
    primary=A A=good B=good
    [ -r "$STORE" ] || return 0
    while IFS='=' read -r key value; do
        case $key=$value in
        primary=A | primary=B) primary=$value ;;
        A=good | A=bad | A=untried | A=tried) A=$value ;;
        B=good | B=bad | B=untried | B=tried) B=$value ;;
        esac
    done <"$STORE"
}

# One sector, in place: the loader may not see a rename, and a file that is cut short first may be lost.
save() {
    printf '%-511s\n' "primary=$primary
A=$A
B=$B
" | dd of="$STORE" bs=512 conv=notrunc,fsync 2>/dev/null
}

known() {
    case $1 in
    A | B) ;;
    *)
        echo "unknown set: $1" >&2
        exit 2
        ;;
    esac
}

case ${1-} in
get-primary)
    load
    # What the next reset boots, which is not always what was asked for.
    case $primary-$A-$B in
    A-good-* | A-untried-* | *-*-bad) echo A ;;
    B-*-good | B-*-untried | *-bad-*) echo B ;;
    A-*) echo B ;;
    *) echo A ;;
    esac
    ;;
set-primary)
    known "${2-}"
    load
    # A set that is not running is on trial first; `set-state good` makes it permanent.
    if [ "$("$0" get-current 2>/dev/null || :)" != "$2" ]; then
        eval "$2=untried"
    fi
    primary=$2
    save
    ;;
get-state)
    known "${2-}"
    load
    eval "echo \$$2"
    ;;
set-state)
    known "${2-}"
    load
    case ${3-} in
    good | bad) ;;
    *)
        echo "unknown state: ${3-}" >&2
        exit 2
        ;;
    esac
    # An ordinary boot changes nothing, and flash wears.
    eval "old=\$$2"
    [ "$old" = "$3" ] && exit 0
    eval "$2=$3"
    save
    ;;
get-current)
    # Optional. Here from the kernel command line, as otandem does itself.
    for word in ${OTANDEM_BOOT_CMDLINE-$(cat /proc/cmdline)}; do
        case $word in
        otandem.set=A | otandem.set=B)
            echo "${word#otandem.set=}"
            exit 0
            ;;
        esac
    done
    exit 1
    ;;
*)
    echo "usage: $0 get-primary | set-primary SET | get-state SET | set-state SET good|bad | get-current" >&2
    exit 2
    ;;
esac
