//! Who answers DNS: whoever does so for the host. What guests ask goes there as it is, and so do the answers.

use std::net::IpAddr;

/// Where DNS is answered.
pub const PORT: u16 = 53;
/// Resolvers that are asked, as many as libc asks.
const MOST: usize = 3;

/// The resolvers that a file names (`resolv.conf(5)`).
pub fn resolvers(text: &str) -> Vec<IpAddr> {
    let server = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let is_server = words.next() == Some("nameserver");
        // Those with a scope are of one link alone, and no guest's business.
        words.next().filter(|_| is_server).and_then(|address| address.parse::<IpAddr>().ok())
    };
    text.lines().filter_map(server).take(MOST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_found_among_the_rest() {
        let text = "# nameserver 9.9.9.9\nsearch example.org\nnameserver 127.0.0.53\n nameserver  fd00::1 # near\n\
                    nameserver nonsense\nnameserver fe80::1%eth0\nnameserver 1.1.1.1\nnameserver 8.8.8.8\n;nameserver 8.8.4.4\nnameserver";
        let want: Vec<IpAddr> =
            ["127.0.0.53", "fd00::1", "1.1.1.1"].iter().map(|a| a.parse().unwrap()).collect();
        assert_eq!(resolvers(text), want);
        assert!(resolvers("").is_empty());
    }
}
