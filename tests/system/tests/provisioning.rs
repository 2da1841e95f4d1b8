//! A device that gets its own certificate by a claim, with the real agent and the lab's provisioning service.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use otandem_lab::policy::{Action, Policy};
use otandem_lab::provisioning::{Fault, Provisioner};
use otandem_lab::{Direction, Status};
use otandem_system_tests::device::Script;
use otandem_system_tests::world::{LIMIT, World};
use serde_json::{Value, json};

const TEMPLATE: &str = "gateways";
const CREATE: &str = "$aws/certificates/create-from-csr/json";
const REGISTER: &str = "$aws/provisioning-templates/gateways/provision/json";

/// A device with a claim and an empty store, which does not know its name; not switched on.
struct Factory {
    world: World,
    service: Arc<Mutex<Provisioner>>,
}

fn quoted(path: &Path) -> String {
    format!("{:?}", path.display().to_string())
}

fn factory(keys: &[(&str, &str)]) -> Factory {
    let world = World::off(|spec| {
        let cloud = spec.cloud.clone().unwrap();
        let mut spec = spec
            .with("cloud", "endpoint", "\"localhost\"")
            .with("cloud", "port", &cloud.port.to_string())
            .with("cloud", "ca", &quoted(&cloud.ca))
            .with("update", "ca", &quoted(&cloud.ca))
            .with("provisioning", "template", &format!("{TEMPLATE:?}"));
        spec.cloud = None;
        keys.iter().fold(spec, |spec, (key, value)| spec.with("provisioning", key, value))
    });
    world.lab.set_policy(Policy::jobs().with_provisioning(TEMPLATE));
    let claim = world.lab.identity("claim").unwrap();
    let folder = path(&world, "claim");
    fs::create_dir_all(&folder).unwrap();
    put(&folder.join("cert.pem"), &claim.certificate_pem);
    put(&folder.join("key.pem"), &claim.key_pem);
    // As a device tree has it.
    put(&path(&world, "serial"), "device\0");
    let parameters = format!("{{ SerialNumber = {{ file = {} }} }}", quoted(&path(&world, "serial")));
    let set = |table: &str, key: &str, value: &str| world.device.configure(table, key, value).unwrap();
    set("provisioning", "parameters", &parameters);
    set("provisioning", "claim-store", &quoted(&folder));
    set("cloud", "cert-store", &quoted(&store(&world)));
    let service = world.lab.provisioning(TEMPLATE);
    Factory { world, service }
}

fn path(world: &World, name: &str) -> PathBuf {
    world.device.folder().path(name)
}

fn store(world: &World) -> PathBuf {
    path(world, "store")
}

fn put(file: &Path, text: &str) {
    fs::write(file, text).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
}

fn mode(file: &Path) -> u32 {
    fs::metadata(file).unwrap().permissions().mode() & 0o777
}

/// The certificates in the store.
fn certificates(world: &World) -> Vec<String> {
    let entries = fs::read_dir(store(world)).unwrap().map(Result::unwrap);
    let mut names: Vec<_> = entries
        .filter(|entry| entry.file_type().unwrap().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn preferred(world: &World) -> Option<String> {
    fs::read_link(store(world).join("preferred")).ok().map(|name| name.to_str().unwrap().to_owned())
}

fn wait_status(world: &World, what: &str, seen: impl Fn(&Value) -> bool) -> Value {
    world.device.wait_ready(LIMIT).unwrap();
    let end = Instant::now() + LIMIT;
    loop {
        // Between two agents of one process nobody answers.
        if let Ok(status) = world.device.status()
            && seen(&status)
        {
            return status;
        }
        assert!(Instant::now() < end, "{what}: {:?}", world.device.status());
    }
}

fn wait_connected(world: &World) -> Value {
    wait_status(world, "a session", |status| status["cloud"]["connected"] == true)
}

/// Waits until the store prefers this certificate.
fn wait_preferred(world: &World, name: &str) {
    wait_status(world, "a preferred certificate", |_| preferred(world).as_deref() == Some(name));
}

fn wait_said(world: &World, topic: &str, times: usize) {
    world.wait_lab(topic, |lab| {
        let count = lab.messages(Direction::In, topic).filter(|entry| entry.topic == topic).count();
        (count >= times).then_some(())
    });
}

impl Factory {
    fn service(&self) -> MutexGuard<'_, Provisioner> {
        self.service.lock().unwrap()
    }

    /// The one certificate that is registered.
    fn registered(&self) -> String {
        let service = self.service();
        let all = service.registered();
        assert_eq!(all.len(), 1, "{all:?}");
        all[0].id.clone()
    }

    fn on(self) -> Self {
        self.world.device.power_on().unwrap();
        self
    }

    /// A device that was provisioned and is connected; the name of its certificate.
    fn provisioned(keys: &[(&str, &str)]) -> (Self, String) {
        let factory = factory(keys).on();
        wait_connected(&factory.world);
        let own = factory.registered();
        wait_preferred(&factory.world, &own);
        (factory, own)
    }
}

fn job(world: &World) {
    world.device.script(Script::Handler("hello"), "exit 0\n").unwrap();
    let step = json!({"action": {"name": "h", "type": "runHandler", "input": {"handler": "hello", "path": "default"}}});
    world.run("hello", &json!({"version": "1.0", "steps": [step]}), Status::Succeeded, "");
}

#[test]
fn a_first_boot_with_a_claim_ends_connected_as_the_thing_of_the_template_and_takes_a_job() {
    let factory = factory(&[]);
    let out = path(&factory.world, "provisioned.sh");
    let told = path(&factory.world, "notified");
    let set = |key: &str, value: &str| factory.world.device.configure("provisioning", key, value).unwrap();
    set("outfile", &quoted(&out));
    set("outformat", "\"shell\"");
    set("notify-command", &format!("{:?}", format!("cp {} {}", out.display(), told.display())));
    factory.service().configure("site", "it's here");
    let Factory { world, service } = factory.on();
    world.wait_connected(1);
    job(&world);
    let status = wait_connected(&world);
    let stopping = world.device.look(|heard| heard.stopping);
    assert!(!stopping, "a service manager would end an agent that only begins anew");
    let own = service.lock().unwrap().registered()[0].id.clone();
    wait_preferred(&world, &own);
    assert_eq!(
        (status["cloud"]["certificate"]["name"].as_str(), certificates(&world)),
        (Some(&*own), vec![own.clone()])
    );
    let dir = store(&world).join(&own);
    let key = dir.join(format!("{own}-private.pem.key"));
    assert_eq!((mode(&key), mode(&dir), mode(&store(&world))), (0o600, 0o700, 0o700));
    assert_eq!(fs::read_to_string(path(&world, "state/thing-name")).unwrap(), "device\n");
    let text = fs::read_to_string(&out).unwrap();
    assert!(text.contains("thing='device'") && text.contains("configuration_site="), "{text}");
    wait_status(&world, "the command", |_| told.exists());
    let secret = fs::read_to_string(&key).unwrap();
    let secret = secret.lines().nth(1).unwrap();
    let heard = world.lab.inspect(|lab| {
        lab.transcript.iter().any(|entry| String::from_utf8_lossy(&entry.payload).contains(secret))
    });
    assert!(!heard, "the key left the device");
    let log = fs::read_to_string(path(&world, "otandem.log")).unwrap();
    assert!(!log.contains("token-") && !log.contains(secret), "a secret is in the log");
    // The next start asks for nothing.
    world.device.power_cut().unwrap();
    world.wait_connected(2);
    assert_eq!(service.lock().unwrap().made().len(), 1);
    world.finish();
}

#[test]
fn a_key_of_the_cloud_comes_with_its_certificate_for_a_device_that_knows_its_name() {
    let factory = factory(&[("key", "\"cloud\"")]);
    factory.world.device.configure("cloud", "thing-name", "\"device\"").unwrap();
    let factory = factory.on();
    factory.world.wait_connected(1);
    let own = factory.registered();
    wait_preferred(&factory.world, &own);
    assert_eq!(mode(&store(&factory.world).join(&own).join(format!("{own}-private.pem.key"))), 0o600);
    assert!(!path(&factory.world, "state/thing-name").exists());
    job(&factory.world);
    factory.world.finish();
}

#[test]
fn a_device_that_is_killed_at_any_step_ends_with_one_registered_certificate_and_the_key_that_it_made() {
    // The answer that it waits for when it is killed; how many certificates are made in all.
    for (topic, faults, made) in
        [(CREATE, vec![Fault::LoseAnswer], 2), (REGISTER, vec![Fault::None, Fault::LoseAnswer], 1)]
    {
        let factory = factory(&[]);
        factory.service().faults(&faults);
        let factory = factory.on();
        wait_said(&factory.world, topic, 1);
        let staged = fs::read(store(&factory.world).join(".new/key.pem")).unwrap();
        factory.world.device.power_cut().unwrap();
        wait_connected(&factory.world);
        let own = factory.registered();
        wait_preferred(&factory.world, &own);
        assert_eq!(factory.service().made().len(), made, "{topic}");
        assert!(factory.service().made().windows(2).all(|two| two[0].key == two[1].key), "another key");
        let key = store(&factory.world).join(&own).join(format!("{own}-private.pem.key"));
        assert_eq!((fs::read(key).unwrap(), certificates(&factory.world)), (staged, vec![own]));
        factory.world.finish();
    }
}

#[test]
fn a_device_that_is_killed_while_its_command_runs_runs_it_again_and_keeps_its_certificate() {
    let factory = factory(&[]);
    let runs = path(&factory.world, "runs");
    let hang = format!("echo >> {0}; test $(wc -l < {0}) -gt 1 || sleep 1000", runs.display());
    factory.world.device.configure("provisioning", "notify-command", &format!("{hang:?}")).unwrap();
    let factory = factory.on();
    wait_connected(&factory.world);
    let own = factory.registered();
    wait_status(&factory.world, "the command", |_| runs.exists());
    factory.world.device.power_cut().unwrap();
    wait_connected(&factory.world);
    wait_status(&factory.world, "the command again", |_| {
        fs::read_to_string(&runs).unwrap().lines().count() == 2
    });
    assert_eq!((factory.registered(), certificates(&factory.world)), (own.clone(), vec![own]));
    factory.world.finish();
}

#[test]
fn a_device_that_is_killed_when_it_is_registered_goes_on_with_what_it_has() {
    // Before and after it has begun anew with its name.
    for line in ["this device is the thing", "is shown to the broker"] {
        let factory = factory(&[]).on();
        factory.world.wait_log(line);
        factory.world.device.power_cut().unwrap();
        wait_connected(&factory.world);
        let own = factory.registered();
        wait_preferred(&factory.world, &own);
        assert_eq!((factory.service().made().len(), certificates(&factory.world)), (1, vec![own]), "{line}");
        assert!(!path(&factory.world, "state/provisioning.json").exists(), "{line}");
        factory.world.finish();
    }
}

#[test]
fn what_the_cloud_refuses_is_in_the_status_and_is_asked_for_again() {
    let factory = factory(&[]);
    factory.service().faults(&[Fault::None, Fault::Reject(403, "AccessDeniedException")]);
    let factory = factory.on();
    let status = wait_status(&factory.world, "a refusal", |status| {
        status["provisioning"]["last-error"].as_str().is_some_and(|e| e.contains("AccessDenied"))
    });
    assert!(status["attention"].to_string().contains("AccessDenied"), "{status}");
    assert!(!status.to_string().contains("token-"), "{status}");
    wait_connected(&factory.world);
    let own = factory.registered();
    assert_eq!(factory.service().made().len(), 1, "the token was good");
    wait_preferred(&factory.world, &own);
    factory.world.finish();
}

#[test]
fn a_claim_that_may_not_ask_is_told_what_its_policy_lacks() {
    let factory = factory(&[]);
    let policy = Policy::jobs().allow(Action::Connect, "*-fp");
    factory.world.lab.set_policy(policy);
    let factory = factory.on();
    wait_status(&factory.world, "the advice", |status| {
        status["provisioning"]["last-error"]
            .as_str()
            .is_some_and(|e| e.contains("topicfilter/$aws/certificates"))
    });
}

#[test]
fn a_new_certificate_is_preferred_once_it_has_connected_and_the_old_one_stays() {
    let (factory, old) = Factory::provisioned(&[]);
    let said = factory.world.device.run(&["provision"], 0).unwrap();
    assert!(said.contains("the agent asks"), "{said}");
    wait_status(&factory.world, "another certificate", |_| preferred(&factory.world) != Some(old.clone()));
    let new = preferred(&factory.world).unwrap();
    let mut both = vec![old, new.clone()];
    both.sort();
    assert_eq!(certificates(&factory.world), both);
    let status = wait_connected(&factory.world);
    assert_eq!(status["cloud"]["certificate"]["name"], *new);
    job(&factory.world);
    factory.world.finish();
}

#[test]
fn a_new_certificate_that_was_not_tried_when_the_power_went_is_tried_at_the_next_start() {
    let (factory, old) = Factory::provisioned(&[]);
    let world = &factory.world;
    factory.service().faults(&[Fault::None, Fault::Inactive]);
    world.device.run(&["provision"], 0).unwrap();
    world.wait_lab("a refused connection", |lab| (!lab.counters.failed_handshakes.is_empty()).then_some(()));
    world.device.power_off().unwrap();
    let new = factory.service().made()[1].id.clone();
    assert_eq!((preferred(world), certificates(world).len()), (Some(old), 2));
    world.lab.register(&new, "device");
    world.device.power_on().unwrap();
    wait_preferred(world, &new);
    assert_eq!(wait_connected(world)["cloud"]["certificate"]["name"], *new);
    assert_eq!(factory.service().made().len(), 2);
    factory.world.finish();
}

#[test]
fn a_new_certificate_that_does_not_connect_changes_nothing() {
    let (factory, old) = Factory::provisioned(&[]);
    factory.service().faults(&[Fault::None, Fault::Inactive]);
    factory.world.device.run(&["provision"], 0).unwrap();
    wait_status(&factory.world, "the end of the trial", |status| {
        status["provisioning"]["last-error"].as_str().is_some_and(|e| e.contains("does not connect"))
    });
    let status = wait_connected(&factory.world);
    assert_eq!(
        (status["cloud"]["certificate"]["name"].as_str(), preferred(&factory.world)),
        (Some(&*old), Some(old.clone()))
    );
    assert_eq!(certificates(&factory.world).len(), 2);
    job(&factory.world);
    factory.world.finish();
}

#[test]
fn a_certificate_that_ends_soon_is_renewed_by_itself() {
    // The lab's certificates end in 2049.
    let (factory, old) = Factory::provisioned(&[]);
    factory.world.device.configure("provisioning", "renew-before", "\"36500d\"").unwrap();
    factory.world.device.power_cut().unwrap();
    wait_status(&factory.world, "another certificate", |_| preferred(&factory.world) != Some(old.clone()));
    wait_connected(&factory.world);
    assert_eq!(factory.service().made().len(), 2, "once a day");
    factory.world.finish();
}

/// Two certificates of the device, in the layout of the store.
fn two_certificates(factory: &Factory) {
    let world = &factory.world;
    for name in ["a", "b"] {
        let made = world.lab.authority().device(&format!("own-{name}"), otandem_lab::Validity::Now).unwrap();
        let dir = store(world).join(name);
        fs::create_dir_all(&dir).unwrap();
        put(&dir.join(format!("{name}-certificate.pem.crt")), &made.certificate_pem);
        // As chariotd leaves it.
        fs::write(dir.join(format!("{name}-private.pem.key")), &made.key_pem).unwrap();
    }
    world.device.configure("cloud", "thing-name", "\"device\"").unwrap();
    world.device.configure("provisioning", "claim-store", "\"\"").unwrap();
}

#[test]
fn a_certificate_that_the_broker_refuses_thrice_gives_way_to_the_next() {
    let factory = factory(&[]);
    two_certificates(&factory);
    factory.world.lab.register("own-b", "device");
    let Factory { world, .. } = factory.on();
    world.wait_connected(1);
    let refused = world
        .lab
        .inspect(|lab| lab.counters.failed_handshakes.iter().filter(|why| why.contains("own-a")).count());
    assert_eq!(refused, 3);
    wait_preferred(&world, "b");
    let status = wait_connected(&world);
    assert!(
        status["cloud"]["certificate"]["last-change"].as_str().unwrap().contains("refuses the certificate a")
    );
    assert_eq!(mode(&store(&world).join("b/b-private.pem.key")), 0o600);
    world.finish();
}

#[test]
fn a_port_that_is_closed_says_nothing_about_a_certificate() {
    let factory = factory(&[]);
    two_certificates(&factory);
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    factory.world.device.configure("cloud", "port", &closed.to_string()).unwrap();
    let Factory { world, .. } = factory.on();
    let attempts = |heard: &otandem_system_tests::device::Heard| {
        (heard.lines("cloud session: next attempt").count() >= 5).then_some(())
    };
    world.device.wait("five attempts", LIMIT, attempts).unwrap();
    let status = wait_status(&world, "a status", |_| true);
    let shown = &status["cloud"]["certificate"];
    assert_eq!(
        (&shown["name"], &shown["refusals"], preferred(&world)),
        (&json!("a"), &json!(0), None),
        "{status}"
    );
}

#[test]
fn provisioning_by_hand_prints_what_came_of_it_and_ends_with_the_reason_otherwise() {
    let factory = factory(&[]);
    let world = &factory.world;
    factory.service().faults(&[Fault::Reject(400, "InvalidRequest")]);
    let said = world.device.run(&["provision"], 65).unwrap();
    assert!(said.contains("400 InvalidRequest"), "{said}");
    let output = world.device.command(&["provision"]).unwrap();
    let done: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)));
    let own = factory.registered();
    assert_eq!(done, json!({"thing": "device", "certificate": own}));
    assert_eq!(preferred(world), Some(own));
    world.device.power_on().unwrap();
    wait_connected(world);
    world.device.stop_agent().unwrap();
    world.device.configure("provisioning", "claim-store", "\"\"").unwrap();
    assert!(world.device.run(&["provision"], 78).unwrap().contains("[provisioning]"));
    fs::remove_dir_all(path(world, "claim")).unwrap();
    world.device.configure("provisioning", "claim-store", &quoted(&path(world, "claim"))).unwrap();
    assert!(world.device.run(&["provision"], 78).unwrap().contains("holds no certificate"));
}
