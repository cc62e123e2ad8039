//! A hash for many small states. Nobody chooses them to collide.

use std::hash::Hasher;

/// Folds each word into the state: multiplies 64 by 64 bits and mixes the two halves.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Mixer(u64);

/// Odd, with about half of its bits set: from the digits of pi.
const FACTOR: u64 = 0x243f_6a88_85a3_08d3;

impl Mixer {
    fn mix(&mut self, word: u64) {
        // The constant keeps zeroes from having no effect.
        let product = u128::from(self.0 ^ word ^ 0x1319_8a2e_0370_7344) * u128::from(FACTOR);
        self.0 = (product as u64) ^ ((product >> 64) as u64).rotate_left(23);
    }
}

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            self.mix(u64::from_le_bytes(word.try_into().unwrap_or_default()));
        }
        let mut last = [0; 8];
        let rest = words.remainder();
        last[..rest.len()].copy_from_slice(rest);
        last[7] ^= rest.len() as u8;
        self.mix(u64::from_le_bytes(last));
    }

    fn write_u8(&mut self, word: u8) {
        self.mix(word.into());
    }

    fn write_u32(&mut self, word: u32) {
        self.mix(word.into());
    }

    fn write_u64(&mut self, word: u64) {
        self.mix(word);
    }

    fn write_usize(&mut self, word: usize) {
        self.mix(word as u64);
    }

    fn finish(&self) -> u64 {
        let mut last = *self;
        last.mix(0);
        last.0
    }
}
