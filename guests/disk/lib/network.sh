# Sourced, not run. The network, where the machine has an adapter and somebody answers DHCP, and a page about this guest.
# shellcheck shell=sh

# Sets up the first adapter, and says its address.
network_up() {
    for _adapter in /sys/class/net/eth*; do
        [ -e "$_adapter" ] || return 0
        _name=${_adapter##*/}
        ip link set "$_name" up
        if udhcpc -q -n -t 5 -T 1 -i "$_name" -s /vireo/lib/dhcp >/dev/null 2>&1; then
            _address=$(ip -4 addr show dev "$_name" | sed -n 's|.*inet \([0-9.]*\)/.*|\1|p')
            echo "vireo: network $_name $_address"
            serve_page
        else
            echo "vireo: network $_name has no address: nobody answers DHCP"
        fi
        return
    done
}

# Serves a page on port 80.
serve_page() {
    mkdir -p /run/www
    {
        echo "<title>A guest of Vireo</title>"
        echo "<p>This is $(uname -sr) with $(nproc) processors, up for $(uptime_seconds) s, and says hello."
    } >/run/www/index.html
    httpd -h /run/www
}
