//! A device with services and update files, and the lab's shadow service. It panics where something does not go as it
//! must: it is for tests.

use std::fs;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use otandem_lab::Direction;
use otandem_lab::policy::{Action, Policy};
use otandem_lab::shadow::{FILTER, Shadow, Shadows};
use serde_json::{Value, json};

use crate::world::{LIMIT, World};

/// The table of the configuration that is tried.
pub const TABLE: &str = "services.test";

/// A device with a directory of definitions and one for updates, and the shadow service.
pub struct Desk {
    /// The device and its cloud.
    pub world: World,
    /// The shadow service, of all things.
    pub shadows: Arc<Mutex<Shadows>>,
}

impl Deref for Desk {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

impl Desk {
    /// Not switched on.
    #[must_use]
    pub fn off() -> Self {
        let desk = Self { world: World::off(|spec| spec), shadows: Arc::default() };
        let shadows = Arc::clone(&desk.shadows);
        desk.lab.hook(FILTER, Box::new(move |request| shadows.lock().unwrap().serve(request)));
        let about = "$aws/things/*/shadow/*";
        let policy = Policy::jobs().allow(Action::Publish, about).allow(Action::Subscribe, about);
        desk.lab.set_policy(policy.allow(Action::Receive, about));
        fs::create_dir_all(desk.path("svcs")).unwrap();
        for part in ["tmp", "new", "failed"] {
            fs::create_dir_all(desk.path("shadow").join(part)).unwrap();
        }
        desk.set(TABLE, "directory", "svcs");
        desk.set(TABLE, "updates", "shadow");
        desk
    }

    /// Configures a path in the device's folder.
    pub fn set(&self, table: &str, key: &str, path: &str) {
        let path = self.path(path).display().to_string();
        self.device.configure(table, key, &format!("{path:?}")).unwrap();
    }

    /// Switched on, and connected.
    #[must_use]
    pub fn on(self) -> Self {
        self.device.power_on().unwrap();
        self.wait_connected(1);
        self
    }

    /// A path in the device's folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.device.folder().path(name)
    }

    /// A file of the device, as far as it can be read.
    #[must_use]
    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Defines a service whose command adds a line to `KEY.log`; `more` is put on top.
    pub fn define(&self, key: &str, format: &str, more: &Value) {
        let log = self.path(&format!("{key}.log"));
        let mut definition = json!({
            "key": key, "outfile": self.path(&format!("{key}.rc")), "outformat": format, "informat": format,
            "notifycmd": format!("echo told >> {}", log.display()),
        });
        definition.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
        fs::write(self.path(&format!("svcs/{key}.json")), definition.to_string()).unwrap();
    }

    /// Moves an update in.
    pub fn put(&self, name: &str, text: &str) {
        fs::write(self.path("shadow/tmp").join(name), text).unwrap();
        fs::rename(self.path("shadow/tmp").join(name), self.path("shadow/new").join(name)).unwrap();
    }

    /// Updates that are still there.
    #[must_use]
    pub fn left(&self) -> usize {
        fs::read_dir(self.path("shadow/new")).unwrap().count()
    }

    /// What an operator writes into the shadow.
    pub fn change_of(&self, thing: &str, name: Option<&str>, state: &Value) {
        let said = self.shadows.lock().unwrap().change(thing, name, state, self.lab.now());
        for (topic, payload) in said {
            self.lab.push(&topic, payload.to_string());
        }
    }

    /// The same, of the device's own thing.
    pub fn change(&self, state: &Value) {
        self.change_of(&self.thing, None, state);
    }

    /// Waits until the shadow is so.
    pub fn wait_of<T>(&self, thing: &str, name: Option<&str>, seen: impl Fn(&Shadow) -> Option<T>) -> T {
        let shadows = Arc::clone(&self.shadows);
        self.wait_lab("the shadow", |_| shadows.lock().unwrap().get(thing, name).and_then(&seen))
    }

    /// Waits until the device's own shadow reports this.
    pub fn wait_reported(&self, reported: &Value) {
        self.wait_of(&self.thing, None, |shadow| (json!(shadow.reported) == *reported).then_some(()));
    }

    /// Waits until a file of the device is so.
    pub fn wait_file(&self, name: &str, seen: impl Fn(&str) -> bool) {
        let end = Instant::now() + LIMIT;
        while !seen(&self.read(name)) {
            assert!(Instant::now() < end, "{name}: {:?}", self.read(name));
            std::thread::yield_now();
        }
    }

    /// Waits until the status of the table, with all that wants attention in it, is so.
    pub fn wait_status(&self, what: &str, seen: impl Fn(&Value) -> bool) -> Value {
        self.device.wait_ready(LIMIT).unwrap();
        let end = Instant::now() + LIMIT;
        loop {
            let all = self.device.status().unwrap();
            let mut status = all["services"]["test"].clone();
            if status.is_object() {
                status["attention"] = all["attention"].clone();
            }
            if seen(&status) {
                return status;
            }
            assert!(Instant::now() < end, "{what}: {status}");
        }
    }

    /// Waits until nothing is left to say.
    pub fn wait_settled(&self) {
        self.wait_status("a settled shadow", |status| {
            let shadows = status["shadows"].as_array();
            shadows.is_some_and(|shadows| shadows.iter().all(|shadow| shadow["settled"] == true))
        });
    }

    /// Waits until all updates have left.
    pub fn wait_empty(&self) {
        self.wait_status("no updates", |status| status["updates"]["waiting"] == 0);
        assert_eq!(self.left(), 0);
    }

    /// Everything that the device reported.
    #[must_use]
    pub fn updates(&self) -> Vec<Value> {
        self.lab.inspect(|lab| {
            lab.messages(Direction::In, "/shadow/update").map(|entry| entry.json()["state"].clone()).collect()
        })
    }

    /// What must hold at the end of every scenario, and then the end.
    pub fn finish(self) {
        self.world.finish();
    }
}
