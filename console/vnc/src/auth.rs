//! VNC's password challenge (RFC 6143 §7.2.2): 16 bytes that the client encrypts by DES with the password as key.

use des::Des;
use des::cipher::generic_array::GenericArray;
use des::cipher::{BlockEncrypt, KeyInit};

/// Bytes of a challenge, and of the answer.
pub const CHALLENGE: usize = 16;
/// Characters of a password that count.
pub const PASSWORD_MOST: usize = 8;

/// What a client that knows the password answers.
pub fn response(password: &[u8], challenge: &[u8; CHALLENGE]) -> [u8; CHALLENGE] {
    let mut key = [0; PASSWORD_MOST];
    for (to, from) in key.iter_mut().zip(password) {
        // Each byte's bits in the opposite order, as the first VNC had it.
        *to = from.reverse_bits();
    }
    let cipher = Des::new(&GenericArray::from(key));
    let mut answer = *challenge;
    for block in answer.chunks_exact_mut(8) {
        cipher.encrypt_block(GenericArray::from_mut_slice(block));
    }
    answer
}

/// Whether they are the same, in a time that does not tell where they differ.
pub fn same(a: &[u8; CHALLENGE], b: &[u8; CHALLENGE]) -> bool {
    a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_challenge_is_answered_as_others_do() {
        // Made by OpenSSL: `openssl enc -des-ecb -nopad -K` with the reversed bits of "password".
        let challenge: [u8; 16] = *b"0123456789abcdef";
        let expected =
            [0x56, 0x45, 0xab, 0xeb, 0x5f, 0x1e, 0x64, 0x75, 0xe8, 0xfe, 0xb1, 0x1b, 0xeb, 0x66, 0xea, 0x19];
        assert_eq!(response(b"password", &challenge), expected);
        assert_eq!(response(b"password and more", &challenge), expected);
        assert!(same(&expected, &response(b"password", &challenge)));
        assert!(!same(&expected, &response(b"passwort", &challenge)));
    }
}
