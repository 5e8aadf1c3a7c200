//! What instructions are taken apart and put together with.

use iced_x86::{Encoder, Instruction, InstructionInfoFactory};

/// Decoder's and encoder's tools; they keep buffers, so there is one set for all translations.
pub struct Tools {
    /// What instructions read and write.
    pub info: InstructionInfoFactory,
    encoder: Encoder,
    /// What was encoded last.
    code: Vec<u8>,
}

impl Default for Tools {
    fn default() -> Self {
        Self { info: InstructionInfoFactory::new(), encoder: Encoder::new(64), code: Vec::new() }
    }
}

impl Tools {
    /// Encodes a host instruction; its bytes, or `None`.
    pub fn encode(&mut self, host: &Instruction) -> Option<&[u8]> {
        self.code.clear();
        self.encoder.set_buffer(std::mem::take(&mut self.code));
        let encoded = self.encoder.encode(host, 0);
        self.code = self.encoder.take_buffer();
        encoded.ok().map(|_| &self.code[..])
    }
}
