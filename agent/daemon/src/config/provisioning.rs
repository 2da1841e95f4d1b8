//! `[provisioning]`: how a device gets a certificate of its own; and what a certificate store says of the cloud.

use std::path::{Path, PathBuf};
use std::time::Duration;

use otandem_core::formats::Format;
use otandem_core::provisioning::{KeyOrigin, is_template_name};
use otandem_device::certstore::Store;
use serde::Deserialize;
use toml::Value;

use super::Area;
use super::check::Check;
use super::fragments;
use super::settings::{CloudSettings, Credentials, Feature, ProvisioningSettings};

const AREA: Area = Area::Provisioning;
/// In the state directory: the name that a template gave to this device.
const THING_FILE: &str = "thing-name";
const NOTIFY_TIMEOUT: Duration = Duration::from_secs(60);

/// Something that a template is told of this device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parameter {
    /// This text.
    Text(String),
    /// The first line of this file, when it is asked for.
    File(PathBuf),
}

impl<'de> Deserialize<'de> for Parameter {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Ok(match Value::deserialize(d)? {
            Value::String(text) => Self::Text(text),
            Value::Integer(number) => Self::Text(number.to_string()),
            Value::Boolean(yes) => Self::Text(yes.to_string()),
            Value::Table(table) if table.len() == 1 => match table.get("file") {
                Some(Value::String(path)) => Self::File(path.into()),
                _ => return Err(wrong()),
            },
            _ => return Err(wrong()),
        })
    }
}

fn wrong<E: serde::de::Error>() -> E {
    E::custom("expected a text or { file = \"...\" } for each parameter")
}

impl Check<'_> {
    /// The claim's store, and where a template's name for this device is kept, where one is asked.
    pub(super) fn claim(f: &fragments::Provisioning, state_dir: &Path) -> Option<(PathBuf, PathBuf)> {
        f.claim_store.clone().filter(|_| is_on(f)).map(|claim| (claim, state_dir.join(THING_FILE)))
    }

    /// What the device's store, or else the claim's, says of the broker, where the configuration does not.
    pub(super) fn endpoint(
        &mut self,
        f: &fragments::Cloud,
        claim: Option<&Path>,
    ) -> Option<(String, Option<u16>)> {
        if let Some(endpoint) = f.endpoint.clone().filter(|e| !e.is_empty()) {
            return Some((endpoint, f.port));
        }
        for dir in f.cert_store.as_deref().into_iter().chain(claim) {
            match Store::at(dir).endpoint() {
                Ok(None) => {}
                Ok(Some((host, port))) => return Some((host, f.port.or(port))),
                Err(e) => {
                    self.wrong("cloud.cert-store", e.to_string(), Area::Cloud);
                    return None;
                }
            }
        }
        None
    }

    pub(super) fn provisioning(
        &mut self,
        f: fragments::Provisioning,
        cloud: &Feature<CloudSettings>,
    ) -> Option<ProvisioningSettings> {
        if !is_on(&f) {
            return None;
        }
        if *cloud == Feature::Off {
            let problem = "needs a cloud: set cloud.endpoint, or put endpoint.txt into one of the stores";
            self.wrong("provisioning.claim-store", problem, AREA);
        }
        if let Some(CloudSettings { credentials: Credentials::Files { .. }, .. }) = cloud.on() {
            let problem = "needs cloud.cert-store in place of cert and key: a new certificate is put there";
            self.wrong("provisioning.claim-store", problem, AREA);
        }
        let template = f.template.unwrap_or_default();
        if !is_template_name(&template) {
            let problem = format!("{template:?}: name the template, 1 to 36 letters, digits, '_' and '-'");
            self.wrong("provisioning.template", problem, AREA);
        }
        let key = match f.key.as_deref() {
            None | Some("device") => KeyOrigin::Device,
            Some("cloud") => KeyOrigin::Cloud,
            Some(other) => {
                self.wrong("provisioning.key", format!("{other:?}: use device or cloud"), AREA);
                KeyOrigin::Device
            }
        };
        let parameters = f.parameters.unwrap_or_default();
        for (name, parameter) in &parameters {
            if let Parameter::File(path) = parameter {
                let key = format!("provisioning.parameters.{name}");
                self.some_absolute(&key, Some(path.clone()), AREA);
            }
        }
        let format = f.outformat.as_deref().map_or(Ok(Format::Json), |name| {
            name.parse::<Format>().map_err(|e| self.wrong("provisioning.outformat", e.to_string(), AREA))
        });
        let outfile = self.some_absolute("provisioning.outfile", f.outfile, AREA);
        Some(ProvisioningSettings {
            claim_store: self
                .some_absolute("provisioning.claim-store", f.claim_store, AREA)
                .unwrap_or_default(),
            template,
            parameters,
            key,
            outfile: outfile.zip(format.ok()),
            notify_command: f.notify_command.filter(|c| !c.is_empty()),
            notify_timeout: self.positive(
                "provisioning.notify-timeout",
                f.notify_timeout,
                NOTIFY_TIMEOUT,
                AREA,
            ),
            renew_before: f.renew_before.map(|span| span.0).filter(|span| !span.is_zero()),
            client_id: f.client_id.filter(|id| !id.is_empty()),
        })
    }
}

/// A table without a claim is not in use (yet).
fn is_on(f: &fragments::Provisioning) -> bool {
    f.claim_store.as_ref().is_some_and(|dir| !dir.as_os_str().is_empty())
}
