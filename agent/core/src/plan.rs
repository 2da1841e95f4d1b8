//! From a document to an update: does it fit this device, is it new, which set and which slots does it mean?

use std::collections::BTreeMap;

use crate::boot::SetId;
use crate::fota::{Document, DocumentImage};
use crate::image::{Expect, Image};
use crate::record::{Record, SlotStatus};
use crate::update::{Origin, Outcome, Then, Update};

/// The slot sets as configured.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layout {
    /// Index of set A and of set B, as `bc_idx` names them.
    pub index: [u64; 2],
    /// Slot name to path, set A and set B; both sets have the same names.
    pub paths: [BTreeMap<String, String>; 2],
    /// Slots that are copied from the running set where a document does not name them.
    pub copy_if_missing: Vec<String>,
}

impl Layout {
    /// The paths of one set.
    #[must_use]
    pub fn set(&self, set: SetId) -> &BTreeMap<String, String> {
        &self.paths[usize::from(set == SetId::B)]
    }

    fn by_index(&self, index: u64) -> Option<SetId> {
        SetId::BOTH.into_iter().find(|s| self.index[usize::from(*s == SetId::B)] == index)
    }

    /// The slot that an image without `slot` means.
    fn default_slot(&self) -> Option<&str> {
        let names = self.set(SetId::A);
        match (names.len(), names.contains_key("rootfs")) {
            (1, _) => names.keys().next().map(String::as_str),
            (_, true) => Some("rootfs"),
            _ => None,
        }
    }
}

/// What the decision looks at.
#[derive(Debug, Clone, Copy)]
pub struct Device<'a> {
    /// The running, confirmed set.
    pub booted: SetId,
    /// The slots.
    pub layout: &'a Layout,
    /// What they hold.
    pub record: &'a Record,
    /// What this device calls itself, where it is configured.
    pub compatible: Option<&'a str>,
}

/// Who asks, and how far it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Who.
    pub origin: Origin,
    /// A set named by hand.
    pub set: Option<SetId>,
    /// How far.
    pub then: Then,
    /// The trial must reach the cloud.
    pub require_cloud: bool,
}

/// Resolves a document on this device.
///
/// # Errors
/// The outcome, where there is nothing to do: succeeded (`already running`), failed or rejected.
pub fn plan(document: &Document, device: &Device<'_>, request: Request) -> Result<Update, Outcome> {
    check_compatible(document, device)?;
    let mut images = name_slots(document, device.layout)?;
    if !document.force && runs_already(&images, device) {
        return Err(Outcome::succeeded("already running"));
    }
    let target = target(document.index, request.set, device)?;
    add_missing(&mut images, target, device)?;
    let version = document.images.iter().find_map(|i| i.version.clone());
    let update = Update {
        origin: request.origin,
        from: device.booted,
        target,
        images,
        version,
        then: request.then,
        require_cloud: request.require_cloud,
        retry: document.retry,
        written: vec![],
    };
    if let Some(why) = update.raw_digests().and_then(|d| device.record.ban(&d).map(str::to_owned))
        && !update.retry
    {
        return Err(Outcome::rejected(format!("this image is refused: {why}")));
    }
    Ok(update)
}

fn check_compatible(document: &Document, device: &Device<'_>) -> Result<(), Outcome> {
    for wanted in document.images.iter().filter_map(|i| i.compatible.as_deref()) {
        match device.compatible {
            Some(own) if own == wanted => {}
            Some(own) => {
                return Err(Outcome::rejected(format!(
                    "the image is for {wanted:?}, this device is {own:?}"
                )));
            }
            None => {
                return Err(Outcome::rejected(format!(
                    "the image is for {wanted:?}, and this device does not say what it is: set device.compatible"
                )));
            }
        }
    }
    Ok(())
}

fn name_slots(document: &Document, layout: &Layout) -> Result<Vec<Image>, Outcome> {
    let mut images: Vec<Image> = Vec::with_capacity(document.images.len());
    for wanted in &document.images {
        let slot = match (&wanted.slot, layout.default_slot()) {
            (Some(slot), _) => slot.clone(),
            (None, Some(slot)) => slot.to_owned(),
            (None, None) => {
                return Err(Outcome::rejected("the image names no slot, and this device has several"));
            }
        };
        if !layout.set(SetId::A).contains_key(&slot) {
            let known: Vec<_> = layout.set(SetId::A).keys().map(String::as_str).collect();
            return Err(Outcome::rejected(format!(
                "unknown slot {slot:?}: this device has {}",
                known.join(", ")
            )));
        }
        if images.iter().any(|i| i.slot == slot) {
            return Err(Outcome::rejected(format!("slot {slot:?} is named twice")));
        }
        images.push(image(wanted, slot));
    }
    Ok(images)
}

fn image(wanted: &DocumentImage, slot: String) -> Image {
    let DocumentImage { source, compression, raw, file, .. } = wanted;
    Image { slot, source: source.clone(), compression: *compression, raw: *raw, file: *file }
}

/// The running set holds, in every slot that the document names, what the document wants there.
fn runs_already(images: &[Image], device: &Device<'_>) -> bool {
    if device.record.confirmed != Some(device.booted) {
        return false;
    }
    let slots = device.record.slots(device.booted);
    images.iter().all(|i| slots.get(&i.slot).is_some_and(|held| holds(held, i)))
}

/// `None` of a digest on either side says nothing; at least one must be there and none may differ.
fn holds(held: &SlotStatus, image: &Image) -> bool {
    let checks = [
        image.raw.sha256.map(|d| d == held.sha256),
        image.file.sha256.and_then(|d| held.file_sha256.map(|h| d == h)),
        image.file.md5.and_then(|d| held.md5.map(|h| d == h)),
    ];
    checks.contains(&Some(true)) && !checks.contains(&Some(false))
}

fn target(index: Option<u64>, set: Option<SetId>, device: &Device<'_>) -> Result<SetId, Outcome> {
    let other = device.booted.other();
    let by_index = match index {
        None => other,
        Some(index) => device
            .layout
            .by_index(index)
            .ok_or_else(|| Outcome::rejected(format!("bc_idx {index}: no slot set has this index")))?,
    };
    if by_index == device.booted {
        return Err(Outcome::failed("bad fota data"));
    }
    match set {
        Some(set) if set == device.booted => Err(Outcome::rejected(format!(
            "set {set} is running: it is never written; the other one is {other}"
        ))),
        _ => Ok(by_index),
    }
}

/// Slots that the document does not name must hold, or get, what the running set holds.
fn add_missing(images: &mut Vec<Image>, target: SetId, device: &Device<'_>) -> Result<(), Outcome> {
    let source_set = device.booted;
    for (slot, path) in device.layout.set(source_set) {
        if images.iter().any(|i| i.slot == *slot) {
            continue;
        }
        let running = device.record.slots(source_set).get(slot);
        let there = device.record.slots(target).get(slot);
        match (running, there) {
            (Some(running), Some(there)) if running.sha256 == there.sha256 => {}
            (Some(running), _) if device.layout.copy_if_missing.contains(slot) => images.push(Image {
                slot: slot.clone(),
                source: path.clone(),
                compression: Some(crate::image::Compression::None),
                raw: Expect { size: Some(running.size), sha256: Some(running.sha256), md5: None },
                file: Expect::default(),
            }),
            (None, _) if device.layout.copy_if_missing.contains(slot) => {
                return Err(Outcome::rejected(format!(
                    "the document does not name slot {slot:?}, and what the running set holds there is not recorded, \
                     so that it cannot be copied: name it"
                )));
            }
            _ => {
                return Err(Outcome::rejected(format!(
                    "the document does not name slot {slot:?} of set {target}, and it does not hold what the running set holds"
                )));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fota;
    use crate::image::Sha256;
    use serde_json::{Value, json};

    const SHA: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const MD5: &str = "d41d8cd98f00b204e9800998ecf8427e";

    fn layout(slots: &[&str]) -> Layout {
        let paths = |set: &str| slots.iter().map(|s| ((*s).to_owned(), format!("/dev/{s}-{set}"))).collect();
        Layout { index: [0, 1], paths: [paths("a"), paths("b")], copy_if_missing: vec![] }
    }

    fn status(sha256: &str) -> SlotStatus {
        SlotStatus {
            sha256: sha256.parse().unwrap(),
            size: 5,
            file_sha256: None,
            md5: Some(MD5.parse().unwrap()),
            version: None,
            installed_at: 0,
            installs: 1,
        }
    }

    fn on_a() -> Record {
        Record { confirmed: Some(SetId::A), ..Record::default() }
    }

    fn request() -> Request {
        Request { origin: Origin::Local, set: None, then: Then::Reboot, require_cloud: true }
    }

    fn planned(document: &Value, layout: &Layout, record: &Record) -> Result<Update, Outcome> {
        let device = Device { booted: SetId::A, layout, record, compatible: Some("acme") };
        plan(&fota::parse(document).unwrap(), &device, request())
    }

    fn doc(image: Value) -> Value {
        json!({"operation":"fota","image":image})
    }

    fn image() -> Value {
        json!({"url":"https://h/i","sha256":SHA})
    }

    #[test]
    fn an_image_goes_to_the_set_that_does_not_run() {
        let u = planned(&doc(image()), &layout(&["rootfs"]), &on_a()).unwrap();
        assert_eq!((u.from, u.target, u.images[0].slot.as_str()), (SetId::A, SetId::B, "rootfs"));
    }

    #[test]
    fn bc_idx_of_the_running_set_is_bad_fota_data() {
        let d = json!({"operation":"fota","bc_idx":0,"bc_crc":MD5,"bc_size":1,"bc_url":"https://h/i"});
        assert_eq!(planned(&d, &layout(&["rootfs"]), &on_a()), Err(Outcome::failed("bad fota data")));
        let d = json!({"operation":"fota","bc_idx":7,"bc_crc":MD5,"bc_size":1,"bc_url":"https://h/i"});
        assert!(matches!(planned(&d, &layout(&["rootfs"]), &on_a()), Err(Outcome::Rejected { .. })));
    }

    #[test]
    fn what_runs_already_succeeds_without_download_and_before_the_index_check() {
        let mut record = on_a();
        record.slots_a.insert("rootfs".into(), status(SHA));
        let mut d = doc(image());
        assert_eq!(planned(&d, &layout(&["rootfs"]), &record), Err(Outcome::succeeded("already running")));
        let by_md5 = json!({"operation":"fota","bc_idx":0,"bc_crc":MD5,"bc_size":5,"bc_url":"https://h/i"});
        assert_eq!(
            planned(&by_md5, &layout(&["rootfs"]), &record),
            Err(Outcome::succeeded("already running"))
        );
        d["force"] = json!(true);
        assert!(planned(&d, &layout(&["rootfs"]), &record).is_ok());
    }

    #[test]
    fn a_set_that_runs_unconfirmed_does_not_answer_for_a_job() {
        let mut record = Record { confirmed: Some(SetId::B), ..Record::default() };
        record.slots_a.insert("rootfs".into(), status(SHA));
        assert!(planned(&doc(image()), &layout(&["rootfs"]), &record).is_ok());
    }

    #[test]
    fn an_image_for_another_product_is_rejected() {
        let mut i = image();
        i["compatible"] = json!("other");
        assert!(
            planned(&doc(i), &layout(&["rootfs"]), &on_a())
                .unwrap_err()
                .reason()
                .contains("this device is \"acme\"")
        );
    }

    #[test]
    fn unknown_double_and_unnamed_slots_are_rejected() {
        let l = layout(&["boot", "system"]);
        assert!(planned(&doc(image()), &l, &on_a()).unwrap_err().reason().contains("names no slot"));
        let mut i = image();
        i["slot"] = json!("../etc");
        assert!(planned(&doc(i.clone()), &l, &on_a()).unwrap_err().reason().contains("unknown slot"));
        i["slot"] = json!("boot");
        let twice = json!({"operation":"fota","images":[i, i]});
        assert!(planned(&twice, &l, &on_a()).unwrap_err().reason().contains("named twice"));
    }

    #[test]
    fn every_slot_is_named_or_equal_or_copied() {
        let mut l = layout(&["boot", "rootfs"]);
        let mut record = on_a();
        assert!(
            planned(&doc(image()), &l, &record).unwrap_err().reason().contains("does not name slot \"boot\"")
        );
        let other: Sha256 = SHA.parse().unwrap();
        record.slots_a.insert("boot".into(), status(&"ab".repeat(32)));
        record.slots_b.insert("boot".into(), status(&"ab".repeat(32)));
        assert_eq!(planned(&doc(image()), &l, &record).unwrap().images.len(), 1);
        record.slots_b.get_mut("boot").unwrap().sha256 = other;
        assert!(planned(&doc(image()), &l, &record).is_err());
        l.copy_if_missing = vec!["boot".into()];
        let u = planned(&doc(image()), &l, &record).unwrap();
        assert_eq!((u.images[1].source.as_str(), u.images[1].raw.size), ("/dev/boot-a", Some(5)));
        record.slots_a.clear();
        assert!(planned(&doc(image()), &l, &record).unwrap_err().reason().contains("not recorded"));
    }

    #[test]
    fn a_banned_digest_is_rejected_unless_retry() {
        let mut record = on_a();
        record.note_bad_trial(&[SHA.parse().unwrap()], true, "health check: no");
        let mut d = doc(image());
        assert!(
            planned(&d, &layout(&["rootfs"]), &record).unwrap_err().reason().contains("health check: no")
        );
        d["retry"] = json!(true);
        assert!(planned(&d, &layout(&["rootfs"]), &record).is_ok());
    }

    #[test]
    fn a_set_named_by_hand_is_never_the_running_one() {
        let l = layout(&["rootfs"]);
        let record = on_a();
        let device = Device { booted: SetId::A, layout: &l, record: &record, compatible: None };
        let ask = Request { set: Some(SetId::A), ..request() };
        let refused = plan(&fota::parse(&doc(image())).unwrap(), &device, ask).unwrap_err();
        assert!(refused.reason().contains("never written"));
    }
}
