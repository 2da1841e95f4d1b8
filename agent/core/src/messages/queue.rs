//! What waits in a directory, as far as it is remembered: the first few thousand names in their order. The directory
//! itself is the queue; this only keeps it from being read anew for each file.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};

/// In which order files go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// By name, byte by byte.
    #[default]
    Lexical,
    /// By time of modification, the oldest first.
    OldestFirst,
    /// By time of modification, the newest first.
    NewestFirst,
}

impl Order {
    /// Whether the time of modification must be known.
    #[must_use]
    pub const fn by_time(self) -> bool {
        !matches!(self, Self::Lexical)
    }

    /// Where a file stands. `modified`: nanoseconds since 1970; not looked at where the order is by name.
    #[must_use]
    pub fn place(self, name: OsString, modified: i64) -> Place {
        let rank = match self {
            Self::Lexical => 0,
            Self::OldestFirst => modified,
            Self::NewestFirst => modified.saturating_neg(),
        };
        Place { class: Class::Usual, rank, name }
    }
}

/// Before the order comes who goes ahead, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Ahead(i64),
    Usual,
}

/// A file's place in the order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    class: Class,
    rank: i64,
    name: OsString,
}

impl Place {
    /// The file's name.
    #[must_use]
    pub fn name(&self) -> &OsStr {
        &self.name
    }

    /// Ahead of all that are not, and of those with larger numbers.
    #[must_use]
    pub fn ahead(self, priority: i64) -> Self {
        Self { class: Class::Ahead(priority), ..self }
    }

    /// Not ahead.
    #[must_use]
    pub fn usual(self) -> Self {
        Self { class: Class::Usual, ..self }
    }

    /// Whether it is ahead of the order.
    #[must_use]
    pub const fn is_ahead(&self) -> bool {
        matches!(self.class, Class::Ahead(_))
    }
}

/// The first names in order, at most as many as it was made for.
#[derive(Debug)]
pub struct Queue {
    most: usize,
    places: BTreeSet<Place>,
    more: bool,
}

impl Queue {
    /// Names that are remembered.
    pub const MOST: usize = 4096;

    /// For `most` names. What lies in the directory is not known yet.
    #[must_use]
    pub const fn new(most: usize) -> Self {
        Self { most, places: BTreeSet::new(), more: true }
    }

    /// A file is there.
    pub fn offer(&mut self, place: Place) {
        // Behind what is remembered there are others that come before it; they are found together.
        if self.more && self.places.last().is_none_or(|last| *last < place) {
            return;
        }
        self.put(place);
    }

    /// A file that a look at the whole directory shows, or that was taken and is to be taken again.
    pub fn put(&mut self, place: Place) {
        if self.places.len() >= self.most && self.places.last().is_some_and(|last| *last <= place) {
            self.more = true;
            return;
        }
        self.places.insert(place);
        if self.places.len() > self.most {
            self.places.pop_last();
            self.more = true;
        }
    }

    /// The directory is about to be read from the beginning.
    pub fn clear(&mut self) {
        self.places.clear();
        self.more = false;
    }

    /// The next in order.
    pub fn take(&mut self) -> Option<Place> {
        self.places.pop_first()
    }

    /// Nothing is remembered any more, and there may be more in the directory.
    #[must_use]
    pub fn wants_scan(&self) -> bool {
        self.more && self.places.is_empty()
    }

    /// Something in the directory was not seen.
    pub const fn missed(&mut self) {
        self.more = true;
    }

    /// How many are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether none is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }
}
