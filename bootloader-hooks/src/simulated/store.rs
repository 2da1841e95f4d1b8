//! The file in which the simulated bootloader keeps its environment, and the ways in which writing it can fail.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use otandem_core::frame;

use super::Env;
use crate::{BootError, BootNames};

/// Written at once by every medium.
const SECTOR: usize = 512;

/// How one write of the environment ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// As it should.
    None,
    /// With an error, and nothing was written.
    Fails,
    /// With an error (a power cut), and only that many bytes were written.
    Torn(usize),
    /// As if it were well, and nothing was written.
    Lost,
}

/// Decides over the write of this number, from 0.
pub type Faults = Box<dyn FnMut(u64) -> Fault + Send>;

pub(super) struct EnvFile {
    path: PathBuf,
    file: File,
    names: BootNames,
    faults: Faults,
    writes: u64,
}

pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BootError {
    move |source| BootError::Io { action, path: path.to_owned(), source }
}

impl EnvFile {
    pub fn open(dir: &Path, names: BootNames) -> Result<Self, BootError> {
        let path = dir.join("env");
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = options.map_err(io_error("open", &path))?;
        let env = Self { path, file, names, faults: Box::new(|_| Fault::None), writes: 0 };
        // Allocated once, so that no later write needs a block.
        let size = env.sectors()?.concat().len();
        env.put(&vec![0; 2 * SECTOR - size], u64::try_from(size).unwrap_or(0))?;
        Ok(env)
    }

    pub fn set_faults(&mut self, faults: Faults) {
        (self.faults, self.writes) = (faults, 0);
    }

    /// The newest readable sector, else the defaults.
    pub fn read(&mut self) -> Result<Env, BootError> {
        let sectors = self.sectors()?;
        let newest = frame::newest(frame::decode(&sectors[0]).ok(), frame::decode(&sectors[1]).ok());
        let text = newest.and_then(|frame| std::str::from_utf8(frame.payload).ok());
        Ok(text.and_then(|text| Env::parse(text, &self.names)).unwrap_or_default())
    }

    pub fn write(&mut self, env: &Env) -> Result<(), BootError> {
        let sectors = self.sectors()?;
        let [first, second] = [0, 1].map(|i| frame::decode(&sectors[i]).ok());
        let newest = frame::newest(first, second);
        let (seq, offset) = match newest {
            // The sector that is not the newest one.
            Some(frame) if Some(frame) == first => (frame.seq.saturating_add(1), SECTOR),
            Some(frame) => (frame.seq.saturating_add(1), 0),
            None => (1, 0),
        };
        let sector = frame::encode(seq, env.format(&self.names).as_bytes(), SECTOR)
            .map_err(|e| BootError::Config(format!("boot names are too long for the environment: {e}")))?;
        let fault = (self.faults)(self.writes);
        self.writes += 1;
        let (bytes, result) = match fault {
            Fault::None => (SECTOR, Ok(())),
            Fault::Lost => (0, Ok(())),
            Fault::Fails => (0, Err(io::Error::other("simulated write error"))),
            Fault::Torn(bytes) => (bytes.min(SECTOR), Err(io::Error::other("simulated power cut"))),
        };
        let offset = u64::try_from(offset).unwrap_or(0);
        self.put(&sector[..bytes], offset)?;
        result.map_err(io_error("write", &self.path))
    }

    /// Loses both sectors.
    pub fn erase(&mut self) -> Result<(), BootError> {
        self.put(&[0; 2 * SECTOR], 0)
    }

    fn put(&self, bytes: &[u8], offset: u64) -> Result<(), BootError> {
        let written = self.file.write_all_at(bytes, offset).and_then(|()| self.file.sync_data());
        written.map_err(io_error("write", &self.path))
    }

    fn sectors(&self) -> Result<[Vec<u8>; 2], BootError> {
        let mut sectors = [Vec::new(), Vec::new()];
        for (sector, offset) in sectors.iter_mut().zip([0, 512]) {
            let mut bytes = [0; SECTOR];
            let mut filled = 0;
            while filled < SECTOR {
                let at = offset + u64::try_from(filled).unwrap_or(0);
                match self.file.read_at(&mut bytes[filled..], at) {
                    Ok(0) => break,
                    Ok(n) => filled += n,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(io_error("read", &self.path)(e)),
                }
            }
            *sector = bytes[..filled].to_vec();
        }
        Ok(sectors)
    }
}
