# Sourced, not run, in the lab: machines on KVM, by name, and what is typed to the shells of their guests.
# A machine NAME prints to /tmp/NAME.log, reads /tmp/NAME.keys, a FIFO, and is asked by /tmp/NAME.control.
# shellcheck shell=sh

# Says what is wrong, after the end of what the machines printed, and ends.
fail() { # WORD…
    for log in /tmp/*.log; do
        echo "== $log"
        tail -n 60 "$log"
    done
    echo "FAILED: $*"
    exit 1
}

# Starts a machine with two processors; APPEND joins its kernel's command line.
start() { # NAME KERNEL-FOLDER APPEND OPTION…
    name=$1 folder=$2 append=$3
    shift 3
    echo "$name: starts: $append $*"
    mkfifo "/tmp/$name.keys"
    # Opened both ways, the FIFO never ends.
    vireo run --engine kvm --cpus 2 --stats --kernel "$folder/vmlinuz" --initrd "$folder/initrd.img" \
        --append "console=ttyS0 panic=-1 $append" --control "/tmp/$name.control" "$@" \
        <>"/tmp/$name.keys" >"/tmp/$name.log" 2>&1 &
    echo $! >"/tmp/$name.pid"
}

# Says what has been done, and when.
now() { # WORD…
    echo "$(cut -d' ' -f1 /proc/uptime) s: $*"
}

runs() { # NAME
    kill -0 "$(cat "/tmp/$1.pid")" 2>/dev/null
}

# Asks again, each half second, until a command succeeds.
until_so() { # NAME SECONDS WHAT COMMAND…
    _name=$1 _rounds=$(($2 * 2)) _what=$3
    shift 3
    until "$@"; do
        runs "$_name" || fail "$_name ended before: $_what"
        [ "$_rounds" -gt 0 ] || fail "$_name: not in time: $_what"
        _rounds=$((_rounds - 1))
        sleep 0.5
    done
}

# Waits until the machine has printed a line with this in it.
wait_for() { # NAME PATTERN
    until_so "$1" 300 "$2" grep -qE -- "$2" "/tmp/$1.log"
}

# Has the shell of the guest run a command; what it prints is in /tmp/said.
guest_tries() { # NAME COMMAND
    # A file, since callers may be subshells.
    echo >>/tmp/commands
    _n=$(wc -l </tmp/commands)
    # The terminal's echo has the sums as they are typed. The shell loses what comes while it sets its terminal.
    printf '%32s echo "<$((0+%d))"; %s; echo "$?:$((0+%d))>"\n' '' "$_n" "$2" "$_n" >"/tmp/$1.keys"
    wait_for "$1" ":$_n>"
    tr -d '\r' <"/tmp/$1.log" | sed -n "/^<$_n\$/,/:$_n>\$/p" | sed '1d;$d' >/tmp/said
    tr -d "\r" <"/tmp/$1.log" | grep -q "^0:$_n>"
}

# The same; it has to succeed.
guest() { # NAME COMMAND
    guest_tries "$1" "$2" || fail "$1: the guest failed to: $2"
}

# Asks the machine; it has to succeed. What it answers is in /tmp/answer.
vm() { # NAME COMMAND…
    _name=$1
    shift
    vireo vm "$@" --control "/tmp/$_name.control" >/tmp/answer 2>&1 || fail "$_name: vireo vm $*: $(cat /tmp/answer)"
}

# The machine ends with this exit code.
ends() { # NAME CODE
    wait "$(cat "/tmp/$1.pid")"
    _status=$?
    [ "$_status" = "$2" ] || fail "$1 ended with $_status, expected $2"
    if grep -E 'WARNING:|BUG:|Oops|Call Trace|lockup|detected stall|unchecked MSR' "/tmp/$1.log"; then
        fail "$1: its guest's kernel complains"
    fi
    echo "$1: ended; $(grep -E 'exits' "/tmp/$1.log" | tail -n 1)"
}
