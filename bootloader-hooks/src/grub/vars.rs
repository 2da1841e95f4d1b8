//! The variables in a block, what `grub.cfg` makes of them, and how each act changes them.

use otandem_core::boot::{SetId, SetState};

use super::block::{self, BlockError, Variable};
use crate::{BootError, BootNames};

/// The variable that names the set on trial.
pub const TRIAL: &str = "OTANDEM_TRIAL";
/// The variable that lists the sets.
pub const ORDER: &str = "ORDER";

/// What `grub.cfg` decides by. The default is what it takes without a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vars {
    /// Boot names, also those that are neither set; ours at most once.
    order: Vec<Vec<u8>>,
    ok: [bool; 2],
    untried: [bool; 2],
    trial: Option<SetId>,
}

const fn index(set: SetId) -> usize {
    match set {
        SetId::A => 0,
        SetId::B => 1,
    }
}

/// The variables that are ours, in the order in which they are written.
#[must_use]
pub fn own_names(names: &BootNames) -> [String; 6] {
    let [a, b] = SetId::BOTH.map(|set| names.name(set));
    [ORDER.into(), format!("{a}_OK"), format!("{a}_TRY"), format!("{b}_OK"), format!("{b}_TRY"), TRIAL.into()]
}

fn set_named(name: &[u8], names: &BootNames) -> Option<SetId> {
    names.set(std::str::from_utf8(name).ok()?)
}

/// Can GRUB's script language spell the variables that are made of these names?
///
/// # Errors
/// It cannot.
pub fn check_names(names: &BootNames) -> Result<(), BootError> {
    for name in SetId::BOTH.map(|set| names.name(set)) {
        let letter = |c: char| c.is_ascii_alphabetic() || c == '_';
        if !name.starts_with(letter) || !name.chars().all(|c| letter(c) || c.is_ascii_digit()) {
            let why = "GRUB's variables are made of letters, digits and _ and do not begin with a digit";
            return Err(BootError::Config(format!("boot-name {name:?} cannot be used: {why}")));
        }
    }
    Ok(())
}

/// The value of a variable in a block: the last one counts.
#[must_use]
pub fn value<'a>(variables: &'a [Variable], name: &str) -> Option<&'a [u8]> {
    let last = variables.iter().rev().find(|v| v.name == name.as_bytes());
    last.map(|v| v.value.as_slice())
}

/// The words of a list, as GRUB's `for` takes them apart.
pub fn words(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|b| matches!(b, b' ' | b'\t' | b'\r' | b'\n')).filter(|word| !word.is_empty())
}

impl Vars {
    /// What `grub.cfg` would go by, given the variables of a block.
    #[must_use]
    pub fn read(variables: &[Variable], names: &BootNames) -> Self {
        let value = |name: &str| value(variables, name);
        let is = |set: SetId, what: &str, wanted: &[u8]| {
            value(&format!("{}_{what}", names.name(set))).is_none_or(|value| value == wanted)
        };
        let mut order: Vec<Vec<u8>> = Vec::new();
        let listed = value(ORDER).map_or_else(
            || SetId::BOTH.map(|set| names.name(set).as_bytes().to_vec()).to_vec(),
            |list| words(list).map(<[u8]>::to_vec).collect(),
        );
        for name in listed {
            if !order.contains(&name) {
                order.push(name);
            }
        }
        let trial = value(TRIAL).and_then(|name| set_named(name, names));
        Self {
            order,
            ok: SetId::BOTH.map(|set| is(set, "OK", b"1")),
            untried: SetId::BOTH.map(|set| is(set, "TRY", b"0")),
            trial,
        }
    }

    /// The variables as they are written.
    #[must_use]
    pub fn values(&self, names: &BootNames) -> [(String, Vec<u8>); 6] {
        let flag = |on: bool| if on { b"1".to_vec() } else { b"0".to_vec() };
        let trial = self.trial.map(|set| names.name(set).as_bytes().to_vec());
        let [order, a_ok, a_try, b_ok, b_try, on_trial] = own_names(names);
        [
            (order, self.order.join(&b' ')),
            (a_ok, flag(self.ok[0])),
            (a_try, flag(!self.untried[0])),
            (b_ok, flag(self.ok[1])),
            (b_try, flag(!self.untried[1])),
            (on_trial, trial.unwrap_or_default()),
        ]
    }

    /// A block with these variables and what `variables` of the block `old` are not ours.
    ///
    /// # Errors
    /// It does not fit.
    pub fn encode(
        &self,
        old: &[u8],
        variables: &[Variable],
        names: &BootNames,
    ) -> Result<Vec<u8>, BlockError> {
        let own = own_names(names);
        let is_own = |v: &&Variable| own.iter().any(|name| name.as_bytes() == v.name);
        let foreign: Vec<&[u8]> =
            variables.iter().filter(|v| !is_own(v)).map(|v| &old[v.place.clone()]).collect();
        let [a, b] = SetId::BOTH.map(|set| names.name(set).len());
        let others = self.order.iter().filter(|name| set_named(name, names).is_none());
        let order = a + 1 + b + others.map(|name| 1 + name.len()).sum::<usize>();
        let longest = [order, 1, 1, 1, 1, a.max(b)];
        let region = block::region(own.iter().map(String::as_str).zip(longest));
        block::encode(&self.values(names), region, &foreign.concat())
    }

    fn lists(&self, set: SetId, names: &BootNames) -> bool {
        self.order.iter().any(|name| name == names.name(set).as_bytes())
    }

    /// Does GRUB boot `set` when its turn comes?
    #[must_use]
    pub fn bootable(&self, set: SetId, names: &BootNames) -> bool {
        self.lists(set, names) && self.ok[index(set)] && self.untried[index(set)]
    }

    /// The set that the next reset tries first; `None` when only the last resort is left.
    #[must_use]
    pub fn primary(&self, names: &BootNames) -> Option<SetId> {
        let sets = self.order.iter().filter_map(|name| set_named(name, names));
        sets.into_iter().find(|set| self.bootable(*set, names))
    }

    /// The table of the module's documentation.
    #[must_use]
    pub fn state(&self, set: SetId, names: &BootNames) -> SetState {
        let on_trial = self.trial == Some(set);
        match (self.lists(set, names) && self.ok[index(set)], self.untried[index(set)]) {
            (false, _) => SetState::Bad,
            (true, true) if on_trial => SetState::Untried,
            (true, true) => SetState::Good,
            (true, false) => SetState::Tried,
        }
    }

    fn fill(&mut self, set: SetId) {
        self.ok[index(set)] = true;
        self.untried[index(set)] = true;
    }

    fn unlist(&mut self, set: SetId, names: &BootNames) {
        self.order.retain(|name| name != names.name(set).as_bytes());
    }

    fn put_first(&mut self, set: SetId, names: &BootNames) {
        self.unlist(set, names);
        self.order.insert(0, names.name(set).as_bytes().to_vec());
    }

    /// `set` is tried once, then comes the other one, which is good.
    pub fn arm(&mut self, set: SetId, names: &BootNames) {
        for first in [set.other(), set] {
            self.fill(first);
            self.put_first(first, names);
        }
        self.trial = Some(set);
    }

    /// `set` is not on trial, and will be booted again.
    pub fn keep(&mut self, set: SetId, names: &BootNames) {
        self.fill(set);
        if !self.lists(set, names) {
            self.put_first(set, names);
        }
        self.end_trial(set);
    }

    /// `set` is bad, the other one first and good.
    pub fn disarm(&mut self, set: SetId, names: &BootNames) {
        self.mark_bad(set, names);
        self.confirm(set.other(), names);
    }

    /// `set` is first, good and not on trial.
    pub fn confirm(&mut self, set: SetId, names: &BootNames) {
        self.put_first(set, names);
        self.keep(set, names);
    }

    /// `set` is neither listed nor good.
    pub fn mark_bad(&mut self, set: SetId, names: &BootNames) {
        self.unlist(set, names);
        self.ok[index(set)] = false;
        self.untried[index(set)] = true;
        self.end_trial(set);
    }

    fn end_trial(&mut self, set: SetId) {
        if self.trial == Some(set) {
            self.trial = None;
        }
    }
}
