//! What the driver sends.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use vireo_frame::{
    Ability, FRAME_MAX, Frame, Full, HEAD_MAX, Intent, Link, OFFLOAD_HEADER, fit, headers::HEADER as ETHERNET,
};
use vireo_memory::GuestSlice;

use super::{HEADER, Net};
use crate::device::Turn;
use crate::queue::{Broken, Chain, ServedQueue};

/// Frames up to so many bytes are copied as a whole: that costs less than what a slice does.
const COPIED_MAX: usize = 1024;
const _: () = assert!(COPIED_MAX >= HEAD_MAX);

/// A transmit queue, while it is served: buffers that are used again and again.
pub(super) struct Transmit {
    head: Box<[u8; COPIED_MAX]>,
    tail: Vec<GuestSlice>,
    scratch: Vec<u8>,
    /// How many pieces of the first frame in the queue are gone.
    done: usize,
}

impl Default for Transmit {
    fn default() -> Self {
        Self { head: Box::new([0; _]), tail: Vec::new(), scratch: Vec::new(), done: 0 }
    }
}

impl Transmit {
    /// There is another driver.
    pub(super) fn forget(&mut self) {
        self.done = 0;
    }

    /// Sends the frame of a chain; one that is none is lost.
    fn send(&mut self, chain: &Chain, link: &dyn Link, ability: &Ability) -> Result<(), Full> {
        let length = chain.readable_len();
        if !(HEADER + ETHERNET..=HEADER + FRAME_MAX).contains(&length) {
            return Ok(());
        }
        let mut header = [0; OFFLOAD_HEADER];
        chain.read(0, &mut header);
        let copied = if length - HEADER <= COPIED_MAX { length - HEADER } else { HEAD_MAX };
        let head = &mut self.head[..copied];
        chain.read(HEADER, head);
        self.tail.clear();
        let mut skip = HEADER + copied;
        for piece in chain.readable() {
            if skip < piece.len() {
                self.tail.push(if skip == 0 { piece.clone() } else { piece.split_at(skip).1 });
            }
            skip = skip.saturating_sub(piece.len());
        }
        let intent = Intent::from_offload_header(&header).ok();
        let Some(frame) = intent.and_then(|intent| Frame::new(head, &self.tail, intent).ok()) else {
            return Ok(());
        };
        fit(&frame, ability, &mut self.done, &mut self.scratch, &mut |frame| link.put(frame))
    }
}

/// Serves the transmit queue of a pair.
pub(super) fn serve(net: &Net, queue: &ServedQueue, pair: u16) -> Result<Turn, Broken> {
    let Some(transmit) = net.transmit.get(usize::from(pair)) else { return Ok(Turn::Waits) };
    let mut transmit = transmit.lock().unwrap_or_else(PoisonError::into_inner);
    let ability = net.link.ability();
    let mut full = false;
    let popped = loop {
        let chain = match queue.pop() {
            Ok(Some(chain)) => chain,
            Ok(None) => break Ok(()),
            Err(broken) => break Err(broken),
        };
        // Before it is found full: it may have room at once.
        net.port.stalled.fetch_or(1 << pair, Ordering::AcqRel);
        full = transmit.send(&chain, &*net.link, &ability).is_err();
        if full {
            chain.put_back();
            break Ok(());
        }
        transmit.done = 0;
        chain.finish(0);
    };
    transmit.tail.clear();
    net.link.flush();
    queue.tell();
    popped.map(|()| if full { Turn::Waits } else { Turn::Drained })
}
