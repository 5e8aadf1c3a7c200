//! Says what a screenshot shows, in the host lab: its size, and how often "Vireo" stands on the console in it.

use std::path::Path;

use vireo_tests::Picture;

fn main() {
    let path = std::env::args_os().nth(1).expect("usage: vireo-picture FILE.png");
    let picture = Picture::read(Path::new(&path));
    let (width, height) = picture.size();
    println!("{width}x{height} {}", picture.count());
}
