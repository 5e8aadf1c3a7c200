//! Every case on every engine of this host, compared.

use vireo_testkit::{hosts, report};

#[test]
fn engines_do_what_the_architecture_says_and_all_the_same() {
    let summary = report::run(&hosts::NAMES, "", false).expect("the engines exist");
    assert!(summary.engines > 0, "no engine can be tested on this host");
    assert_eq!(summary.failed, 0, "see the list above; run with --nocapture");
    assert!(summary.passed > 0);
}
