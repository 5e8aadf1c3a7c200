# Sourced, not run. Parameters of a test: words vireo.NAME=VALUE of the kernel command line.
# shellcheck shell=sh

# Prints the value of vireo.NAME=, or DEFAULT.
parameter() { # NAME [DEFAULT]
    # shellcheck disable=SC2013 # words are wanted
    for _word in $(cat /proc/cmdline); do
        case $_word in
            "vireo.$1="*)
                echo "${_word#*=}"
                return
                ;;
        esac
    done
    echo "${2:-}"
}

# Seconds since the machine began.
uptime_seconds() {
    read -r _up _ </proc/uptime
    echo "${_up%.*}"
}

# Prints the uptime at which a test of vireo.seconds= ends, 0 without.
end_of_test() {
    _seconds=$(parameter seconds 0)
    if [ "$_seconds" = 0 ]; then echo 0; else echo $(($(uptime_seconds) + _seconds)); fi
}

# Listens, until the test ends, for a line "stop" on the console. A read with a time limit would lose half a line.
listen_for_stop() {
    rm -f /run/stop
    (while read -r _line; do [ "$_line" != stop ] || : >/run/stop; done) </dev/console &
    # shellcheck disable=SC2064 # the reader of now
    trap "kill $!" EXIT
}

# Waits a moment; succeeds when the test is to end: after a line "stop", or at uptime END (0: never).
told_to_stop() { # END
    sleep 0.2
    [ -e /run/stop ] || { [ "$1" != 0 ] && [ "$(uptime_seconds)" -ge "$1" ]; }
}
