//! What a power cut must not take from an attempt. The file holds a secret for an hour: it is its owner's alone.

use serde_json::{Map, Value, json};

use super::answer::is_certificate_id;
use super::is_thing_name;

/// Larger ones are none of ours.
pub const MAX_RECORD: usize = 256 << 10;
const VERSION: u64 = 1;

/// How far the device came.
#[derive(Clone, PartialEq, Eq)]
pub enum Record {
    /// The certificate is on disk and waits for its device to be registered.
    Owned {
        /// Its id.
        certificate: String,
        /// Shows that this device asked for it.
        token: String,
        /// When it came, in seconds since 1970.
        since: u64,
    },
    /// The device is registered; the files that follow from that may be missing.
    Registered {
        /// Id of its certificate.
        certificate: String,
        /// As what.
        thing: String,
        /// What the template sent.
        configuration: Map<String, Value>,
    },
    /// The certificate is in the store and has not been shown yet.
    Untried {
        /// Its id.
        certificate: String,
    },
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (step, certificate) = match self {
            Self::Owned { certificate, .. } => ("Owned", certificate),
            Self::Registered { certificate, .. } => ("Registered", certificate),
            Self::Untried { certificate } => ("Untried", certificate),
        };
        f.debug_tuple(step).field(certificate).finish()
    }
}

impl Record {
    /// The bytes for the disk.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let text = match self {
            Self::Owned { certificate, token, since } => {
                json!({"version": VERSION, "step": "owned", "certificate": certificate, "token": token,
                       "since": since})
            }
            Self::Registered { certificate, thing, configuration } => {
                json!({"version": VERSION, "step": "registered", "certificate": certificate, "thing": thing,
                       "configuration": configuration})
            }
            Self::Untried { certificate } => {
                json!({"version": VERSION, "step": "untried", "certificate": certificate})
            }
        };
        text.to_string().into_bytes()
    }

    /// What the bytes say; `None` if that is nothing that this version can use.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let value: Value =
            (bytes.len() <= MAX_RECORD).then(|| serde_json::from_slice(bytes).ok()).flatten()?;
        let text = |member: &str| value.get(member).and_then(Value::as_str).map(str::to_owned);
        let certificate = text("certificate").filter(|id| is_certificate_id(id))?;
        if value.get("version")?.as_u64()? != VERSION {
            return None;
        }
        match value.get("step")?.as_str()? {
            "owned" => {
                Some(Self::Owned { certificate, token: text("token")?, since: value.get("since")?.as_u64()? })
            }
            "registered" => Some(Self::Registered {
                certificate,
                thing: text("thing").filter(|name| is_thing_name(name))?,
                configuration: value.get("configuration")?.as_object()?.clone(),
            }),
            "untried" => Some(Self::Untried { certificate }),
            _ => None,
        }
    }
}
