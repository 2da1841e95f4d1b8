//! What the cloud says while a device is provisioned: bytes in, bounded fields out.

use serde_json::{Map, Value};

use super::{KeyOrigin, is_thing_name};

const MAX_CERTIFICATE: usize = 32 << 10;
const MAX_KEY: usize = 16 << 10;
const MAX_TOKEN: usize = 16 << 10;
const MAX_CONFIGURATION: usize = 64 << 10;
/// Of what people are shown of a refusal.
const MAX_WORDS: usize = 300;

/// A certificate that waits for its device to be registered.
#[derive(Clone, PartialEq, Eq)]
pub struct Created {
    /// Its id: a plain name.
    pub certificate: String,
    /// Itself, in PEM form.
    pub pem: String,
    /// Its key in PEM form, where the cloud made it.
    pub key: Option<String>,
    /// Shows that this device asked for it. Secret.
    pub token: String,
}

impl std::fmt::Debug for Created {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Created").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// The device is registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    /// As what.
    pub thing: String,
    /// What the template sends to the device.
    pub configuration: Map<String, Value>,
}

/// The cloud says no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// As HTTP has them; 0 where it said none.
    pub status: u64,
    /// The name of the mistake.
    pub code: String,
    /// For people.
    pub message: String,
}

impl std::fmt::Display for Rejected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the cloud refuses it ({} {}): {}", self.status, self.code, self.message)
    }
}

impl Rejected {
    /// The token, or the certificate that it is for, is of no use any more.
    #[must_use]
    pub fn is_of_the_token(&self) -> bool {
        let code = self.code.to_ascii_lowercase();
        (400..500).contains(&self.status) && (code.contains("token") || code.contains("certificate"))
    }
}

/// An answer that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// No JSON object.
    #[error("it is no JSON object; is this the provisioning service of the cloud?")]
    NotAnObject,
    /// A member is missing or not what it must be.
    #[error("{member} {problem}")]
    Member {
        /// Its name.
        member: &'static str,
        /// What it is not.
        problem: &'static str,
    },
}

/// Reads the answer to the request for a certificate.
///
/// # Errors
/// Anything but what the service is documented to send.
pub fn created(payload: &[u8], key: KeyOrigin) -> Result<Created, AnswerError> {
    let mut members = object(payload)?;
    let certificate = text(&mut members, "certificateId", 128)?;
    if !is_certificate_id(&certificate) {
        let problem = "must be letters, digits and '-' alone: it names a directory";
        return Err(AnswerError::Member { member: "certificateId", problem });
    }
    let pem = text(&mut members, "certificatePem", MAX_CERTIFICATE)?;
    if !pem.starts_with("-----BEGIN CERTIFICATE-----") {
        return Err(AnswerError::Member {
            member: "certificatePem",
            problem: "is no certificate in PEM form",
        });
    }
    let key = match key {
        KeyOrigin::Device => None,
        KeyOrigin::Cloud => Some(text(&mut members, "privateKey", MAX_KEY)?),
    };
    if key.as_ref().is_some_and(|key| !key.starts_with("-----BEGIN ")) {
        return Err(AnswerError::Member { member: "privateKey", problem: "is no key in PEM form" });
    }
    let token = text(&mut members, "certificateOwnershipToken", MAX_TOKEN)?;
    Ok(Created { certificate, pem, key, token })
}

/// Reads the answer to the registration.
///
/// # Errors
/// Anything but what the service is documented to send.
pub fn registered(payload: &[u8]) -> Result<Registered, AnswerError> {
    let mut members = object(payload)?;
    let thing = text(&mut members, "thingName", 128)?;
    if !is_thing_name(&thing) {
        let problem = "is no thing name: 1 to 128 letters, digits, ':', '_' and '-'";
        return Err(AnswerError::Member { member: "thingName", problem });
    }
    let member = "deviceConfiguration";
    let configuration = match members.remove(member) {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(members)) => members,
        Some(_) => return Err(AnswerError::Member { member, problem: "is no object" }),
    };
    let size: usize =
        configuration.iter().map(|(key, value)| key.len() + value.as_str().map_or(64, str::len)).sum();
    if size > MAX_CONFIGURATION {
        return Err(AnswerError::Member { member, problem: "is larger than 64 KiB" });
    }
    if !configuration.values().all(|value| !value.is_object() && !value.is_array()) {
        return Err(AnswerError::Member { member, problem: "holds more than names and plain values" });
    }
    Ok(Registered { thing, configuration })
}

/// Reads a refusal; one that cannot be read is one too.
#[must_use]
pub fn rejected(payload: &[u8]) -> Rejected {
    let members = object(payload).unwrap_or_default();
    let words = |name: &str| {
        let text = members.get(name).and_then(Value::as_str).unwrap_or("no reason given");
        // Goes to logs and status.
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_WORDS).collect()
    };
    Rejected {
        status: members.get("statusCode").and_then(Value::as_u64).unwrap_or(0),
        code: words("errorCode"),
        message: words("errorMessage"),
    }
}

/// Whether `id` can be the name of a directory and of files, whatever else it is.
#[must_use]
pub fn is_certificate_id(id: &str) -> bool {
    (1..=128).contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !id.starts_with('-')
}

fn object(payload: &[u8]) -> Result<Map<String, Value>, AnswerError> {
    serde_json::from_slice(payload).map_err(|_| AnswerError::NotAnObject)
}

fn text(members: &mut Map<String, Value>, member: &'static str, most: usize) -> Result<String, AnswerError> {
    let problem = match members.remove(member) {
        None => "is missing",
        Some(Value::String(text)) if text.is_empty() => "is empty",
        Some(Value::String(text)) if text.len() > most => "is longer than it can be",
        Some(Value::String(text)) if text.contains('\0') => "holds a zero byte",
        Some(Value::String(text)) => return Ok(text),
        Some(_) => "is no text",
    };
    Err(AnswerError::Member { member, problem })
}
