//! How much memory the allocator keeps of what was given back to it. A daemon that sleeps all day should not hold what
//! its start or an installation needed.

use std::ffi::c_void;
use std::ops::Range;

use nix::libc;

/// Pieces from this size on come from the kernel and go back to it at once, always (the C library would raise it when
/// the first such piece is freed): the buffers of an installation, and not the pieces that the network gives, for which
/// that would cost more than it saves.
#[cfg(target_env = "gnu")]
const FROM_KERNEL: libc::c_int = 1 << 20;

/// So much may be free at the end of the heap before it goes back by itself: with less, the heap would shrink and grow
/// with every piece of a download.
#[cfg(target_env = "gnu")]
const KEPT: libc::c_int = 1 << 20;

/// Tells the allocator to be thrifty. To be called before other threads run. Only the GNU C library has to be told.
pub fn be_thrifty() {
    #[cfg(target_env = "gnu")]
    {
        use libc::{M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, mallopt};
        for (what, value) in [(M_MMAP_THRESHOLD, FROM_KERNEL), (M_TRIM_THRESHOLD, KEPT), (M_ARENA_MAX, 1)] {
            // SAFETY: sets numbers inside the allocator. One that it refuses keeps its default.
            unsafe { mallopt(what, value) };
        }
    }
}

/// Gives all free memory back to the kernel, and lets go of the program's code: what runs again is found in the page
/// cache, and what was needed once, for the start or for an installation, is not held for good. Takes as long as the heap is
/// fragmented: for the ends of large work.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
    if let Some(code) = code() {
        // SAFETY: these pages are read from the program's file and never written to, so each comes back as it was. If the
        // kernel does not do it, they stay.
        unsafe { libc::madvise(code.start as *mut c_void, code.len(), libc::MADV_DONTNEED) };
    }
}

/// Where the code of the program itself is, in whole pages; not that of libraries.
fn code() -> Option<Range<usize>> {
    unsafe extern "C" fn first(info: *mut libc::dl_phdr_info, _: usize, found: *mut c_void) -> libc::c_int {
        // SAFETY: the C library hands over a valid description, and `found` is the range below.
        let (info, found) = unsafe { (&*info, &mut *found.cast::<Option<Range<usize>>>()) };
        // SAFETY: as many headers as it says.
        let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
        let is_code = |flags: libc::Elf32_Word| flags & (libc::PF_X | libc::PF_W) == libc::PF_X;
        for header in headers.iter().filter(|h| h.p_type == libc::PT_LOAD && is_code(h.p_flags)) {
            let place = |n| usize::try_from(n).unwrap_or_default();
            let start = place(info.dlpi_addr) + place(header.p_vaddr);
            *found = Some(start..start + place(header.p_memsz));
        }
        // The first one is the program; the rest is not looked at.
        1
    }
    let mut found = None::<Range<usize>>;
    // SAFETY: `first` takes `found` as what it is, and is not called after this returns.
    unsafe { libc::dl_iterate_phdr(Some(first), (&raw mut found).cast()) };
    // SAFETY: asks for a number.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok()?;
    // Beside it, in pages that it shares, may be something that was written to.
    let whole = found?;
    let pages = whole.start.next_multiple_of(page)..whole.end / page * page;
    (!pages.is_empty()).then_some(pages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_that_was_let_go_of_runs_again() {
        let code = code().unwrap();
        assert!(code.contains(&(give_back as *const () as usize)));
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let bounds = |line: &str| {
            let (from, to) = line.split_once(' ')?.0.split_once('-')?;
            Some(usize::from_str_radix(from, 16).ok()?..usize::from_str_radix(to, 16).ok()?)
        };
        let holds = |map: &Range<usize>| map.start <= code.start && code.end <= map.end;
        let line = maps.lines().find(|line| bounds(line).is_some_and(|map| holds(&map))).unwrap();
        assert!(line.contains(" r-xp "), "{line}");
        for _ in 0..3 {
            give_back();
        }
    }
}
