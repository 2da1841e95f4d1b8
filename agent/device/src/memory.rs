//! How much memory the allocator keeps of what was given back to it. A daemon that sleeps all day should not hold what
//! its start or an installation needed.

/// Pieces from this size on come from the kernel and go back to it at once, always (the C library would raise it when
/// the first such piece is freed): the buffers of an installation, and not the pieces that the network gives, for which
/// that would cost more than it saves.
#[cfg(target_env = "gnu")]
const FROM_KERNEL: nix::libc::c_int = 1 << 20;

/// So much may be free at the end of the heap before it goes back by itself: with less, the heap would shrink and grow
/// with every piece of a download.
#[cfg(target_env = "gnu")]
const KEPT: nix::libc::c_int = 1 << 20;

/// Tells the allocator to be thrifty. To be called before other threads run. Only the GNU C library has to be told.
pub fn be_thrifty() {
    #[cfg(target_env = "gnu")]
    {
        use nix::libc::{M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, mallopt};
        for (what, value) in [(M_MMAP_THRESHOLD, FROM_KERNEL), (M_TRIM_THRESHOLD, KEPT), (M_ARENA_MAX, 1)] {
            // SAFETY: sets numbers inside the allocator. One that it refuses keeps its default.
            unsafe { mallopt(what, value) };
        }
    }
}

/// Gives all free memory back to the kernel. Takes as long as the heap is fragmented: for the ends of large work.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: touches free memory only.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
