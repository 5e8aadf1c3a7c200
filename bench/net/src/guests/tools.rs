//! The programs that measure, neither of them ours.

use crate::AnyResult;

/// What goes from end to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// A connection that the first end sends by.
    Send,
    /// One that it receives by.
    Receive,
    /// So many connections that it sends by.
    Flows,
    /// A byte there, a byte back, in a connection.
    TcpTurns,
    /// The same in datagrams.
    UdpTurns,
}

/// Connections of [`Load::Flows`].
const FLOWS: u32 = 24;

impl Load {
    /// Those that are about bytes.
    pub const ALL: [Self; 3] = [Self::Send, Self::Receive, Self::Flows];

    /// Its name, for people.
    pub fn name(self) -> String {
        match self {
            Self::Send => "sends".into(),
            Self::Receive => "receives".into(),
            Self::Flows => format!("sends, {FLOWS} flows"),
            Self::TcpTurns => "1 byte in turns, TCP".into(),
            Self::UdpTurns => "1 byte in turns, UDP".into(),
        }
    }

    /// The command of who begins it.
    pub fn command(self, peer: &str, seconds: u32) -> String {
        let iperf = |more: &str| format!("iperf3 -J -i 0 -t {seconds} -c {peer} {more}");
        match self {
            Self::Send => iperf(""),
            Self::Receive => iperf("-R"),
            Self::Flows => iperf(&format!("-P {FLOWS}")),
            Self::TcpTurns => format!("qperf {peer} -t {seconds} -m 1 -u -uu tcp_lat"),
            Self::UdpTurns => format!("qperf {peer} -t {seconds} -m 1 -u -uu udp_lat"),
        }
    }

    /// The figure in what it says: Gbit/s, or turns in a second.
    pub fn figure(self, said: &str) -> AnyResult<f64> {
        match self {
            Self::Send | Self::Receive | Self::Flows => gigabits(said),
            Self::TcpTurns | Self::UdpTurns => turns(said),
        }
        .ok_or_else(|| format!("no figure in: {said}").into())
    }
}

/// What arrived, of iperf3's report.
fn gigabits(said: &str) -> Option<f64> {
    let report: serde_json::Value = serde_json::from_str(said.get(said.find('{')?..)?).ok()?;
    Some(report["end"]["sum_received"]["bits_per_second"].as_f64()? / 1e9)
}

/// qperf tells half of a turn: "latency = 12.3 us".
fn turns(said: &str) -> Option<f64> {
    let words = said.split_once("latency")?.1.split_once('=')?.1;
    let mut words = words.split_whitespace();
    let (number, unit) = (words.next()?.parse::<f64>().ok()?, words.next()?);
    let seconds = match unit {
        "ns" => 1e-9,
        "us" => 1e-6,
        "ms" => 1e-3,
        "sec" => 1.0,
        _ => return None,
    };
    (number > 0.0).then(|| 1.0 / (2.0 * number * seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_in_what_the_programs_say() {
        let report =
            r#"noise {"end":{"sum_sent":{"bits_per_second":3e9},"sum_received":{"bits_per_second":2.5e9}}}"#;
        assert_eq!(Load::Send.figure(report).unwrap(), 2.5);
        assert!(Load::Send.figure(r#"{"error":"no route"}"#).is_err());
        let said = "tcp_lat:\n    latency  =  250 us\n";
        assert_eq!(Load::TcpTurns.figure(said).unwrap(), 2000.0);
        assert!(Load::UdpTurns.figure("failed").is_err());
    }
}
