//! Fleet provisioning by claim: certificates for a request or with a key, and the registration of their thing.
//!
//! [`Lab::provisioning`](crate::Lab::provisioning) puts it in place. A certificate is of no use before its registration;
//! from then on the broker takes it as its thing, whatever its subject says.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::ca::{Authority, CaError};
use crate::world::{Inbound, Outbound, To};

/// Topics of requests for certificates; those of answers match too and are passed over.
pub const CERTIFICATES: &str = "$aws/certificates/#";
/// Topics of registrations.
pub const TEMPLATES: &str = "$aws/provisioning-templates/#";
/// How long a token is good.
const TOKEN_LIFE: Duration = Duration::from_secs(3600);

/// Common names of certificates that belong to a thing, and which.
pub(crate) type Registered = Arc<Mutex<BTreeMap<String, String>>>;

/// What goes wrong with a request, each once, in the order in which they were given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It is served as ever: for those that come before one with a fault.
    None,
    /// It is not served but refused.
    Reject(u16, &'static str),
    /// It is served, its answer lost.
    LoseAnswer,
    /// It is served and answered with this.
    Answer(Value),
    /// It is accepted, and the certificate stays of no use.
    Inactive,
}

/// A certificate that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// Its id, which is its common name too.
    pub id: String,
    /// Its public key.
    pub key: Vec<u8>,
    /// The thing that it was registered for.
    pub thing: Option<String>,
    token: String,
    since: Duration,
}

/// The service with one template, which names things by their `SerialNumber`.
pub struct Provisioner {
    authority: Authority,
    registered: Registered,
    template: String,
    configuration: Map<String, Value>,
    faults: VecDeque<Fault>,
    made: Vec<Made>,
}

struct Refusal(u16, &'static str, &'static str);

impl Provisioner {
    pub(crate) fn new(authority: Authority, registered: Registered, template: &str) -> Self {
        Self {
            authority,
            registered,
            template: template.to_owned(),
            configuration: Map::new(),
            faults: VecDeque::new(),
            made: vec![],
        }
    }

    /// What the template sends to devices.
    pub fn configure(&mut self, key: &str, value: &str) {
        self.configuration.insert(key.to_owned(), value.into());
    }

    /// The next requests meet these.
    pub fn faults(&mut self, faults: &[Fault]) {
        self.faults.extend(faults.iter().cloned());
    }

    /// All certificates that were made, the last one last.
    #[must_use]
    pub fn made(&self) -> &[Made] {
        &self.made
    }

    /// Those that belong to a thing.
    #[must_use]
    pub fn registered(&self) -> Vec<&Made> {
        self.made.iter().filter(|made| made.thing.is_some()).collect()
    }

    /// Serves a request; nothing for the answers of others.
    pub fn serve(&mut self, request: &Inbound) -> Vec<Outbound> {
        let asked = request.topic.as_str();
        let register = format!("$aws/provisioning-templates/{}/provision/json", self.template);
        if asked.ends_with("/accepted") || asked.ends_with("/rejected") {
            return vec![];
        }
        let fault = self.faults.pop_front().unwrap_or(Fault::None);
        let body: Value = serde_json::from_slice(&request.payload).unwrap_or_default();
        let answer = match (&fault, asked) {
            (Fault::Reject(status, code), _) => Err(Refusal(*status, code, "as the rule says")),
            (_, "$aws/certificates/create/json") => self.create(None, request.now),
            (_, "$aws/certificates/create-from-csr/json") => {
                self.create(Some(body["certificateSigningRequest"].as_str().unwrap_or_default()), request.now)
            }
            (_, topic) if topic == register => self.register(&body, &fault, request.now),
            _ => Err(Refusal(404, "ResourceNotFoundException", "no such template")),
        };
        let (verdict, payload) = match answer {
            Ok(answer) => ("accepted", answer),
            Err(Refusal(status, code, message)) => {
                ("rejected", json!({"statusCode": status, "errorCode": code, "errorMessage": message}))
            }
        };
        let payload = match fault {
            Fault::LoseAnswer => return vec![],
            Fault::Answer(other) => other,
            _ => payload,
        };
        let topic = format!("{asked}/{verdict}");
        vec![Outbound { topic, payload: payload.to_string().into(), to: To::Requester }]
    }

    fn create(&mut self, request: Option<&str>, since: Duration) -> Result<Value, Refusal> {
        let id = format!("{:064x}", u128::from(fastrand::u64(..)) << 64 | u128::from(fastrand::u64(..)));
        let token = format!("token-{:032x}", fastrand::u128(..));
        let signed = match request {
            Some(request) => self.authority.sign(&id, request).map(|(pem, key)| (pem, key, None)),
            None => self
                .authority
                .device(&id, crate::Validity::Now)
                .map(|made| (made.certificate_pem, made.key_pem.clone().into_bytes(), Some(made.key_pem))),
        };
        let signed = signed.map_err(|e: CaError| {
            let _ = e;
            Refusal(
                400,
                "InvalidCertificateSigningRequest",
                "the request is none, or its key did not sign it",
            )
        });
        let (pem, key, private) = signed?;
        let mut answer =
            json!({"certificateId": id, "certificatePem": pem, "certificateOwnershipToken": token});
        if let Some(private) = private {
            answer["privateKey"] = private.into();
        }
        self.made.push(Made { id, key, thing: None, token, since });
        Ok(answer)
    }

    fn register(&mut self, body: &Value, fault: &Fault, now: Duration) -> Result<Value, Refusal> {
        let token = body["certificateOwnershipToken"].as_str().unwrap_or_default();
        let made = self.made.iter_mut().find(|made| made.token == token);
        let made = made.filter(|made| now < made.since + TOKEN_LIFE);
        let no_token = Refusal(400, "InvalidCertificateOwnershipToken", "unknown or too old");
        let made = made.ok_or(no_token)?;
        let no_name = Refusal(400, "InvalidParameters", "SerialNumber is missing");
        let thing = body["parameters"]["SerialNumber"].as_str().ok_or(no_name)?;
        made.thing = Some(thing.to_owned());
        if *fault != Fault::Inactive {
            let mut registered = self.registered.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            registered.insert(made.id.clone(), thing.to_owned());
        }
        Ok(json!({"thingName": thing, "deviceConfiguration": self.configuration}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service() -> Provisioner {
        Provisioner::new(Authority::new("root").unwrap(), Registered::default(), "gateways")
    }

    fn ask(service: &mut Provisioner, topic: &str, body: &Value, seconds: u64) -> (String, Value) {
        let request = Inbound {
            thing: "claim".into(),
            client_id: "x-fp".into(),
            topic: topic.into(),
            payload: body.to_string().into(),
            now: Duration::from_secs(seconds),
        };
        let said = service.serve(&request).remove(0);
        let verdict = said.topic.strip_prefix(topic).unwrap().to_owned();
        (verdict, serde_json::from_slice(&said.payload).unwrap())
    }

    const REGISTER: &str = "$aws/provisioning-templates/gateways/provision/json";

    #[test]
    fn a_certificate_belongs_to_its_thing_once_it_is_registered_within_the_hour() {
        for (seconds, verdict) in [(3599, "/accepted"), (3600, "/rejected")] {
            let mut service = service();
            let (_, made) = ask(&mut service, "$aws/certificates/create/json", &json!({}), 0);
            let body = json!({"certificateOwnershipToken": made["certificateOwnershipToken"],
                              "parameters": {"SerialNumber": "gw"}});
            assert_eq!(ask(&mut service, REGISTER, &body, seconds).0, verdict);
            let id = made["certificateId"].as_str().unwrap();
            let owner = service.registered.lock().unwrap().get(id).cloned();
            assert_eq!(owner.as_deref(), (seconds < 3600).then_some("gw"));
        }
    }

    #[test]
    fn what_is_wrong_is_refused_with_its_code() {
        let mut service = service();
        let request = json!({"certificateSigningRequest": "noise"});
        for (topic, body, code) in [
            ("$aws/certificates/create-from-csr/json", request, "InvalidCertificateSigningRequest"),
            (REGISTER, json!({"certificateOwnershipToken": "x"}), "InvalidCertificateOwnershipToken"),
            ("$aws/provisioning-templates/other/provision/json", json!({}), "ResourceNotFoundException"),
        ] {
            let (verdict, answer) = ask(&mut service, topic, &body, 0);
            assert_eq!((verdict.as_str(), answer["errorCode"].as_str()), ("/rejected", Some(code)));
        }
    }
}
