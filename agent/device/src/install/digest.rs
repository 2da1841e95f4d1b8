//! Digests whose state can be saved, so that a resumed image does not need its bytes again.

use md5::Md5 as Md5State;
use otandem_core::image::{DigestState, Md5, Sha256};
use sha2::Digest as _;
use sha2::Sha256 as Sha256State;
use sha2::digest::common::hazmat::{SerializableState, SerializedState};

/// Version of the saved encoding: the state layout of the 0.11 line of both digest crates, in hex.
const VERSION: u32 = 1;

/// The digests that are wanted over one stream, and no others.
#[derive(Clone, Default)]
pub(crate) struct Digests {
    sha256: Option<Sha256State>,
    md5: Option<Md5State>,
}

/// Which digests are wanted over one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Wanted {
    pub(crate) sha256: bool,
    pub(crate) md5: bool,
}

/// What came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Values {
    pub(crate) sha256: Option<Sha256>,
    pub(crate) md5: Option<Md5>,
}

impl Digests {
    pub(crate) fn new(wanted: Wanted) -> Self {
        Self { sha256: wanted.sha256.then(Sha256State::new), md5: wanted.md5.then(Md5State::new) }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        if let Some(sha256) = &mut self.sha256 {
            sha256.update(bytes);
        }
        if let Some(md5) = &mut self.md5 {
            md5.update(bytes);
        }
    }

    pub(crate) fn values(self) -> Values {
        Values {
            sha256: self.sha256.map(|d| otandem_core::image::Hex(d.finalize().into())),
            md5: self.md5.map(|d| otandem_core::image::Hex(d.finalize().into())),
        }
    }

    /// The states of all digests that run, to be stored.
    pub(crate) fn save(&self) -> Vec<DigestState> {
        let state = |algorithm: &str, bytes: &[u8]| DigestState {
            algorithm: algorithm.to_owned(),
            version: VERSION,
            state: bytes.iter().map(|b| format!("{b:02x}")).collect(),
        };
        let sha256 = self.sha256.as_ref().map(|d| state("sha256", &d.serialize()));
        let md5 = self.md5.as_ref().map(|d| state("md5", &d.serialize()));
        sha256.into_iter().chain(md5).collect()
    }

    /// Goes on from stored states; `None` if a wanted one is not there, is of another version, or is damaged.
    pub(crate) fn restore(wanted: Wanted, saved: &[DigestState]) -> Option<Self> {
        let mut digests = Self::default();
        if wanted.sha256 {
            digests.sha256 = Some(restore_one("sha256", saved)?);
        }
        if wanted.md5 {
            digests.md5 = Some(restore_one("md5", saved)?);
        }
        Some(digests)
    }
}

/// The SHA-256 of bytes that are all at hand.
pub(crate) fn sha256(bytes: &[u8]) -> Sha256 {
    otandem_core::image::Hex(Sha256State::digest(bytes).into())
}

fn restore_one<D: SerializableState>(algorithm: &str, saved: &[DigestState]) -> Option<D> {
    let saved = saved.iter().find(|s| s.algorithm == algorithm && s.version == VERSION)?;
    let mut state = SerializedState::<D>::default();
    if saved.state.len() != state.len() * 2 {
        return None;
    }
    for (byte, pair) in state.iter_mut().zip(saved.state.as_bytes().chunks_exact(2)) {
        let digit = |c: u8| (c as char).to_digit(16).and_then(|d| u8::try_from(d).ok());
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    D::deserialize(&state).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOTH: Wanted = Wanted { sha256: true, md5: true };

    proptest! {
        #[test]
        fn a_restored_digest_goes_on_as_if_never_stopped(data: Vec<u8>, cut: prop::sample::Index) {
            let cut = cut.index(data.len() + 1);
            let mut whole = Digests::new(BOTH);
            whole.update(&data);
            let mut first = Digests::new(BOTH);
            first.update(&data[..cut]);
            let mut second = Digests::restore(BOTH, &first.save()).unwrap();
            second.update(&data[cut..]);
            prop_assert_eq!(second.values(), whole.values());
        }

        #[test]
        fn any_text_as_state_is_refused_or_read_without_panic(text in "[0-9a-f]{200,220}|.*", md5: bool) {
            let algorithm = if md5 { "md5" } else { "sha256" }.to_owned();
            let saved = [DigestState { algorithm, version: VERSION, state: text }];
            if let Some(mut d) = Digests::restore(Wanted { sha256: !md5, md5 }, &saved) {
                d.update(b"x");
                d.values();
            }
        }
    }

    #[test]
    fn another_version_or_algorithm_is_not_used() {
        let mut d = Digests::new(BOTH);
        d.update(b"abc");
        let saved = d.save();
        assert!(Digests::restore(BOTH, &saved).is_some());
        assert!(Digests::restore(BOTH, &saved[..1]).is_none());
        let newer: Vec<_> = saved.iter().cloned().map(|s| DigestState { version: 2, ..s }).collect();
        assert!(Digests::restore(BOTH, &newer).is_none());
    }

    #[test]
    fn only_wanted_digests_are_computed() {
        let mut d = Digests::new(Wanted { sha256: false, md5: true });
        d.update(b"abc");
        let values = d.values();
        assert_eq!(values.sha256, None);
        assert_eq!(values.md5.unwrap().to_string(), "900150983cd24fb0d6963f7d28e17f72");
        assert_eq!(
            sha256(b"abc").to_string(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
