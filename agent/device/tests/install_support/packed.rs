//! One slot, one image, packed in any way.
#![allow(dead_code, reason = "each test program uses a part")]

use std::io::Write;
use std::sync::atomic::AtomicBool;

use otandem_core::image::{Checkpoint, Compression, Image};
use otandem_device::install::{Fault, InstallError, NoDigest, Plan, ReadBack, Written, install};

use super::install_support::{Bench, Log, MemFetch, image, zstd};

pub static GO: AtomicBool = AtomicBool::new(false);
pub const FORMATS: [Compression; 4] =
    [Compression::None, Compression::Gzip, Compression::Xz, Compression::Zstd];

pub fn gzip(raw: &[u8], member: usize) -> Vec<u8> {
    let members = raw.chunks(member).flat_map(|part| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(part).unwrap();
        encoder.finish().unwrap()
    });
    members.collect()
}

pub fn xz_preset(raw: &[u8], stream: usize, preset: u32) -> Vec<u8> {
    let streams = raw.chunks(stream).flat_map(|part| {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), preset);
        encoder.write_all(part).unwrap();
        encoder.finish().unwrap()
    });
    streams.collect()
}

pub fn pack(format: Compression, raw: &[u8], frame: usize) -> Vec<u8> {
    match format {
        Compression::None => raw.to_vec(),
        Compression::Gzip => gzip(raw, frame),
        Compression::Xz => xz_preset(raw, frame, 0),
        Compression::Zstd => zstd(raw, frame),
    }
}

/// One slot, one image.
pub struct One {
    pub bench: Bench,
    pub image: Image,
    pub fetch: MemFetch,
    pub no_digest: NoDigest,
    pub read_back: ReadBack,
}

impl One {
    pub fn new(raw: &[u8], packed: Vec<u8>, compression: Option<Compression>) -> Self {
        Self {
            bench: Bench::new(&["rootfs"]),
            image: image("rootfs", "x", compression, raw),
            fetch: MemFetch::new([("x", packed)]),
            no_digest: NoDigest::Refuse,
            read_back: ReadBack::WhereDue,
        }
    }

    pub fn run_with(
        &mut self,
        log: &mut Log,
        resume: Option<&Checkpoint>,
        change: impl FnOnce(&mut Plan<'_>),
    ) -> Result<Written, InstallError> {
        let state = self.bench.state();
        let mut plan = self.bench.plan(std::slice::from_ref(&self.image), &state);
        plan.resume = resume;
        plan.no_digest = self.no_digest;
        plan.read_back = self.read_back;
        change(&mut plan);
        install(&plan, &mut self.fetch, log, &GO).map(|mut written| written.remove(0))
    }

    pub fn run(&mut self) -> Result<Written, InstallError> {
        self.run_with(&mut Log::default(), None, |_| {})
    }

    pub fn content(&self) -> Vec<u8> {
        std::fs::read(self.bench.path("rootfs")).unwrap()
    }

    /// The fault, and whether anything had been touched by then.
    pub fn fault(&mut self) -> (Fault, bool) {
        self.fault_with(|_| {})
    }

    pub fn fault_with(&mut self, change: impl FnOnce(&mut Plan<'_>)) -> (Fault, bool) {
        let mut log = Log::default();
        match self.run_with(&mut log, None, change) {
            Err(InstallError::Image { fault, .. }) => {
                assert!(!self.bench.path("rootfs").exists(), "what is wrong never gets its name");
                (fault, log.ready > 0)
            }
            other => panic!("{other:?}"),
        }
    }
}
