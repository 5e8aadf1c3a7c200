//! What is asked of the guest, by the machine's integration services.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use vireo_services::{CopyError, CopyTo, Item, Pool, ServiceError, Services, ShutdownKind};

use super::{Answer, Pair, PairPool, Reason, Request};

/// Takes what is to be said before the answer; whether to go on.
pub type Tell<'a> = &'a mut dyn FnMut(Answer) -> bool;

/// Does what is asked.
pub fn answer(request: &Request, services: Option<&Services>, tell: Tell) -> Answer {
    let Some(services) = services else {
        let why = "the guest has no integration services: the machine was started with --enlightenments none";
        return Answer::Refused { why: why.into(), reason: Some(Reason::NoService) };
    };
    match request {
        Request::Copy { file, to } => copy(services, file, to, tell),
        other => ask(services, other).unwrap_or_else(|e| refused(&e)),
    }
}

fn ask(services: &Services, request: &Request) -> Result<Answer, ServiceError> {
    let done = |()| Answer::Done;
    match request {
        Request::Shutdown { restart: true } => services.shutdown(ShutdownKind::Restart).map(done),
        Request::Shutdown { restart: false } => services.shutdown(ShutdownKind::PowerOff).map(done),
        Request::Freeze { seconds } => services.freeze(Duration::from_secs(*seconds)).map(done),
        Request::Thaw => services.thaw().map(done),
        Request::KvpGet { pool, key } => Ok(match services.kvp_get(of(*pool), key)? {
            Some(value) => Answer::Pairs { pairs: vec![Pair { key: key.clone(), value }] },
            None => no_such_key(key),
        }),
        Request::KvpSet { key, value } => services.kvp_set(key, value).map(done),
        Request::KvpDelete { key } => {
            Ok(if services.kvp_delete(key)? { Answer::Done } else { no_such_key(key) })
        }
        Request::KvpList { pool } => {
            let pair = |Item { key, value }| Pair { key, value };
            let pairs = services.kvp_list(of(*pool))?.into_iter().map(pair).collect();
            Ok(Answer::Pairs { pairs })
        }
        Request::MemorySet { target } => services.set_memory(*target).map(|memory| Answer::Memory { memory }),
        _ => Ok(Answer::Memory { memory: services.memory() }),
    }
}

fn of(pool: PairPool) -> Pool {
    match pool {
        PairPool::Host => Pool::External,
        PairPool::Guest => Pool::Guest,
        PairPool::System => Pool::Auto,
    }
}

fn no_such_key(key: &str) -> Answer {
    Answer::refused(format_args!("there is no key {key:?}"))
}

fn refused(e: &ServiceError) -> Answer {
    let reason = match e {
        e if e.is_absent() => Some(Reason::NoService),
        e if e.is_silence() => Some(Reason::NoAnswer),
        _ => None,
    };
    Answer::Refused { why: e.to_string(), reason }
}

fn copy(services: &Services, file: &Path, to: &CopyTo, tell: Tell) -> Answer {
    let named = |e: &dyn std::fmt::Display| Answer::refused(format_args!("{}: {e}", file.display()));
    // One that is a FIFO keeps nobody waiting.
    let opened = File::options()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
        .open(file)
        .and_then(|f| f.metadata().map(|m| (f, m)));
    let (mut source, total) = match opened {
        Ok((source, about)) if about.is_file() => (source, about.len()),
        Ok(_) => return named(&"it is not a file"),
        Err(e) => return named(&e),
    };
    let mut progress = |done| tell(Answer::Progress { done, total });
    match services.copy_file(&mut source, total, to, &mut progress) {
        Ok(()) => Answer::Done,
        Err(CopyError::Service(e)) => refused(&e),
        Err(e) => named(&e),
    }
}
