//! Which blocks of a disk are to be written, and what they must be like when they arrive.
//!
//! Owns the plan of an upload: pure, whoever reads the disk. Blocks of nothing but zeros are left out, because a volume
//! is zero where its snapshot has no block; what is left out is neither sent nor paid for.

use std::io;

use sha2::{Digest as _, Sha256};

use crate::provider::ec2::api::BLOCK_SIZE;

static ZEROS: [u8; BLOCK_SIZE] = [0; BLOCK_SIZE];
const GIB: u64 = 1 << 30;

/// A block that is not all zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Which, counted from the start of the disk.
    pub index: u32,
    /// Of the whole block.
    pub sha256: [u8; 32],
}

/// What is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockPlan {
    /// Of the disk, in bytes.
    pub size: u64,
    /// In their order.
    pub blocks: Vec<Block>,
}

impl BlockPlan {
    /// Reads a disk of this size from its beginning to its end.
    pub fn of(size: u64, mut read: impl FnMut(u64, &mut [u8]) -> io::Result<()>) -> io::Result<Self> {
        let mut blocks = Vec::new();
        let count = size.div_ceil(BLOCK_SIZE as u64);
        let count =
            u32::try_from(count).map_err(|_| io::Error::other("the disk is larger than any volume"))?;
        let mut data = vec![0; BLOCK_SIZE];
        for index in 0..count {
            fill(&mut data, size, index, &mut read)?;
            if data != ZEROS {
                blocks.push(Block { index, sha256: Sha256::digest(&data).into() });
            }
        }
        Ok(Self { size, blocks })
    }

    /// GiB of a volume on which the disk has room.
    pub fn gib(&self) -> u32 {
        u32::try_from(self.size.div_ceil(GIB)).unwrap_or(u32::MAX).max(1)
    }

    /// How much is written, in bytes.
    pub fn bytes(&self) -> u64 {
        self.blocks.len() as u64 * BLOCK_SIZE as u64
    }

    /// What EBS checks the whole snapshot against: the blocks' sums in their order, summed.
    pub fn sha256(&self) -> [u8; 32] {
        let mut sum = Sha256::new();
        for block in &self.blocks {
            sum.update(block.sha256);
        }
        sum.finalize().into()
    }

    /// Tells one disk from any other, which the sum for EBS does not: there it does not matter where a block is.
    pub fn content(&self) -> [u8; 32] {
        let mut sum = Sha256::new();
        sum.update(self.size.to_be_bytes());
        for block in &self.blocks {
            sum.update(block.index.to_be_bytes());
            sum.update(block.sha256);
        }
        sum.finalize().into()
    }
}

/// One block of a disk of this size, whole: the last one may go beyond the disk, where it is zero.
pub(super) fn block(
    size: u64,
    index: u32,
    mut read: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
) -> io::Result<Vec<u8>> {
    let mut data = vec![0; BLOCK_SIZE];
    fill(&mut data, size, index, &mut read)?;
    Ok(data)
}

fn fill(
    data: &mut [u8],
    size: u64,
    index: u32,
    read: &mut impl FnMut(u64, &mut [u8]) -> io::Result<()>,
) -> io::Result<()> {
    let at = u64::from(index) * BLOCK_SIZE as u64;
    let there = usize::try_from(size.saturating_sub(at)).unwrap_or(BLOCK_SIZE).min(data.len());
    let (on_disk, beyond) = data.split_at_mut(there);
    beyond.fill(0);
    read(at, on_disk)
}

/// What a block is like, to compare with the plan.
pub(super) fn sum(data: &[u8]) -> [u8; 32] {
    Sha256::digest(data).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(disk: &[u8]) -> impl FnMut(u64, &mut [u8]) -> io::Result<()> + '_ {
        move |at, bytes| {
            let at = usize::try_from(at).unwrap();
            let there = disk.get(at..at + bytes.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            bytes.copy_from_slice(there);
            Ok(())
        }
    }

    fn plan(disk: &[u8]) -> BlockPlan {
        BlockPlan::of(disk.len() as u64, reader(disk)).unwrap()
    }

    fn indices(plan: &BlockPlan) -> Vec<u32> {
        plan.blocks.iter().map(|block| block.index).collect()
    }

    #[test]
    fn blocks_of_zeros_are_left_out_and_the_last_one_is_filled_up() {
        let mut disk = vec![0; 4 * BLOCK_SIZE + 1024];
        disk[BLOCK_SIZE - 1] = 1;
        disk[2 * BLOCK_SIZE] = 2;
        assert_eq!(indices(&plan(&disk)), [0, 2]);
        *disk.last_mut().unwrap() = 3;
        let planned = plan(&disk);
        assert_eq!(indices(&planned), [0, 2, 4]);
        let last = block(planned.size, 4, reader(&disk)).unwrap();
        assert_eq!(last.len(), BLOCK_SIZE);
        assert_eq!((last[1022], last[1023], last[1024]), (0, 3, 0));
        assert_eq!(planned.blocks[2].sha256, sum(&last));
        assert_eq!(planned.bytes(), 3 * BLOCK_SIZE as u64);
    }

    #[test]
    fn an_empty_disk_of_the_largest_size_has_no_blocks_and_a_small_one_a_volume() {
        assert_eq!(plan(&vec![0; 3 * BLOCK_SIZE]).blocks, []);
        assert_eq!(plan(&[0; 512]).gib(), 1);
        let sized = |size| BlockPlan { size, blocks: Vec::new() };
        assert_eq!((sized(GIB).gib(), sized(GIB + 512).gib(), sized(8 * GIB).gib()), (1, 2, 8));
    }

    #[test]
    fn a_disk_that_ends_too_soon_is_an_error() {
        assert!(BlockPlan::of(2048, reader(&[1; 1024])).is_err());
    }

    #[test]
    fn the_sum_for_ebs_is_over_the_raw_sums_of_the_blocks() {
        let mut disk = vec![0; 3 * BLOCK_SIZE];
        disk[0] = 1;
        disk[2 * BLOCK_SIZE] = 2;
        let (first, second) = (sum(&disk[..BLOCK_SIZE]), sum(&disk[2 * BLOCK_SIZE..]));
        assert_eq!(plan(&disk).sha256(), sum(&[first, second].concat()));
        // The same blocks in other places are another disk, though EBS has the same sum for it.
        let mut moved = vec![0; 3 * BLOCK_SIZE];
        moved[0] = 1;
        moved[BLOCK_SIZE] = 2;
        assert_eq!(plan(&moved).sha256(), plan(&disk).sha256());
        assert_ne!(plan(&moved).content(), plan(&disk).content());
    }
}
