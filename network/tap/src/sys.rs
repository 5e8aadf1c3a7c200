//! The system calls that Rust has no safe form of.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::{c_int, c_short, c_uint, c_ulong, iovec};
use vireo_frame::Frame;

/// Pieces of a frame that go to the kernel as they are; one of more is copied before.
const PIECES: usize = 64;

/// Bytes of an interface's name, with the zero at its end.
pub const NAME_SIZE: usize = libc::IFNAMSIZ;

/// What a TAP device can be opened with (`linux/if_tun.h`).
pub const TAP: c_int = libc::IFF_TAP;
pub const NO_PACKET_INFO: c_int = libc::IFF_NO_PI;
pub const OFFLOAD_HEADERS: c_int = libc::IFF_VNET_HDR;

/// What whoever reads a TAP device takes without having it done before.
pub const CHECKSUMS: c_uint = 0x01;
pub const TCP4: c_uint = 0x02;
pub const TCP6: c_uint = 0x04;
pub const TCP_ECN: c_uint = 0x08;
/// Both together, since Linux 6.2.
pub const UDP4: c_uint = 0x20;
pub const UDP6: c_uint = 0x40;

fn done(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The request that ioctls of interfaces take: a name, and room for an answer.
fn request(name: &[u8; NAME_SIZE]) -> libc::ifreq {
    // SAFETY: a C struct of integers and arrays of them, for which zeroes are values.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = from.cast_signed();
    }
    request
}

fn ask(fd: BorrowedFd<'_>, what: c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: `what` is one of the ioctls below, all of which read and write one `ifreq`.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), what, std::ptr::from_mut(request)) })
}

/// Makes `fd` the file of the TAP device with this name, which is made if there is none.
pub fn attach(fd: BorrowedFd<'_>, name: &[u8; NAME_SIZE], flags: c_int) -> io::Result<()> {
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = flags as c_short;
    ask(fd, libc::TUNSETIFF, &mut request)
}

/// Name and flags of the device that `fd` is the file of.
pub fn attached(fd: BorrowedFd<'_>) -> io::Result<([u8; NAME_SIZE], c_int)> {
    let mut request = request(&[0; NAME_SIZE]);
    ask(fd, libc::TUNGETIFF, &mut request)?;
    // SAFETY: the kernel filled in the flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok((request.ifr_name.map(c_char_to_u8), c_int::from(flags as u16)))
}

fn c_char_to_u8(c: libc::c_char) -> u8 {
    c.cast_unsigned()
}

/// Sets what is left to whoever reads the device.
pub fn set_offload(fd: BorrowedFd<'_>, bits: c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument as a number.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, c_ulong::from(bits)) })
}

/// Bytes of frames on their way behind the device, beyond which it takes no more.
pub fn set_send_buffer(fd: BorrowedFd<'_>, bytes: c_int) -> io::Result<()> {
    // SAFETY: TUNSETSNDBUF reads an int.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETSNDBUF, std::ptr::from_ref(&bytes)) })
}

/// Bytes of the header in front of frames.
pub fn set_header_size(fd: BorrowedFd<'_>, bytes: c_int) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads an int.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, std::ptr::from_ref(&bytes)) })
}

/// Flags of the interface with this name, in the network of `socket`.
pub fn interface_flags(socket: BorrowedFd<'_>, name: &[u8; NAME_SIZE]) -> io::Result<c_int> {
    let mut request = request(name);
    ask(socket, libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: the kernel filled in the flags.
    Ok(unsafe { request.ifr_ifru.ifru_flags }.into())
}

/// Its longest packet.
pub fn interface_mtu(socket: BorrowedFd<'_>, name: &[u8; NAME_SIZE]) -> io::Result<c_int> {
    let mut request = request(name);
    ask(socket, libc::SIOCGIFMTU, &mut request)?;
    // SAFETY: the kernel filled in the MTU.
    Ok(unsafe { request.ifr_ifru.ifru_mtu })
}

/// A socket that is told of each change to interfaces (rtnetlink(7)).
pub fn interface_news() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) };
    done(fd)?;
    // SAFETY: it was just made, and is nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: a C struct of integers.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as _;
    address.nl_groups = libc::RTMGRP_LINK as _;
    // SAFETY: an address of the family's kind, of the length that is said.
    done(unsafe {
        libc::bind(fd.as_raw_fd(), std::ptr::from_ref(&address).cast(), size_of_val(&address) as _)
    })?;
    Ok(fd)
}

/// Writes header and frame as one; how much was written.
pub fn write(fd: BorrowedFd<'_>, header: &[u8], frame: &Frame<'_>) -> io::Result<usize> {
    let slice = |bytes: &[u8]| iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut pieces = [slice(&[]); PIECES];
    pieces[0] = slice(header);
    let mut copy = Vec::new();
    let count = 2 + frame.tail().len();
    let count = if count <= PIECES {
        pieces[1] = slice(frame.head());
        for (to, from) in pieces[2..].iter_mut().zip(frame.tail()) {
            *to = from.iovec();
        }
        count
    } else {
        frame.append_to(&mut copy).map_err(io::Error::other)?;
        pieces[1] = slice(&copy);
        2
    };
    loop {
        // SAFETY: each piece is bytes of a slice, or guest memory that its slice keeps; all live until the call is over, which
        // only reads them.
        let written = unsafe { libc::writev(fd.as_raw_fd(), pieces.as_ptr(), count as c_int) };
        if written >= 0 {
            return Ok(written.cast_unsigned());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
