//! What keeps a module from doing anything but compute, also where it finds a defect of the engine.

use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, geteuid, setgroups, setresgid, setresuid};

/// Seconds of processor time until the kernel ends the process; the engine stops a module well before.
const CPU: u64 = 2;
/// Bytes of address space: the program, the request, and more than the engine may take.
const ADDRESS_SPACE: u64 = 192 << 20;
/// Of the user that owns nothing.
const NOBODY: u32 = 65534;

/// Gives up root, then the right to open any file or socket, to start any process or thread, to write any file, and to use
/// more than a little time and memory. What is open stays open: the three standard streams.
///
/// # Errors
/// One line: the system does not let us; then nothing may run.
pub(crate) fn confine() -> Result<(), String> {
    let fail = |what: &'static str| move |e: nix::Error| format!("cannot {what}, so nothing is run: {e}");
    if geteuid().is_root() {
        // Root is not held to the number of processes, and could raise every limit again.
        let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        setgroups(&[])
            .and_then(|()| setresgid(group, group, group))
            .and_then(|()| setresuid(user, user, user))
            .map_err(fail("give up root"))?;
    }
    prctl::set_no_new_privs().and_then(|()| prctl::set_dumpable(false)).map_err(fail("give up rights"))?;
    let limits = [
        (Resource::RLIMIT_CORE, 0, 0),
        (Resource::RLIMIT_FSIZE, 0, 0),
        (Resource::RLIMIT_CPU, CPU, CPU + 1),
        (Resource::RLIMIT_AS, ADDRESS_SPACE, ADDRESS_SPACE),
        (Resource::RLIMIT_NPROC, 0, 0),
        (Resource::RLIMIT_NOFILE, 0, 0),
    ];
    for (resource, soft, hard) in limits {
        setrlimit(resource, soft, hard).map_err(fail("set a limit"))?;
    }
    Ok(())
}
