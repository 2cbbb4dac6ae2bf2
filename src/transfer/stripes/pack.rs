//! Blocks that are packed on the way: whether it is worth it, and how.
//!
//! Owns the choice, made anew for every block from what was measured of those before it, and the two halves of the
//! codec, a Zstandard frame a block. What carries blocks is for the writer and the reader.
//!
//! The choice: packing helps as long as a block spends far longer on the wire than it takes to pack, and content that
//! does not get smaller is sent as it is, but for a try now and then. So a fast link, a slow processor and content
//! that is packed already cost next to nothing, whatever comes first.

use std::io;
use std::time::Duration;

use tokio::time::Instant;
use zstd::stream::raw::{DParameter, Decoder, Operation};

use super::BLOCK;

/// The fastest level: those above it take twice the time for a few percent.
const LEVEL: i32 = 1;
/// Less is not worth a program on the builder, nor waiting for one.
const WORTH_PACKING: usize = 64 << 10;
/// Of its size, at most, is a packed block to have.
const WORTH_SENDING: f64 = 0.9;
/// What a whole block costs the builder, which starts a program for each and may be busy.
const COST_THERE: Duration = Duration::from_millis(8);
/// How many times as long as its packing a block must be on the wire.
const MARGIN: f64 = 3.0;
/// How much the latest measurement counts.
const WEIGHT: f64 = 0.3;
/// Most blocks that go by before content that does not get smaller is tried again.
const MAX_SKIPPED: u32 = 31;
/// So many blocks that did not wait for the wire are more than what buffers on the way can take.
const FREE_IN_A_ROW: u32 = 16;
/// After so many packed blocks one is sent as it is: the wire may have become faster than a packer can tell.
const PACKED_IN_A_ROW: u32 = 32;
/// The window that a frame may ask for, as a power of two: eight times a block, and no more memory than that.
const MAX_WINDOW_LOG: u32 = 23;

/// Whether the next block is packed.
#[derive(Debug)]
pub(super) struct Choice {
    is_possible: bool,
    /// Seconds that a byte spends on the wire.
    wire: Option<f64>,
    /// Seconds that it takes to pack a byte, here or there.
    cost: f64,
    /// When the last block had left or come.
    last: Instant,
    /// Since then, it was the wire that was waited for.
    has_waited: bool,
    /// Blocks not to be tried, after one that did not get smaller, and how many of them are left.
    skipped: u32,
    to_skip: u32,
    in_a_row: u32,
    /// Blocks in a row that did not wait for the wire.
    free: u32,
}

impl Choice {
    /// Nothing is known yet, but whether the other side has the program.
    pub(super) fn new(is_possible: bool, now: Instant) -> Self {
        Self {
            is_possible,
            wire: None,
            cost: COST_THERE.as_secs_f64() / BLOCK as f64,
            last: now,
            has_waited: false,
            skipped: 0,
            to_skip: 0,
            in_a_row: 0,
            free: 0,
        }
    }

    /// The choice for a block of this length.
    pub(super) fn is_for(&mut self, len: usize) -> bool {
        let is_slow = self.wire.is_some_and(|wire| wire > MARGIN * self.cost);
        if !self.is_possible || !is_slow || len < WORTH_PACKING {
            return false;
        }
        if self.to_skip > 0 {
            self.to_skip -= 1;
            return false;
        }
        self.in_a_row = (self.in_a_row + 1) % PACKED_IN_A_ROW;
        self.in_a_row != 0
    }

    /// A block was packed, in this time if it was here.
    pub(super) fn was_packed(&mut self, from: usize, to: usize, took: Duration) {
        if is_worth_sending(from, to) {
            self.skipped = 0;
        } else {
            self.skipped = (2 * self.skipped + 1).min(MAX_SKIPPED);
            self.to_skip = self.skipped;
        }
        let there = COST_THERE.as_secs_f64() / BLOCK as f64;
        let cost = (took.as_secs_f64() / from.max(1) as f64).max(there);
        self.cost = mix(self.cost, cost);
    }

    /// There is something to send or to take, and the wire is not ready.
    pub(super) fn waits(&mut self) {
        self.has_waited = true;
    }

    /// So many bytes have gone over the wire.
    pub(super) fn has_moved(&mut self, bytes: usize, now: Instant) {
        let took = now.saturating_duration_since(self.last).as_secs_f64() / bytes.max(1) as f64;
        self.last = now;
        if self.has_waited {
            self.wire = Some(self.wire.map_or(took, |wire| mix(wire, took)));
            self.free = 0;
        } else {
            // Buffers on the way take a few at once, and that tells nothing; many at once are no slow wire any more.
            self.free += 1;
            if self.free >= FREE_IN_A_ROW {
                self.wire = None;
            }
        }
        self.has_waited = false;
    }
}

fn mix(before: f64, now: f64) -> f64 {
    before * (1.0 - WEIGHT) + now * WEIGHT
}

fn is_worth_sending(from: usize, to: usize) -> bool {
    (to as f64) < WORTH_SENDING * from as f64
}

/// A block as it was packed.
#[derive(Debug)]
pub(super) struct Packed {
    /// What goes over the wire.
    pub(super) bytes: Vec<u8>,
    /// Whether that is a frame; if not, it is the block itself.
    pub(super) is_frame: bool,
    /// How long the frame would be, or is.
    pub(super) len: usize,
    /// How long packing took.
    pub(super) took: Duration,
}

/// Packs a block, unless it does not get smaller. Takes milliseconds of a processor.
pub(super) fn pack(block: Vec<u8>) -> io::Result<Packed> {
    let began = Instant::now();
    let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
    compressor.include_checksum(true)?;
    let frame = compressor.compress(&block)?;
    let (len, took) = (frame.len(), began.elapsed());
    let is_frame = is_worth_sending(block.len(), len);
    Ok(Packed { bytes: if is_frame { frame } else { block }, is_frame, len, took })
}

/// A block that comes as a frame.
pub(super) struct Unpacking {
    decoder: Decoder<'static>,
    /// As large as the block, and one byte more, by which a longer one is found out.
    block: Vec<u8>,
    filled: usize,
}

impl Unpacking {
    /// A block of this length, which we asked for.
    pub(super) fn new(len: usize) -> io::Result<Self> {
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG))?;
        Ok(Self { decoder, block: vec![0; len + 1], filled: 0 })
    }

    /// Takes what it needs of this; says how much that was, and whether the block is whole.
    pub(super) fn take(&mut self, bytes: &[u8]) -> io::Result<(usize, bool)> {
        let status = self.decoder.run_on_buffers(bytes, &mut self.block[self.filled..])?;
        self.filled += status.bytes_written;
        let (len, is_whole) = (self.block.len() - 1, status.remaining == 0);
        if self.filled > len || (is_whole && self.filled < len) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a packed block has another length"));
        }
        Ok((status.bytes_read, is_whole))
    }

    /// The block, once it is whole.
    pub(super) fn into_block(mut self) -> Vec<u8> {
        self.block.truncate(self.filled);
        self.block
    }
}

impl std::fmt::Debug for Unpacking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unpacking").field("filled", &self.filled).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    /// How many of a hundred blocks are packed when each takes this long on the wire, and shrinks to so much.
    fn packed_of_hundred(is_possible: bool, wire: Duration, packing: Duration, shrinks_to: f64) -> usize {
        let mut now = Instant::now();
        let mut choice = Choice::new(is_possible, now);
        let mut count = 0;
        for _ in 0..100 {
            let mut sent = BLOCK;
            if choice.is_for(BLOCK) {
                count += 1;
                let to = (BLOCK as f64 * shrinks_to) as usize;
                choice.was_packed(BLOCK, to, packing);
                if is_worth_sending(BLOCK, to) {
                    sent = to;
                }
            }
            choice.waits();
            now += wire.mul_f64(sent as f64 / BLOCK as f64);
            choice.has_moved(sent, now);
        }
        count
    }

    #[test]
    fn a_slow_wire_gets_packed_blocks_and_a_fast_one_does_not() {
        let of = |wire, packing, to| packed_of_hundred(true, wire, packing, to);
        assert!(of(84 * MILLI, 3 * MILLI, 0.4) > 90, "100 Mbit/s");
        assert_eq!(of(8 * MILLI, 3 * MILLI, 0.4), 0, "1 Gbit/s");
        assert!(of(84 * MILLI, 60 * MILLI, 0.4) < 10, "a processor that is slower than the wire");
        assert!((1..12).contains(&of(84 * MILLI, 3 * MILLI, 1.0)), "content that does not get smaller");
        assert_eq!(packed_of_hundred(false, 84 * MILLI, 3 * MILLI, 0.4), 0, "nobody there could unpack it");
    }

    #[test]
    fn a_wire_that_becomes_fast_gets_plain_blocks_again() {
        let mut now = Instant::now();
        let mut choice = Choice::new(true, now);
        choice.waits();
        now += 84 * MILLI;
        choice.has_moved(BLOCK, now);
        // From now on it is never waited for: a packed block is gone as soon as it is packed.
        let mut plain = 0;
        for _ in 0..2 * PACKED_IN_A_ROW {
            if choice.is_for(BLOCK) {
                choice.was_packed(BLOCK, BLOCK / 4, 3 * MILLI);
                now += 9 * MILLI;
                choice.has_moved(BLOCK / 4, now);
            } else {
                plain += 1;
                now += 2 * MILLI;
                choice.has_moved(BLOCK, now);
            }
        }
        assert!(plain > PACKED_IN_A_ROW, "{plain}");
    }

    #[test]
    fn a_block_comes_back_as_it_was_and_a_damaged_one_does_not() {
        let block: Vec<u8> = (0..BLOCK).map(|i| (i / 37) as u8).collect();
        let Packed { bytes, is_frame, .. } = pack(block.clone()).unwrap();
        assert!(is_frame && bytes.len() < BLOCK / 2);
        let unpack = |bytes: &[u8], len: usize| {
            let mut unpacking = Unpacking::new(len)?;
            let mut taken = 0;
            for part in bytes.chunks(1000) {
                let (took, is_whole) = unpacking.take(part)?;
                taken += took;
                if is_whole {
                    return Ok((taken, unpacking.into_block()));
                }
            }
            Err(io::Error::from(io::ErrorKind::UnexpectedEof))
        };
        let followed = [&bytes[..], b"the next one"].concat();
        assert!(unpack(&followed, BLOCK).unwrap() == (bytes.len(), block.clone()));
        assert!(unpack(&bytes, BLOCK - 1).is_err(), "longer than what was asked for");
        assert!(unpack(&bytes, BLOCK + 1).is_err(), "shorter than what was asked for");
        assert!(unpack(&bytes[..bytes.len() - 1], BLOCK).is_err());
        for damaged in [0, 9, bytes.len() / 2, bytes.len() - 1] {
            let mut bytes = bytes.clone();
            bytes[damaged] ^= 0x55;
            assert!(unpack(&bytes, BLOCK).is_err(), "byte {damaged}");
        }
        let noise: Vec<u8> = (0..BLOCK).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let mut state = 1_u64;
        let noise: Vec<u8> = noise
            .into_iter()
            .map(|byte| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                byte ^ (state >> 56) as u8
            })
            .collect();
        assert!(!pack(noise).unwrap().is_frame);
    }
}
