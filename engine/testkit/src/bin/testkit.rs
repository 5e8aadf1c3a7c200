//! Runs the cases on one engine of this host and prints what came of each.

fn main() {}
