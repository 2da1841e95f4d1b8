//! Exit codes, in the sense of `sysexits.h` where it has one. They are part of the interface: scripts look at them.

use std::process::ExitCode;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Exit {
    /// Done as asked (0).
    Ok = 0,
    /// `status --check`: something needs attention; `job run`: the job failed; `chariotd`: to be started again (1).
    Attention = 1,
    /// `fota handle`: a reset is due and was not done (10).
    ResetDue = 10,
    /// The command line is wrong (64).
    Usage = 64,
    /// The input is wrong: a job document, an image, a digest (65).
    Data = 65,
    /// The input cannot be read (66).
    NoInput = 66,
    /// Nobody answers: no daemon where one is needed, no server (69).
    Unavailable = 69,
    /// A defect of otandem itself (70).
    Software = 70,
    /// The system does not do what it should: a device, a bootloader tool (71).
    System = 71,
    /// Output cannot be written; no space (73).
    CannotCreate = 73,
    /// Reading or writing failed (74).
    Io = 74,
    /// Not now, try again: another update is under way, a hook said not now (75).
    TempFail = 75,
    /// The other side does not keep to the protocol: another version of the daemon (76).
    Protocol = 76,
    /// The caller may not do that (77).
    NoPermission = 77,
    /// The configuration is wrong (78).
    Config = 78,
}

impl Exit {
    /// The number.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
