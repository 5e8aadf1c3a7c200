//! A disk as its driver sees it.

use std::sync::Arc;
use std::sync::mpsc::channel;

use proptest::prelude::*;
use vireo_block::{BlockError, Buffer, Fate, Faulty, HostBuffer, RamDisk, Request};

use crate::{Command, LogicalUnit, Outcome, ScsiDisk, Sense, opcode};

const SIZE: usize = 1 << 20;

struct Rig {
    unit: ScsiDisk,
    disk: Arc<RamDisk>,
}

impl Rig {
    fn new(sector: u32) -> Self {
        let disk = Arc::new(RamDisk::new(SIZE, sector));
        let rig = Self { unit: ScsiDisk::new(Arc::clone(&disk) as _), disk };
        assert_eq!(rig.run(&[0], &[]).0.sense, Some(Sense::POWER_ON));
        rig
    }

    /// Runs a command with `data` as its memory, in two pieces; how it ended, and the memory then.
    fn run(&self, cdb: &[u8], data: &[u8]) -> (Outcome, Vec<u8>) {
        let memory = HostBuffer::of(data);
        let whole = Buffer::Host(Arc::clone(&memory), 0, data.len());
        let (a, b) = whole.split_at(data.len() / 3);
        let (sender, ended) = channel();
        let mut block = [0; 16];
        block[..cdb.len()].copy_from_slice(cdb);
        let done = Box::new(move |outcome| sender.send(outcome).expect("somebody waits"));
        let mut requests = Vec::new();
        self.unit.start(Command { cdb: block, data: vec![a, b], done }, &mut requests);
        self.unit.submit(&mut requests);
        let mut after = vec![0; data.len()];
        whole.read(0, &mut after);
        (ended.recv().expect("it ends once"), after)
    }

    fn good(&self, cdb: &[u8], data: &[u8]) -> Vec<u8> {
        let (outcome, after) = self.run(cdb, data);
        assert_eq!(outcome.sense, None, "{cdb:x?}");
        after[..outcome.moved as usize].to_vec()
    }

    fn bad(&self, cdb: &[u8], data: &[u8]) -> Sense {
        self.run(cdb, data).0.sense.expect("it fails")
    }
}

#[test]
fn all_sizes_of_commands_write_and_read_the_same_blocks() {
    let rig = Rig::new(512);
    let pattern: Vec<u8> = (0..1024_u32).map(|i| (i % 251) as u8).collect();
    let writes: [&[u8]; 4] = [
        &[opcode::WRITE_6, 0, 0, 4, 2],
        &[opcode::WRITE_10, 8, 0, 0, 0, 6, 0, 0, 2],
        &[opcode::WRITE_12, 0, 0, 0, 0, 8, 0, 0, 0, 2],
        &[opcode::WRITE_16, 0, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 2],
    ];
    for (cdb, at) in writes.into_iter().zip([2048, 3072, 4096, 5120]) {
        assert_eq!(rig.good(cdb, &pattern).len(), 1024);
        assert_eq!(rig.disk.contents()[at..at + 1024], pattern, "{cdb:x?}");
    }
    for cdb in [
        &[opcode::READ_6, 0, 0, 4, 2][..],
        &[opcode::READ_10, 0, 0, 0, 0, 6, 0, 0, 2],
        &[opcode::READ_12, 0, 0, 0, 0, 8, 0, 0, 0, 2],
        &[opcode::READ_16, 0, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 2],
    ] {
        assert_eq!(rig.good(cdb, &[0; 1024]), pattern, "{cdb:x?}");
    }
    // More memory than blocks is left alone; less is a mistake.
    assert_eq!(rig.good(&[opcode::READ_6, 0, 0, 4, 1], &[7; 1024]).len(), 512);
    assert_eq!(rig.bad(&[opcode::READ_6, 0, 0, 4, 3], &[0; 1024]), Sense::INVALID_FIELD);
    assert_eq!(rig.bad(&[opcode::READ_10, 0, 0, 0, 7, 255, 0, 0, 2], &[0; 1024]), Sense::OUT_OF_RANGE);
    let far = [opcode::READ_16, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1];
    assert_eq!(rig.bad(&far, &[0; 512]), Sense::OUT_OF_RANGE);
}

#[test]
fn it_says_how_large_it_is_and_tells_when_that_changes() {
    let rig = Rig::new(4096);
    assert_eq!(rig.good(&[opcode::READ_CAPACITY_10], &[0; 8]), [0, 0, 0, 255, 0, 0, 16, 0]);
    let long = [opcode::SERVICE_ACTION_IN_16, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 14];
    assert_eq!(rig.good(&long, &[0; 64])[..], [0, 0, 0, 0, 0, 0, 0, 255, 0, 0, 16, 0, 0, 0]);
    assert!(!rig.unit.look());
    rig.disk.resize(2 * SIZE);
    assert!(rig.unit.look());
    assert_eq!(
        rig.good(&[opcode::INQUIRY, 0, 0, 0, 36], &[0; 36]).len(),
        36,
        "who it is can always be asked"
    );
    assert_eq!(rig.bad(&[opcode::READ_CAPACITY_10], &[0; 8]), Sense::CAPACITY_CHANGED);
    assert_eq!(rig.good(&[opcode::READ_CAPACITY_10], &[0; 8])[..4], [0, 0, 1, 255]);
}

#[test]
fn it_says_who_it_is() {
    let rig = Rig::new(512);
    rig.disk.describe(|i| i.id = [0xab; 16]);
    let standard = rig.good(&[opcode::INQUIRY, 0, 0, 0, 96], &[0; 200]);
    assert_eq!((standard.len(), &standard[8..32]), (96, &b"Msft    Virtual Disk    "[..]));
    let page = |code: u8| rig.good(&[opcode::INQUIRY, 1, code, 1, 0], &[0; 300]);
    assert_eq!(page(0)[4..], [0, 0x80, 0x83, 0xb0, 0xb1, 0xb2]);
    for code in [0, 0x80, 0x83, 0xb0, 0xb1, 0xb2] {
        let bytes = page(code);
        let said = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
        assert_eq!((bytes[1], bytes.len()), (code, said + 4));
    }
    assert_eq!(page(0x80)[4..], *b"abababababababababababababababab");
    rig.disk.describe(|i| i.physical_sector = 4096);
    let limits = page(0xb0);
    let word = |at: usize| u32::from_be_bytes(limits[at..at + 4].try_into().unwrap());
    // Granularity of transfers; blocks and ranges of UNMAP, its granularity; blocks of WRITE SAME (SBC-3, table 195).
    assert_eq!((limits.len(), limits[4], word(4) & 0xffff), (64, 1, 8));
    assert_eq!(
        [word(20), word(24), word(28), word(32), word(36), word(40)],
        [1 << 21, 256, 8, 0, 0, 1 << 21]
    );
    assert_eq!(rig.bad(&[opcode::INQUIRY, 1, 0x77, 1, 0], &[0; 300]), Sense::INVALID_FIELD);
    assert_eq!(rig.bad(&[opcode::INQUIRY, 0, 0x80, 1, 0], &[0; 300]), Sense::INVALID_FIELD);
}

#[test]
fn modes_can_be_read_and_not_changed() {
    let rig = Rig::new(512);
    let all = rig.good(&[opcode::MODE_SENSE_10, 0, 0x3f, 0, 0, 0, 0, 1, 0], &[0; 256]);
    assert_eq!((all.len(), all[1], all[3], all[8], all[10] & 4), (8 + 20 + 12, 38, 0x10, 8, 4));
    let caching = rig.good(&[opcode::MODE_SENSE_6, 0, 8, 0, 192], &[0; 192]);
    assert_eq!((caching.len(), caching[0]), (24, 23));
    let mut list = caching.clone();
    list[0] = 0;
    assert_eq!(rig.run(&[opcode::MODE_SELECT_6, 0x10, 0, 0, 24], &list).0, Outcome::good(24));
    list[6] = 0;
    assert_eq!(rig.bad(&[opcode::MODE_SELECT_6, 0x10, 0, 0, 24], &list), Sense::INVALID_PARAMETER);
    assert_eq!(rig.bad(&[opcode::MODE_SELECT_6, 0x10, 0, 0, 30], &list), Sense::PARAMETER_LENGTH);
    rig.disk.describe(|i| i.read_only = true);
    assert_eq!(rig.good(&[opcode::MODE_SENSE_6, 0, 8, 0, 192], &[0; 192])[2], 0x90);
}

#[test]
fn what_is_protected_is_not_written() {
    let rig = Rig::new(512);
    rig.disk.describe(|i| i.read_only = true);
    let unmap = [&[0, 22, 0, 16, 0, 0, 0, 0][..], &[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0]].concat();
    for (cdb, data) in [
        (&[opcode::WRITE_10, 0, 0, 0, 0, 0, 0, 0, 1][..], &[1; 512][..]),
        (&[opcode::WRITE_SAME_10, 0, 0, 0, 0, 0, 0, 0, 1], &[0; 512]),
        (&[opcode::UNMAP, 0, 0, 0, 0, 0, 0, 0, 24], &unmap),
    ] {
        assert_eq!(rig.bad(cdb, data), Sense::WRITE_PROTECTED);
    }
    assert_eq!(rig.good(&[opcode::SYNCHRONIZE_CACHE_10], &[]), []);
}

#[test]
fn blocks_are_given_back_and_zeroed() {
    let rig = Rig::new(512);
    rig.good(&[opcode::WRITE_10, 0, 0, 0, 0, 0, 0, 0, 4], &[9; 2048]);
    let range = |first: u8, count: u8| [0, 0, 0, 0, 0, 0, 0, first, 0, 0, 0, count, 0, 0, 0, 0];
    let list = [&[0, 38, 0, 32, 0, 0, 0, 0][..], &range(0, 1), &range(2, 1)].concat();
    rig.good(&[opcode::UNMAP, 0, 0, 0, 0, 0, 0, 0, 40], &list);
    assert_eq!(rig.disk.contents()[..2048], [[0; 512], [9; 512], [0; 512], [9; 512]].concat());
    rig.good(&[opcode::WRITE_SAME_16, 9, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 3], &[]);
    assert_eq!(rig.disk.contents()[..2048], [0; 2048]);
    assert_eq!(rig.bad(&[opcode::WRITE_SAME_10, 0, 0, 0, 0, 0, 0, 0, 1], &[3; 512]), Sense::INVALID_FIELD);
    let beyond = [&[0, 22, 0, 16, 0, 0, 0, 0][..], &[0xff; 16]].concat();
    assert_eq!(rig.bad(&[opcode::UNMAP, 0, 0, 0, 0, 0, 0, 0, 24], &beyond), Sense::OUT_OF_RANGE);
    assert_eq!(rig.bad(&[opcode::WRITE_SAME_16, 1], &[]), Sense::INVALID_FIELD, "all of it at once");
    // Of no range at all nothing is asked.
    rig.good(&[opcode::UNMAP, 0, 0, 0, 0, 0, 0, 0, 8], &[0; 8]);
    rig.good(&[opcode::UNMAP], &[]);
}

/// UNMAP of every second block, so many of them.
fn scattered(count: u16) -> ([u8; 16], Vec<u8>) {
    let [high, low] = (count * 16).to_be_bytes();
    let mut list = vec![0, 0, high, low, 0, 0, 0, 0];
    for n in 0..count {
        let [high, low] = (2 * n).to_be_bytes();
        list.extend([0, 0, 0, 0, 0, 0, high, low, 0, 0, 0, 1, 0, 0, 0, 0]);
    }
    let [high, low] = (list.len() as u16).to_be_bytes();
    let mut cdb = [0; 16];
    (cdb[0], cdb[7], cdb[8]) = (opcode::UNMAP, high, low);
    (cdb, list)
}

#[test]
fn a_command_of_many_ranges_has_one_request_under_way() {
    let rig = Rig::new(512);
    rig.good(&[opcode::WRITE_10, 0, 0, 0, 0, 0, 0, 2, 0], &[9; 512 * 512]);
    let (cdb, list) = scattered(256);
    let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
    let judge = {
        let asked = Arc::clone(&asked);
        move |r: &Request| {
            asked.lock().unwrap().push(r.at / 512);
            if r.at == 512 * 100 { Fate::Fails(BlockError::NoSpace) } else { Fate::Held }
        }
    };
    let disk = Arc::new(Faulty::new(Arc::clone(&rig.disk), judge));
    let unit = ScsiDisk::new(Arc::clone(&disk) as _);
    let start = |unit: &ScsiDisk| {
        let (sender, ended) = channel();
        let done = Box::new(move |outcome| sender.send(outcome).expect("somebody waits"));
        let data = vec![Buffer::host(&HostBuffer::of(&list))];
        let mut requests = Vec::new();
        unit.start(Command { cdb, data, done }, &mut requests);
        assert!(requests.len() <= 1);
        unit.submit(&mut requests);
        ended
    };
    assert_eq!(start(&unit).try_recv(), Ok(Outcome::failed(Sense::POWER_ON)));
    let ended = start(&unit);
    for n in 0..50 {
        assert_eq!((disk.held(), asked.lock().unwrap().last().copied()), (1, Some(2 * n)));
        assert!(ended.try_recv().is_err(), "{n}");
        disk.release();
    }
    // One that fails ends it.
    let outcome = ended.try_recv().expect("it has ended");
    assert!(outcome.sense.is_some() && disk.held() == 0 && asked.lock().unwrap().len() == 51);
    let block = |n: usize| rig.disk.contents()[n * 512];
    assert_eq!((block(98), block(99), block(100), block(102)), (0, 9, 9, 9));
    // Without its unit a command does not go on, and keeps no disk.
    let ended = start(&unit);
    disk.release();
    drop(unit);
    assert_eq!((ended.try_recv().ok(), Arc::strong_count(&disk)), (None, 1));
    disk.release();
    assert!(ended.try_recv().expect("it has ended").sense.is_some());
    assert_eq!((disk.held(), asked.lock().unwrap().len()), (0, 53));
    // All of them, on a disk that is done within the call.
    let unit = ScsiDisk::new(Arc::clone(&rig.disk) as _);
    start(&unit);
    assert_eq!(start(&unit).try_recv(), Ok(Outcome::good(list.len() as u32)));
    assert!((0..512).all(|n| block(n) == if n % 2 == 0 { 0 } else { 9 }));
}

#[test]
fn protection_information_is_refused_where_it_can_be_asked_for() {
    let rig = Rig::new(512);
    for code in
        [opcode::READ_10, opcode::WRITE_10, opcode::VERIFY_16, opcode::WRITE_SAME_16, opcode::WRITE_12]
    {
        assert_eq!(rig.bad(&[code, 0x20], &[0; 512]), Sense::INVALID_FIELD, "{code:#x}");
    }
    // There these bits are the logical unit of old, and an address.
    assert_eq!(rig.run(&[opcode::TEST_UNIT_READY, 0x20], &[]).0.sense, None);
    assert_eq!(rig.run(&[opcode::READ_6, 0x20, 0, 0, 1], &[0; 512]).0.sense, None);
}

proptest! {
    #[test]
    fn every_command_ends_once(cdb in any::<[u8; 16]>(), code in prop_oneof![any::<u8>(), Just(0x12), Just(0x42), Just(0x93), Just(0x55)],
                               data in prop::collection::vec(any::<u8>(), 0..3000)) {
        let rig = Rig::new(512);
        let mut cdb = cdb;
        cdb[0] = code;
        let (outcome, after) = rig.run(&cdb, &data);
        prop_assert!(outcome.moved as usize <= after.len());
    }
}
