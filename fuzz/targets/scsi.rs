//! Commands to a disk and to a CD drive.
#![no_main]

use std::sync::Arc;
use std::sync::mpsc::channel;

use libfuzzer_sys::fuzz_target;
use vireo_block::{Buffer, HostBuffer, RamDisk};
use vireo_fuzz::Input;
use vireo_scsi::{Command, LogicalUnit, ScsiCd, ScsiDisk};

const SIZE: usize = 1 << 18;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let sector = if input.u8() % 2 == 0 { 512 } else { 4096 };
    let disk = ScsiDisk::new(Arc::new(RamDisk::new(SIZE, sector)));
    let cd = ScsiCd::new(Some(Arc::new(RamDisk::new(SIZE, 512)))).expect("sectors of a CD");
    while !input.is_empty() {
        let unit: &dyn LogicalUnit = if input.u8() % 4 == 0 { &cd } else { &disk };
        let cdb = input.array();
        let len = 1 + usize::from(input.u16() % 9000);
        let mut data = vec![0; len];
        let start = input.bytes(len.min(96));
        data[..start.len()].copy_from_slice(start);
        let whole = Buffer::host(&HostBuffer::of(&data));
        let (a, b) = whole.split_at(usize::from(input.u16()) % (len + 1));
        let (tell, told) = channel();
        let done = Box::new(move |outcome| tell.send(outcome).expect("somebody waits"));
        let mut requests = Vec::new();
        unit.start(Command { cdb, data: vec![a, b], done }, &mut requests);
        unit.submit(&mut requests);
        let outcome = told.try_recv().expect("these disks do all at once");
        assert!(
            outcome.sense.is_some() || outcome.moved as usize <= len,
            "more was moved than there is room for"
        );
    }
});
