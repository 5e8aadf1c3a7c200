//! `vireo switch set`.

use clap::Args;
use vireo_switchd::Change;
use vireo_switchd::control::Request;

/// Options of `vireo switch set`. What they may be is the switch's to say.
#[derive(Args)]
pub struct SetArgs {
    /// Which switch.
    pub name: String,
    /// Which port, connected or not.
    port: Option<String>,
    /// The adapter's address; any: what its machine says.
    #[arg(long)]
    mac: Option<String>,
    /// VLAN: a number; none; trunk:NATIVE:LIST; isolated:PRIMARY:SECONDARY; community:PRIMARY:SECONDARY; promiscuous:PRIMARY:LIST,
    /// where LIST is as 10,20-29 or all; any: what its machine says.
    #[arg(long)]
    vlan: Option<String>,
    /// Whether its guest may send from any address, and gets what is for unknown ones (network load balancing, bridges).
    #[arg(long, value_name = "on|off")]
    spoofing: Option<String>,
    /// Whether its guest is kept from being a DHCP server.
    #[arg(long, value_name = "on|off")]
    dhcp_guard: Option<String>,
    /// Whether its guest is kept from being a router.
    #[arg(long, value_name = "on|off")]
    router_guard: Option<String>,
    /// IP addresses that its guest may have, with commas between them; any.
    #[arg(long, value_name = "IP,…|any")]
    addresses: Option<String>,
    /// A rule, as "deny out tcp remote=10.0.0.0/8 remote-port=25 weight=10" or "allow out tcp answers=300"; several are the whole list;
    /// none.
    #[arg(long, value_name = "RULE|none")]
    acl: Vec<String>,
    /// Copies of what passes it: none, made of it (source), or given to it (destination).
    #[arg(long, value_name = "none|source|destination")]
    mirror: Option<String>,
    /// Bits in a second that its guest may send, as 100M; none.
    #[arg(long, value_name = "RATE|none")]
    bandwidth: Option<String>,
    /// Its share where there is not enough for all, 1 to 100.
    #[arg(long)]
    weight: Option<String>,
    /// Frames in a second to groups and unknown addresses that its guest may send; none.
    #[arg(long, value_name = "N|none")]
    storm: Option<String>,
    /// Of the switch: whether multicast goes only to who has asked for it (IGMP, MLD).
    #[arg(long, value_name = "on|off", conflicts_with = "port")]
    snooping: Option<String>,
    /// Of the switch: whether it asks who wants which groups, where no router does.
    #[arg(long, value_name = "on|off", conflicts_with = "port")]
    querier: Option<String>,
    /// Of the switch: whether ports may come that there are no settings for.
    #[arg(long, value_name = "on|off", conflicts_with = "port")]
    strangers: Option<String>,
    /// Of the switch: longest packet, in bytes; machines that connect from now on are told.
    #[arg(long, conflicts_with = "port")]
    mtu: Option<String>,
    /// The port has no settings of its own any more.
    #[arg(long, requires = "port")]
    forget: bool,
}

impl SetArgs {
    /// What is asked of the switch.
    pub fn request(&self) -> Result<Request, String> {
        let named = [
            ("mac", &self.mac),
            ("vlan", &self.vlan),
            ("spoofing", &self.spoofing),
            ("dhcp-guard", &self.dhcp_guard),
            ("router-guard", &self.router_guard),
            ("addresses", &self.addresses),
            ("mirror", &self.mirror),
            ("bandwidth", &self.bandwidth),
            ("weight", &self.weight),
            ("storm", &self.storm),
            ("snooping", &self.snooping),
            ("querier", &self.querier),
            ("strangers", &self.strangers),
            ("mtu", &self.mtu),
        ];
        let change = |key: &str, value: &String| Change { key: key.into(), value: value.clone() };
        let mut changes: Vec<_> =
            named.iter().filter_map(|(key, value)| value.as_ref().map(|v| change(key, v))).collect();
        changes.extend(self.acl.iter().map(|rule| change("acl", rule)));
        match (&self.port, self.forget, changes.is_empty()) {
            (Some(port), true, true) => Ok(Request::Forget { port: port.clone() }),
            (_, true, false) => Err("--forget goes with no other setting".into()),
            (_, _, true) => Err("nothing is to be set (vireo switch set --help)".into()),
            (port, ..) => Ok(Request::Set { port: port.clone(), changes }),
        }
    }
}
