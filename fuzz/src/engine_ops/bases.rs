//! The pools that a run starts from, with what the model must know of them.

use super::model::{Existence, Model, Volume, fill};
use crate::disk::Image;
use crate::world::image;
use flagstone_block::BLOCK_SIZE;
use std::sync::LazyLock;

const POOL_BYTES: u64 = 64 << 20;

/// A pool and the volume in it, if there is one: its number, blocks, and blocks filled.
#[derive(Debug)]
pub(super) struct Base {
    pub(super) image: Image,
    volume: Option<(u32, u64, u64)>,
}

impl Base {
    pub(super) fn model(&self) -> Model {
        let volume = self.volume.map(|(id, blocks, filled)| Volume {
            id,
            name: "filler".to_owned(),
            existence: Existence::Active,
            blocks,
            growths: Vec::new(),
            filled,
            cells: Default::default(),
        });
        let mut model = Model::default();
        model.volumes.extend(volume);
        model
    }
}

/// Formatted; one volume with some sealed segments; full; full, with a metadata chain that is
/// about to need its second segment.
pub(super) static BASES: LazyLock<[Base; 4]> = LazyLock::new(|| {
    [
        Base { image: image(POOL_BYTES, true, |_| {}), volume: None },
        filled(0, 700),
        filled(0, u64::MAX),
        filled(NEARLY_A_SEGMENT, u64::MAX),
    ]
});

/// Volumes made and deleted until their records nearly fill a segment of the metadata chain.
const NEARLY_A_SEGMENT: u32 = 4530;

fn filled(short_lived: u32, blocks: u64) -> Base {
    const VOLUME_BLOCKS: u64 = 1 << 18;
    const AT_ONCE: u64 = 20;
    let (mut id, mut filled) = (0, 0);
    let image = image(POOL_BYTES, true, |world| {
        let volume = world.create("filler", VOLUME_BLOCKS << 12).expect("room");
        id = volume.0;
        let mut data = vec![0; AT_ONCE as usize * BLOCK_SIZE];
        while filled < blocks {
            for (i, block) in (0u32..).zip(data.chunks_exact_mut(BLOCK_SIZE)) {
                fill(block, filled as u32 + i);
            }
            if world.write(volume, filled << 12, &data).is_err() {
                break;
            }
            filled += AT_ONCE;
        }
        // The write that found no room may have found some for its first blocks.
        let rest = world.read(volume, filled, AT_ONCE as u32).expect("inside the volume");
        let rest = rest.expect("a sound device");
        filled +=
            rest.chunks(BLOCK_SIZE).filter(|block| block.iter().any(|b| *b != 0)).count() as u64;
        // Last: what is written calls for checkpoints, which make the chain short.
        for _ in 0..short_lived {
            let volume = world.create("short-lived", 1 << 20).expect("room");
            world.delete(volume).expect("it is there");
        }
    });
    Base { image, volume: Some((id, VOLUME_BLOCKS, filled)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Disk;

    #[test]
    fn the_last_base_is_about_to_need_a_segment() {
        let inspection = flagstone_engine::inspect(&mut Disk::new(&BASES[3].image)).unwrap();
        let pages = inspection.recovery.meta_pages;
        let segment = u64::from(inspection.geometry.pages());
        assert!((segment - 6..segment).contains(&pages), "{pages} of {segment}");
    }
}
