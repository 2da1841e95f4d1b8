//! What can go wrong with the device from outside: its disk, its network, its clock.

use std::ops::Range;

use serde_json::{Value, json};

/// What a guest writes its page cache in, in sectors of 512 bytes.
const PAGE_SECTORS: u64 = 8;

/// Which requests to the disk fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Flushes of the disk's cache. Lasts until the power is cut: QEMU itself flushes before it changes a disk, and
    /// that fails too.
    Flush,
}

/// A disk that answers some requests with an error. It concerns the guest alone: firmware sees it too, the write log
/// does not (what failed was not written).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskError {
    /// Which requests.
    pub request: Request,
    /// Those that touch one of these sectors of 512 bytes; `None`: all.
    pub sectors: Option<Vec<u64>>,
    /// Such as `EIO` (5) or `ENOSPC` (28).
    pub errno: i32,
}

impl DiskError {
    /// EIO for requests that touch this range of the disk (bytes), if they are made of whole pages of 4 KiB: one
    /// sector in each page is broken, not all, so that a broken MiB is 256 rules and not 2048.
    pub fn pages(request: Request, range: Range<u64>) -> Self {
        let from = range.start / 512 / PAGE_SECTORS * PAGE_SECTORS;
        let to = range.end.div_ceil(512);
        let step = usize::try_from(PAGE_SECTORS).unwrap_or(1);
        Self { request, sectors: Some((from..to).step_by(step).collect()), errno: nix::libc::EIO }
    }

    /// EIO for all of them.
    pub fn everywhere(request: Request) -> Self {
        Self { request, sectors: None, errno: nix::libc::EIO }
    }

    /// The rules of QEMU's `blkdebug` driver.
    pub(crate) fn rules(&self) -> Value {
        let kinds: &[&str] = match self.request {
            Request::Read => &["read"],
            Request::Write => &["write", "write-zeroes"],
            Request::Flush => &["flush"],
        };
        let rule = |kind: &str, sector: Option<&u64>| {
            // `none`: from the moment on that the rule exists, not from an event of the driver above.
            let mut rule = json!({ "event": "none", "iotype": kind, "errno": self.errno });
            if let Some(sector) = sector {
                rule["sector"] = json!(sector);
            }
            rule
        };
        let of_kind = |kind: &&str| match &self.sectors {
            None => vec![rule(kind, None)],
            Some(sectors) => sectors.iter().map(|sector| rule(kind, Some(sector))).collect(),
        };
        kinds.iter().flat_map(of_kind).collect()
    }
}

/// The network cable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// Plugged in.
    Up,
    /// Pulled out: the guest sees the loss of carrier.
    Down,
}

/// What the device's clock says at power-on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Clock {
    /// The time of the machine, in UTC.
    #[default]
    Right,
    /// The begin of 1970, as after an empty battery.
    Epoch,
    /// Such as `2031-05-01T12:00:00`, in UTC.
    At(String),
}

impl Clock {
    pub(crate) fn base(&self) -> String {
        match self {
            Self::Right => "base=utc".into(),
            Self::Epoch => "base=1970-01-01T00:00:00".into(),
            Self::At(time) => format!("base={time}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_page_of_a_broken_range_has_a_broken_sector() {
        let error = DiskError::pages(Request::Write, 4096 + 512..3 * 4096 + 1);
        assert_eq!(error.sectors, Some(vec![8, 16, 24]));
        assert_eq!(error.rules().as_array().unwrap().len(), 6, "for writes and for writes of zeros");
    }
}
