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

# Waits a moment; succeeds when the test is to end: at a line "stop" on the console, or at uptime END (0: never).
told_to_stop() { # END
    # shellcheck disable=SC3045 # busybox's shell has read -t
    if read -r -t 0.2 _line && [ "$_line" = stop ]; then return 0; fi
    [ "$1" != 0 ] && [ "$(uptime_seconds)" -ge "$1" ]
}

# Prints the uptime at which a test of vireo.seconds= ends, 0 without.
end_of_test() {
    _seconds=$(parameter seconds 0)
    if [ "$_seconds" = 0 ]; then echo 0; else echo $(($(uptime_seconds) + _seconds)); fi
}
