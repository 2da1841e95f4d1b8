//! How much memory the allocator keeps of what was given back to it.

/// Larger pieces come from the kernel and go back to it at once, always: the C library would raise this when the first
/// such piece is freed, and then keep the copies of the record that were read at the start for as long as it runs.
#[cfg(target_env = "gnu")]
const FROM_KERNEL: nix::libc::c_int = 192 << 10;

/// So much free memory at the end of the heap is kept.
#[cfg(target_env = "gnu")]
const KEPT: nix::libc::c_int = 64 << 10;

/// Tells the allocator to be thrifty: a daemon that sleeps all day should not hold what its start or an installation
/// needed. To be called before other threads run. Only the GNU C library has to be told.
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
