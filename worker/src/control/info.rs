//! What a machine is, and what its guest tells of itself.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use vireo_services::{Item, MemoryStatus, Pool, Pulse, ServiceState, ServiceStatus, Services};

use super::server::Controlled;

/// What a guest may take to tell of itself.
const PATIENCE: Duration = Duration::from_secs(8);

/// A machine, and its guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MachineInfo {
    /// Which engine runs it.
    pub engine: String,
    /// Processors.
    pub cpus: u32,
    /// Seconds since it was started.
    pub uptime: f64,
    /// Times it was reset since.
    pub resets: u32,
    /// Whether the guest answers.
    pub heartbeat: Pulse,
    /// Seconds since it last did.
    pub heartbeat_age: Option<f64>,
    /// What the guest tells of itself; it has to have a daemon for that.
    pub guest: Option<GuestReport>,
    /// Why it tells nothing.
    pub guest_unknown: Option<String>,
    /// Its memory; without integration services nothing is known of it.
    pub memory: Option<MemoryStatus>,
    /// Seconds until the guest's file systems, which are frozen, are thawed.
    pub frozen: Option<f64>,
    /// The integration services.
    pub services: Vec<ServiceStatus>,
}

/// What a guest tells of itself. It is its word.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct GuestReport {
    /// Fully qualified name.
    pub host_name: Option<String>,
    /// Its system.
    pub os_name: Option<String>,
    /// Its release.
    pub os_release: Option<String>,
    /// The version of its kernel.
    pub os_version: Option<String>,
    /// The same, as its makers count.
    pub os_build: Option<String>,
    /// Of its processor.
    pub architecture: Option<String>,
    /// Addresses.
    pub ipv4: Vec<String>,
    /// Addresses.
    pub ipv6: Vec<String>,
}

impl GuestReport {
    fn of(items: Vec<Item>) -> Self {
        let mut report = Self::default();
        for Item { key, value } in items {
            let list = |value: &str| value.split(';').filter(|a| !a.is_empty()).map(String::from).collect();
            let field = match key.as_str() {
                "FullyQualifiedDomainName" => &mut report.host_name,
                "OSName" => &mut report.os_name,
                "OSMajorVersion" => &mut report.os_release,
                "OSVersion" => &mut report.os_version,
                "OSBuildNumber" => &mut report.os_build,
                "ProcessorArchitecture" => &mut report.architecture,
                "NetworkAddressIPv4" => {
                    report.ipv4 = list(&value);
                    continue;
                }
                "NetworkAddressIPv6" => {
                    report.ipv6 = list(&value);
                    continue;
                }
                _ => continue,
            };
            *field = Some(value).filter(|v| !v.is_empty());
        }
        report
    }
}

/// All that is known now.
pub fn info(controlled: &Controlled) -> MachineInfo {
    let running = &controlled.running;
    let services = controlled.services.as_deref();
    let (heartbeat, age) = services.map_or((Pulse::Absent, None), Services::pulse);
    let (guest, guest_unknown) = match services.map(report) {
        Some(Ok(report)) => (Some(report), None),
        Some(Err(why)) => (None, Some(why)),
        None => (None, Some("the machine has no integration services".into())),
    };
    MachineInfo {
        engine: running.engine.clone(),
        cpus: running.cpus,
        uptime: running.started.elapsed().as_secs_f64(),
        resets: running.resets(),
        heartbeat,
        heartbeat_age: age.map(|a| a.as_secs_f64()),
        guest,
        guest_unknown,
        memory: services.map(Services::memory),
        frozen: services.and_then(Services::frozen).map(|f| f.as_secs_f64()),
        services: services.map(Services::status).unwrap_or_default(),
    }
}

fn report(services: &Services) -> Result<GuestReport, String> {
    let kvp = services.status().into_iter().find(|s| s.name == vireo_services::KVP_NAME);
    // A driver that waits for its daemon is not waited for here.
    match kvp.map(|s| s.state) {
        Some(ServiceState::Ready) => {
            services.kvp_list_within(Pool::Auto, PATIENCE).map(GuestReport::of).map_err(|e| e.to_string())
        }
        Some(ServiceState::Negotiating) => Err("its daemon for key-value exchange does not run".into()),
        _ => Err("it has no driver for key-value exchange".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_made_of_what_a_guest_tells() {
        let item = |key: &str, value: &str| Item { key: key.into(), value: value.into() };
        let report = GuestReport::of(vec![
            item("OSName", "Debian"),
            item("OSVersion", ""),
            item("NetworkAddressIPv4", "10.0.0.2;;127.0.0.1;"),
            item("Unheard", "of"),
        ]);
        let expected = GuestReport {
            os_name: Some("Debian".into()),
            ipv4: vec!["10.0.0.2".into(), "127.0.0.1".into()],
            ..GuestReport::default()
        };
        assert_eq!(report, expected);
    }
}
