//! A slot that is a block device.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::libc;

use super::slot::{self, HEAD, Slot};

/// The kernel's interface to block devices that no crate of ours wraps.
mod ioctl {
    use nix::libc::c_int;
    nix::ioctl_read_bad!(logical_block_size, nix::request_code_none!(0x12, 104), c_int);
    nix::ioctl_write_ptr_bad!(zero_out, nix::request_code_none!(0x12, 127), [u64; 2]);
}

/// At most this much is zeroed in one call, so that a stop is not kept waiting for long.
const ZERO_AT_ONCE: u64 = 64 << 20;

/// An open block device. One descriptor for everything: what was checked is what is written.
pub(crate) struct BlockSlot {
    file: File,
    path: PathBuf,
    capacity: u64,
    align: usize,
    /// Whether the kernel zeroes ranges of it by itself.
    zeroes: bool,
}

impl BlockSlot {
    /// `file`: opened for reading and writing, exclusive and direct.
    pub(crate) fn new(file: File, path: &Path) -> io::Result<Self> {
        use std::io::{Seek, SeekFrom};
        let mut file = file;
        let capacity = file.seek(SeekFrom::End(0))?;
        let mut block = 0;
        // SAFETY: the descriptor is open, and the kernel writes one c_int.
        unsafe { ioctl::logical_block_size(file.as_raw_fd(), &mut block) }?;
        let align = usize::try_from(block).ok().filter(|b| b.is_power_of_two() && *b <= HEAD);
        let align = align.ok_or_else(|| io::Error::other(format!("logical block size of {block} bytes")))?;
        Ok(Self { file, path: path.to_owned(), capacity, align, zeroes: true })
    }

    fn zero_by_kernel(&self, at: u64, len: u64) -> io::Result<()> {
        // SAFETY: the descriptor is open, and the kernel reads two u64.
        unsafe { ioctl::zero_out(self.file.as_raw_fd(), &[at, len]) }?;
        Ok(())
    }
}

impl Slot for BlockSlot {
    fn path(&self) -> &Path {
        &self.path
    }

    fn capacity(&self) -> u64 {
        self.capacity
    }

    fn align(&self) -> usize {
        self.align
    }

    fn in_place(&self) -> bool {
        true
    }

    fn holds(&mut self, size: u64, _complete: bool) -> bool {
        size <= self.capacity
    }

    fn spoil(&mut self) -> io::Result<()> {
        slot::spoil_in_place(self)
    }

    fn begin(&mut self, _keep: u64) -> io::Result<()> {
        Ok(())
    }

    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<usize> {
        retry_buffered(&self.file, || self.file.write_at(bytes, at))
    }

    fn zero(&mut self, at: u64, len: u64) -> io::Result<()> {
        let (mut at, mut left) = (at, len);
        while left > 0 {
            let n = left.min(ZERO_AT_ONCE);
            if self.zeroes {
                match self.zero_by_kernel(at, n) {
                    Ok(()) => {}
                    Err(e) if no_such_function(&e) => self.zeroes = false,
                    Err(e) => return Err(e),
                }
            }
            if !self.zeroes {
                slot::write_zeros(self, at, n)?;
            }
            (at, left) = (at + n, left - n);
        }
        Ok(())
    }

    fn read_at(&mut self, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        retry_buffered(&self.file, || self.file.read_at(bytes, at))
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn seal(&mut self, _size: u64) -> io::Result<()> {
        self.file.sync_all()
    }

    fn publish(&mut self, head: &[u8]) -> io::Result<()> {
        slot::publish_in_place(self, head)
    }

    fn discard(&mut self) {}
}

/// Repeats an operation through the page cache if the place does not take direct I/O after all.
pub(crate) fn retry_buffered<T>(file: &File, mut operation: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    match operation() {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) && leave_direct(file)? => operation(),
        other => other,
    }
}

/// Ends direct I/O; `false` if it was not in use.
fn leave_direct(file: &File) -> io::Result<bool> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    if !flags.contains(OFlag::O_DIRECT) {
        return Ok(false);
    }
    fcntl(file, FcntlArg::F_SETFL(flags - OFlag::O_DIRECT))?;
    Ok(true)
}

fn no_such_function(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOTTY | libc::EINVAL | libc::ENOSYS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_kernel_zeroes_nothing_zeros_are_written() {
        // A file answers the request as a driver does that does not know it.
        let file = tempfile::tempfile().unwrap();
        let size = 3 * HEAD as u64;
        file.write_all_at(&vec![0xff; 3 * HEAD], 0).unwrap();
        let mut slot = BlockSlot { file, path: "/dev/test".into(), capacity: size, align: 512, zeroes: true };
        slot.zero(512, size - 1024).unwrap();
        assert!(!slot.zeroes, "it is asked once");
        let mut bytes = vec![1; 3 * HEAD];
        assert_eq!(slot.read_at(&mut bytes, 0).unwrap(), bytes.len());
        let (first, last) = (512, bytes.len() - 512);
        assert!(bytes[first..last].iter().all(|b| *b == 0));
        assert!(bytes[..first].iter().chain(&bytes[last..]).all(|b| *b == 0xff));
    }
}
