//! Pieces of a request's memory.

use vireo_block::{Buffer, HostBuffer};

/// The parts of buffers that have the bytes from `skip` on, `len` of them: each with its start in its buffer and its length.
pub fn spans(
    buffers: &[Buffer],
    skip: usize,
    len: usize,
) -> impl Iterator<Item = (&Buffer, usize, usize)> + Clone {
    let (mut skip, mut left) = (skip, len);
    buffers.iter().filter_map(move |b| {
        let start = skip.min(b.len());
        let n = left.min(b.len() - start);
        skip -= start;
        left -= n;
        (n > 0).then_some((b, start, n))
    })
}

fn iovec((buffer, start, len): (&Buffer, usize, usize)) -> libc::iovec {
    let whole = buffer.iovec();
    // Inside the buffer, by `spans`.
    libc::iovec { iov_base: whole.iov_base.cast::<u8>().wrapping_add(start).cast(), iov_len: len }
}

/// Address and length of at most `most` parts, for a system call.
pub fn iovecs(buffers: &[Buffer], skip: usize, len: usize, most: usize) -> Vec<libc::iovec> {
    spans(buffers, skip, len).take(most).map(iovec).collect()
}

/// The only part, if there is but one.
pub fn single(buffers: &[Buffer], skip: usize, len: usize) -> Option<libc::iovec> {
    let first = spans(buffers, skip, len).next()?;
    (first.2 == len).then(|| iovec(first))
}

/// Whether each part starts at a multiple of `address` and is a multiple of `length` long.
pub fn is_aligned(buffers: &[Buffer], skip: usize, len: usize, address: u32, length: u32) -> bool {
    spans(buffers, skip, len).map(iovec).all(|v| {
        (v.iov_base as usize).is_multiple_of(address as usize) && v.iov_len.is_multiple_of(length as usize)
    })
}

/// How much is copied at once, in bytes.
const PIECE: usize = 64 << 10;

/// Copies between the buffers, from `skip` on, and all `len` bytes of memory of the host: to the buffers if `out`.
pub fn copy(buffers: &[Buffer], skip: usize, host: &HostBuffer, len: usize, out: bool) {
    let mut at = 0;
    let mut piece = vec![0; PIECE.min(len)];
    for (buffer, start, n) in spans(buffers, skip, len) {
        for from in (0..n).step_by(PIECE) {
            let part = &mut piece[..PIECE.min(n - from)];
            if out {
                host.read(at, part);
                buffer.write(start + from, part);
            } else {
                buffer.read(start + from, part);
                host.write(at, part);
            }
            at += part.len();
        }
    }
}

/// Fills with zeros.
pub fn clear(buffers: &[Buffer], skip: usize, len: usize) {
    const ZEROS: [u8; 4096] = [0; 4096];
    for (buffer, start, n) in spans(buffers, skip, len) {
        for from in (0..n).step_by(ZEROS.len()) {
            buffer.write(start + from, &ZEROS[..ZEROS.len().min(n - from)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_found_across_buffers() {
        let bytes: Vec<u8> = (0..100).collect();
        let whole = Buffer::host(&HostBuffer::of(&bytes));
        let (a, rest) = whole.split_at(10);
        let (b, c) = rest.split_at(0);
        let buffers = [a, b, c];
        let found: Vec<_> = spans(&buffers, 5, 20).map(|(_, start, n)| (start, n)).collect();
        assert_eq!(found, [(5, 5), (0, 15)]);
        assert!(single(&buffers, 5, 20).is_none());
        assert_eq!(single(&buffers, 5, 5).map(|v| v.iov_len), Some(5));
        assert_eq!(iovecs(&buffers, 5, 20, 1).len(), 1);
        assert!(is_aligned(&buffers, 0, 10, 4096, 2) && !is_aligned(&buffers, 0, 11, 4096, 2));
        let host = HostBuffer::new(20);
        copy(&buffers, 5, &host, 20, false);
        let mut got = [0; 20];
        host.read(0, &mut got);
        assert_eq!(got[..], bytes[5..25]);
        host.write(0, &[7; 20]);
        copy(&buffers, 5, &host, 20, true);
        clear(&buffers, 9, 2);
        let mut got = [0; 27];
        whole.read(0, &mut got);
        assert_eq!(got[3..12], [3, 4, 7, 7, 7, 7, 0, 0, 7]);
        assert_eq!(got[24..], [7, 25, 26]);
    }
}
