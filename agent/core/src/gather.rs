//! Maps and sets out of iterators, without a sort for each type of them.

/// For every iterator.
pub trait Gather: Iterator + Sized {
    /// All items in one collection. `collect` does the same for an ordered map or set, but sorts the items before: a sort for
    /// each type of items is 4 kB of program, which a handful of items is not worth.
    fn gather<C: Default + Extend<Self::Item>>(self) -> C {
        let mut all = C::default();
        all.extend(self);
        all
    }
}

impl<I: Iterator> Gather for I {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn the_last_of_equal_keys_counts_as_in_collect() {
        let items = [(2, 'a'), (1, 'b'), (2, 'c')];
        let gathered: BTreeMap<_, _> = items.into_iter().gather();
        assert_eq!(gathered, items.into_iter().collect());
        assert_eq!(gathered[&2], 'c');
    }
}
