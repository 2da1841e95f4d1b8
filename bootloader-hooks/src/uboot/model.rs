//! U-Boot's stored environment and what `boot.cmd` does with it, as functions of bytes.
//!
//! It judges what a power cut leaves: [`decide`] takes the environment's medium as it is found and answers which set
//! boots and what is written on the way. Tests hold it to the real programs: `fw_printenv`, `fw_setenv`, and U-Boot in a
//! virtual machine.
//!
//! One copy is a CRC32 of the data, then the data; of two (*redundant*) each has a serial number between the two, the
//! *flags*, which the CRC does not cover. Data is `NAME=value`, ended by NUL, one behind the other, ended by another NUL;
//! what follows counts for the CRC only.

use otandem_core::boot::SetId;
use otandem_core::crc::crc32;

use crate::BootNames;
use crate::counters::{Env, Round};

/// Bytes of the CRC.
const CRC: usize = 4;
/// What the variables are called by `boot.cmd`, in the order in which U-Boot writes them.
const LEFT: [&str; 2] = ["BOOT_A_LEFT", "BOOT_B_LEFT"];
const ORDER: &str = "BOOT_ORDER";

/// Whether a copy stands alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// One copy, without flags.
    Single,
    /// One of two, with flags.
    Redundant,
}

impl Form {
    /// Bytes before the data.
    #[must_use]
    pub const fn header(self) -> usize {
        match self {
            Self::Single => CRC,
            Self::Redundant => CRC + 1,
        }
    }
}

/// A copy that U-Boot accepts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Contents {
    /// The serial number; 0 for a single copy.
    pub flags: u8,
    /// Name and value of each variable, in the order of the medium; values are what U-Boot makes of them.
    pub variables: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Contents {
    /// The value of a variable. Of two of the same name the first one counts for `env import NAME`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        let found = self.variables.iter().find(|(n, _)| n == name.as_bytes());
        found.map(|(_, value)| value.as_slice())
    }
}

/// Why a copy is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// There is not even a checksum.
    #[error("shorter than its header")]
    Short,
    /// Empty, torn, or never one.
    #[error("wrong checksum")]
    Checksum,
    /// A variable without a name; U-Boot then refuses all.
    #[error("a variable has no name")]
    Nameless,
}

/// The variables need more room than there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the variables need {needed} bytes and there are {size}; make the environment larger")]
pub struct TooLarge {
    /// Bytes needed, header included.
    pub needed: usize,
    /// Bytes of a copy.
    pub size: usize,
}

/// Reads one copy as U-Boot's `env import` does.
///
/// # Errors
/// U-Boot would not accept it.
pub fn decode(copy: &[u8], form: Form) -> Result<Contents, Invalid> {
    let Some((header, data)) = copy.split_at_checked(form.header()) else { return Err(Invalid::Short) };
    let (sum, flags) = header.split_at(CRC);
    if sum != crc32(data).to_le_bytes() {
        return Err(Invalid::Checksum);
    }
    let mut contents = Contents { flags: flags.first().copied().unwrap_or(0), variables: Vec::new() };
    for entry in data.split(|byte| *byte == 0) {
        if entry.is_empty() {
            break;
        }
        let blanks = entry.iter().take_while(|byte| b" \t".contains(byte)).count();
        let entry = &entry[blanks..];
        match entry.iter().position(|byte| *byte == b'=') {
            _ if entry.first() == Some(&b'#') => {}
            Some(0) => return Err(Invalid::Nameless),
            Some(end) => contents.variables.push((entry[..end].to_vec(), unescaped(&entry[end + 1..]))),
            // A name alone: deletes the variable, which is not there.
            None => {}
        }
    }
    Ok(contents)
}

/// A backslash protects the byte behind it.
fn unescaped(value: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(value.len());
    let mut bytes = value.iter();
    while let Some(byte) = bytes.next() {
        let protected = if *byte == b'\\' { bytes.next() } else { None };
        plain.push(*protected.unwrap_or(byte));
    }
    plain
}

/// Writes one copy of `size` bytes; the variables are sorted by name, as U-Boot does, and zeros follow.
///
/// # Errors
/// They do not fit.
pub fn encode(contents: &Contents, size: usize, form: Form) -> Result<Vec<u8>, TooLarge> {
    let mut sorted: Vec<_> = contents.variables.iter().collect();
    sorted.sort_unstable();
    let mut copy = vec![0; form.header()];
    for (name, value) in sorted {
        copy.extend([name, b"=".as_slice(), value, b"\0"].concat());
    }
    if copy.len() >= size {
        return Err(TooLarge { needed: copy.len() + 1, size });
    }
    copy.resize(size, 0);
    let sum = crc32(&copy[form.header()..]).to_le_bytes();
    copy[..CRC].copy_from_slice(&sum);
    if form == Form::Redundant {
        copy[CRC] = contents.flags;
    }
    Ok(copy)
}

/// Which of two valid copies counts, by their flags: the greater one, where 0 follows 255. The first one if equal.
#[must_use]
pub const fn newest(first: u8, second: u8) -> usize {
    match (first, second) {
        (255, 0) => 1,
        (0, 255) => 0,
        _ if second > first => 1,
        _ => 0,
    }
}

/// What a reset leads to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Decision {
    /// The sets that were tried, the last one is the one that booted.
    pub tried: Vec<SetId>,
    /// What booted; `None`: nothing can, and the board resets.
    pub booted: Option<SetId>,
    /// Offset and bytes of each copy that was written, in this order; `None` if nothing was.
    pub writes: Option<Vec<(u64, Vec<u8>)>>,
}

/// Where the environment lies, and which copy of it counts.
struct Medium<'a> {
    /// Offset and bytes of each.
    copies: &'a [(u64, usize)],
    form: Form,
    /// Index and flags of the one that counts.
    newest: Option<(usize, u8)>,
}

impl Medium<'_> {
    /// The copy that holds these variables now, and it is the one that counts.
    fn write(&mut self, variables: Vec<(Vec<u8>, Vec<u8>)>) -> Option<(u64, Vec<u8>)> {
        let (to, flags) = match (self.newest, self.copies.len()) {
            (Some((newest, flags)), 2) => (1 - newest, flags.wrapping_add(1)),
            (Some(_), _) => (0, 0),
            (None, _) => (0, 1),
        };
        let (offset, size) = *self.copies.get(to)?;
        let copy = encode(&Contents { flags, variables }, size, self.form).ok()?;
        self.newest = Some((to, flags));
        Some((offset, copy))
    }
}

/// What `boot.cmd` does at a reset: `area` holds the environment in one or two `copies` (offset and size in bytes), a set
/// is `loadable` if its kernel and initrd can be loaded and started.
///
/// Validity and decision are the same for every board. The bytes of `writes` are those of the virtual device's script,
/// which keeps the three variables only; U-Boot's own `saveenv` writes all that it has. A set that loads and does not
/// start is, in the last round, saved as tried; this is not modelled.
#[must_use]
pub fn decide(area: &[u8], copies: &[(u64, usize)], loadable: impl Fn(SetId) -> bool) -> Decision {
    let form = if copies.len() == 2 { Form::Redundant } else { Form::Single };
    let read = |&(offset, size): &(u64, usize)| {
        let start = usize::try_from(offset).ok()?;
        decode(area.get(start..start.checked_add(size)?)?, form).ok()
    };
    let found: Vec<Option<Contents>> = copies.iter().map(read).collect();
    let index = match found.as_slice() {
        [Some(first), Some(second)] => Some(newest(first.flags, second.flags)),
        all => all.iter().position(Option::is_some),
    };
    let contents = index.and_then(|index| found[index].as_ref());
    let mut medium = Medium { copies, form, newest: index.zip(contents.map(|c| c.flags)) };
    let text = |name: &str| contents?.get(name).map(String::from_utf8_lossy);
    let (stored, a, b) = (text(ORDER), text(LEFT[0]), text(LEFT[1]));
    let mut env = Env::from_values(stored.as_deref(), [a.as_deref(), b.as_deref()], &BootNames::default());
    let order =
        contents.and_then(|c| c.get(ORDER)).filter(|order| !order.is_empty()).unwrap_or(b"A B").to_vec();

    let mut decision = Decision::default();
    let mut writes = Vec::new();
    let tried = &mut decision.tried;
    let load = |set| {
        tried.push(set);
        loadable(set)
    };
    let save = |env: &Env, round| {
        let order = if round == Round::Last { b"A B".to_vec() } else { order.clone() };
        let mut variables = vec![(ORDER.into(), order)];
        for (set, name) in SetId::BOTH.into_iter().zip(LEFT) {
            variables.extend(env.stored(set).map(|left| (name.into(), left.to_string().into_bytes())));
        }
        let write = medium.write(variables);
        let saved = write.is_some();
        writes.extend(write);
        saved
    };
    decision.booted = env.boot(load, save);
    decision.writes = (!writes.is_empty()).then_some(writes);
    decision
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
