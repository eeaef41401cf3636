//! Which leaves of a map differ from those of the map that it was made from.

use super::NODE_LEAVES;

type Word = u64;
const WORDS: usize = NODE_LEAVES / 64;

/// A bit per leaf, set when the map changes it for the first time. What is not set is the parent's: a
/// checkpoint states nothing about it, and a change copies it.
#[derive(Debug, Default)]
pub(super) struct Differs(Vec<Option<Box<[Word; WORDS]>>>);

impl Clone for Differs {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }

    /// Allocates nothing if `self` was as large as `source` is.
    fn clone_from(&mut self, source: &Self) {
        self.0.resize_with(source.0.len(), || None);
        for (to, from) in self.0.iter_mut().zip(&source.0) {
            match (to, from) {
                (Some(to), Some(from)) => **to = **from,
                (to, from) => to.clone_from(from),
            }
        }
    }
}

fn split(leaf: u64) -> (usize, usize, Word) {
    let slot = leaf as usize % NODE_LEAVES;
    (leaf as usize / NODE_LEAVES, slot / 64, 1 << (slot % 64))
}

impl Differs {
    /// Whether leaf number `leaf` differs.
    pub(super) fn has(&self, leaf: u64) -> bool {
        let (node, word, bit) = split(leaf);
        self.0.get(node).and_then(Option::as_ref).is_some_and(|words| words[word] & bit != 0)
    }

    /// Notes that it does; returns whether it did not before.
    pub(super) fn note(&mut self, leaf: u64) -> bool {
        let (node, word, bit) = split(leaf);
        if node >= self.0.len() {
            self.0.resize_with(node + 1, || None);
        }
        let words = self.0[node].get_or_insert_default();
        let first = words[word] & bit == 0;
        words[word] |= bit;
        first
    }

    /// The first that differs from `leaf` on.
    pub(super) fn next(&self, leaf: u64) -> Option<u64> {
        let (first, word, bit) = split(leaf);
        for (node, words) in self.0.iter().enumerate().skip(first) {
            let Some(words) = words else { continue };
            for (i, &found) in words.iter().enumerate() {
                let found = match (node == first, i.cmp(&word)) {
                    (true, std::cmp::Ordering::Less) => 0,
                    (true, std::cmp::Ordering::Equal) => found & !(bit - 1),
                    _ => found,
                };
                if found != 0 {
                    let slot = i * 64 + found.trailing_zeros() as usize;
                    return Some((node * NODE_LEAVES + slot) as u64);
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_is_found_in_order() {
        let mut differs = Differs::default();
        let leaves = [0, 1, 63, 64, 511, 512, 5000];
        for leaf in leaves {
            assert!(differs.note(leaf) && !differs.note(leaf));
        }
        let mut found = Vec::new();
        let mut at = 0;
        while let Some(leaf) = differs.next(at) {
            found.push(leaf);
            at = leaf + 1;
        }
        assert_eq!(found, leaves);
        assert!(leaves.iter().all(|leaf| differs.has(*leaf)));
        assert!(!differs.has(2) && !differs.has(100_000) && differs.next(5001).is_none());
    }
}
