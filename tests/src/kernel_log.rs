//! What a kernel log complains about.

use std::collections::HashSet;

/// Words of a kernel that has found something wrong with itself or its machine. Case counts: Linux shouts its bugs.
const COMPLAINTS: [&str; 19] = [
    "WARNING:",
    "BUG:",
    "Call Trace",
    "Oops",
    "general protection fault",
    "Kernel panic",
    "unstable",
    "Firmware Bug",
    "Firmware Warn",
    "ACPI Error",
    "ACPI Warning",
    "ACPI BIOS",
    "ACPI Exception",
    "ACPI Table error",
    "purious",
    "lockup",
    "detected stall",
    "unchecked MSR",
    "broken",
];

/// What a kernel says that keeps time by reference time, as guests of `hyperv-1` shall.
const NO_COMPLAINT: &str = "tsc: Marking TSC unstable due to running on Hyper-V";

/// Lines of `log` that complain about something that `reference`, the log of the same kernel elsewhere, does not
/// complain about in the same words. Numbers and times may differ.
pub fn complaints(log: &str, reference: &str) -> Vec<String> {
    let known: HashSet<String> = reference.lines().map(wording).collect();
    let complains = |l: &&str| COMPLAINTS.iter().any(|c| l.contains(c)) && !l.contains(NO_COMPLAINT);
    log.lines().filter(complains).filter(|l| !known.contains(&wording(l))).map(str::to_string).collect()
}

/// A line without its time stamp, and with all that contains a digit made equal.
fn wording(line: &str) -> String {
    let line = line.trim();
    let line = match line.strip_prefix('[').and_then(|l| l.split_once(']')) {
        Some((stamp, rest)) if stamp.trim().parse::<f64>().is_ok() => rest,
        _ => line,
    };
    let word = |w: &str| if w.contains(|c: char| c.is_ascii_digit()) { "#".into() } else { w.to_string() };
    line.split_whitespace().map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "[    0.000000] Linux version 6.1.0\n\
                        [    0.010000] x86/cpu: spurious thing 0x12 in [mem 0x100]\n\
                        [    1.500000] clocksource: Marking clocksource 'tsc' as unstable because of 5 ns\n\
                        Debug: fine\n";

    #[test]
    fn only_new_complaints_are_found() {
        assert_eq!(complaints(OURS, "").len(), 2);
        let reference = "[   12.010000] x86/cpu: spurious thing 0x99 in [mem 0xfff0]";
        let found = complaints(OURS, reference);
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("unstable"));
        assert!(complaints(OURS, OURS).is_empty());
        assert!(complaints(&format!("[    0.000223] {NO_COMPLAINT}\n"), "").is_empty());
    }
}
