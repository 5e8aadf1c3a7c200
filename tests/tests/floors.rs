//! The house rule: a room depends on rooms of lower floors, or of its own floor listed before it, never on higher ones.
//!
//! Floors are the top-level folders in the order below; within a floor, the order of the workspace's member list counts.

use std::collections::HashMap;
use std::process::Command;

use serde_json::Value;

/// From the ground up. `guests` holds recipes, not crates.
const FLOORS: [&str; 13] = [
    "engine", "machine", "storage", "control", "network", "console", "vmbus", "vsp", "state", "worker",
    "host", "faces", "cluster",
];
/// May depend on anything: nothing depends on them.
const ATTIC: [&str; 2] = ["tests", "bench"];

/// (floor, place in the member list) of each crate of the workspace.
fn places(metadata: &Value) -> HashMap<String, (usize, usize)> {
    let root = metadata["workspace_root"].as_str().expect("a workspace root");
    let manifest = std::fs::read_to_string(format!("{root}/Cargo.toml")).expect("the workspace manifest");
    let members: Vec<&str> = manifest
        .lines()
        .skip_while(|l| !l.starts_with("members"))
        .take_while(|l| !l.starts_with(']'))
        .filter_map(|l| l.trim().strip_prefix('"')?.split('"').next())
        .collect();
    let mut places = HashMap::new();
    for package in metadata["packages"].as_array().expect("packages") {
        let manifest = package["manifest_path"].as_str().expect("a path");
        let Some(room) =
            manifest.strip_prefix(&format!("{root}/")).and_then(|p| p.strip_suffix("/Cargo.toml"))
        else {
            continue;
        };
        let folder = room.split('/').next().expect("a folder");
        let floor = match FLOORS.iter().position(|f| *f == folder) {
            Some(f) => f,
            None if ATTIC.contains(&folder) => FLOORS.len(),
            None => {
                panic!("{room} is on no floor: add the floor {folder} to this test and to ARCHITECTURE.md")
            }
        };
        let place = members.iter().position(|m| *m == room).expect("a member of the workspace");
        places.insert(package["name"].as_str().expect("a name").to_string(), (floor, place));
    }
    places
}

/// The dependencies (of the given kinds) that go up.
fn violations(metadata: &Value, places: &HashMap<String, (usize, usize)>) -> Vec<String> {
    let mut found = Vec::new();
    for package in metadata["packages"].as_array().expect("packages") {
        let name = package["name"].as_str().expect("a name");
        let Some(&(floor, place)) = places.get(name) else { continue };
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let on = dependency["name"].as_str().expect("a name");
            // A room's own tests may use whatever they are tested with.
            if dependency["kind"] == "dev" {
                continue;
            }
            if places.get(on).is_some_and(|&(f, p)| f > floor || f == floor && p >= place) {
                found.push(format!("{name} depends on {on}, which is above it"));
            }
        }
    }
    found
}

fn metadata() -> Value {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .output()
        .expect("cargo metadata runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).expect("cargo metadata prints JSON")
}

#[test]
fn no_room_depends_on_a_higher_one() {
    let metadata = metadata();
    let places = places(&metadata);
    assert!(places.len() >= 10, "only {} rooms found", places.len());
    let found = violations(&metadata, &places);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn a_dependency_upwards_is_found() {
    let mut metadata = metadata();
    let places = places(&metadata);
    let core = metadata["packages"]
        .as_array_mut()
        .expect("packages")
        .iter_mut()
        .find(|p| p["name"] == "vireo-core")
        .expect("vireo-core");
    core["dependencies"]
        .as_array_mut()
        .expect("dependencies")
        .push(serde_json::json!({ "name": "vireo-board", "kind": null }));
    assert_eq!(violations(&metadata, &places), ["vireo-core depends on vireo-board, which is above it"]);
}
