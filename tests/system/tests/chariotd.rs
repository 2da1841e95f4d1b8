//! A fleet that comes from chariotd: its options, its directories, its exit codes; its own examples word for word.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use otandem_lab::policy::{Action, Policy};
use otandem_lab::provisioning::{Fault, Provisioner};
use otandem_lab::shadow::{FILTER, Shadow, Shadows};
use otandem_lab::{Direction, Lab, LabConfig};
use otandem_system_tests::world::LIMIT;
use otandem_system_tests::{CloudSide, binary};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The thing whose certificate the device has; the broker knows a session by it.
const DEVICE: &str = "device";
/// Of all examples.
const NEEDED: &str =
    "--clientid=myclient --cacert=/path/to/AmazonRootCA1.pem --certstore=/var/chariotd/certs";

/// A device on which chariotd was installed, its directories below a folder of the test, and a cloud.
struct Fleet {
    cloud: CloudSide,
    shadows: Arc<Mutex<Shadows>>,
    root: TempDir,
    agent: Option<Child>,
}

impl Fleet {
    fn new() -> Self {
        let root = tempfile::Builder::new().prefix("otandem-").tempdir().unwrap();
        let lab = Lab::start(LabConfig::default()).unwrap();
        let shadow = "$aws/things/MyThing/shadow/*";
        let policy = Policy::default().allow(Action::Connect, "myclient").allow(Action::Publish, "mytopic/*");
        let policy = policy.allow(Action::Publish, shadow).allow(Action::Subscribe, shadow);
        lab.set_policy(policy.allow(Action::Receive, shadow));
        let shadows: Arc<Mutex<Shadows>> = Arc::default();
        let served = Arc::clone(&shadows);
        lab.hook(FILTER, Box::new(move |request| served.lock().unwrap().serve(request)));
        let cloud = CloudSide { lab, thing: DEVICE.into(), limit: LIMIT };
        let fleet = Self { cloud, shadows, root, agent: None };
        fleet.certificate("95b9");
        fleet.write(
            "/var/chariotd/certs/endpoint.txt",
            &format!("localhost:{}\n", fleet.cloud.lab.mqtt_port()),
        );
        // No test may be in the directories of a device.
        let run = fleet.path("/run").display().to_string();
        fleet.write("/ours.toml", &format!("[update]\nrun-dir = {run:?}\n"));
        fleet
    }

    /// Puts a certificate into the store, in the layout of the documentation.
    fn certificate(&self, id: &str) {
        let folder = self.path(&format!("/var/chariotd/certs/{id}"));
        fs::create_dir_all(&folder).unwrap();
        let (ca, files) = self.cloud.lab.write_identity(DEVICE, &folder).unwrap();
        fs::create_dir_all(self.path("/path/to")).unwrap();
        fs::rename(ca, self.path("/path/to/AmazonRootCA1.pem")).unwrap();
        fs::rename(files.certificate, folder.join(format!("{id}-certificate.pem.crt"))).unwrap();
        fs::rename(files.key, folder.join(format!("{id}-private.pem.key"))).unwrap();
    }

    /// Where the test has what the documentation has at `path`.
    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path.trim_start_matches('/'))
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    }

    /// A line of the documentation, with its paths below the folder of the test.
    fn here(&self, line: &str) -> String {
        let root = self.root.path().display().to_string();
        ["/path/to/", "/var/chariotd/", "/config/"]
            .iter()
            .fold(line.to_owned(), |line, path| line.replace(path, &format!("{root}{path}")))
    }

    fn command(&self, program: &Path, line: &str) -> Command {
        self.with_line(Command::new(program), line)
    }

    fn with_line(&self, mut command: Command, line: &str) -> Command {
        command
            .args(self.here(line).split_whitespace())
            .env_remove("NOTIFY_SOCKET")
            .current_dir(self.root.path());
        command.stdin(Stdio::null()).stderr(Stdio::piped()).stdout(Stdio::piped());
        command
    }

    /// A line of the documentation, which begins with the name of the program; our own options go before it.
    fn otandem(&self, line: &str) -> Command {
        let mut command = Command::new(binary::otandem().unwrap());
        command.arg("--config").arg(self.path("/ours.toml")).arg("--state-dir").arg(self.path("/state"));
        self.with_line(command, line)
    }

    fn start(&mut self, mut command: Command) {
        let log = fs::File::create(self.path("/log")).unwrap();
        self.agent = Some(command.stderr(log).spawn().unwrap());
    }

    /// Starts it and waits until it has connected.
    fn up(&mut self, line: &str) {
        let before = self.cloud.counters().connects.get(DEVICE).copied().unwrap_or_default();
        self.start(self.otandem(line));
        self.cloud.wait_connected(before + 1);
    }

    /// Runs a line of the documentation in a shell.
    fn shell(&self, line: &str) {
        let status = Command::new("/bin/sh").arg("-c").arg(self.here(line)).status().unwrap();
        assert!(status.success(), "{line}");
    }

    /// The certificate is the factory's, and the cloud gives others.
    fn leave_the_factory(&self) -> Arc<Mutex<Provisioner>> {
        const TEMPLATE: &str = "my-provisioning-template";
        let service = self.cloud.lab.provisioning(TEMPLATE);
        let policy = Policy::default().allow(Action::Connect, "myclient*").with_provisioning(TEMPLATE);
        self.cloud.lab.set_policy(policy);
        let (certs, claim) = (self.path("/var/chariotd/certs"), self.path("/config/factory/cert"));
        fs::create_dir_all(&claim).unwrap();
        fs::rename(certs.join("95b9"), claim.join("95b9")).unwrap();
        fs::copy(certs.join("endpoint.txt"), claim.join("endpoint.txt")).unwrap();
        let config = r#"
    {
      "claimstore": "/config/factory/cert",
      "template": "my-provisioning-template",
      "parameters": {
        "SerialNumber": "1234"
      }
    }
"#;
        self.write("/var/chariotd/fp.json", &self.here(config));
        service
    }

    /// Waits until the status of the agent is so; asking it is what takes the time.
    fn wait_status(&self, what: &str, seen: impl Fn(&Value) -> bool) {
        let end = Instant::now() + LIMIT;
        loop {
            let (_, text) = self.ends("status --json");
            if serde_json::from_str(&text).is_ok_and(|status| seen(&status)) {
                return;
            }
            assert!(Instant::now() < end, "{what}: {text}");
        }
    }

    /// Waits until the log has this.
    fn wait_said(&self, text: &str) {
        let (log, end) = (self.path("/log"), Instant::now() + LIMIT);
        while !fs::read_to_string(&log).unwrap().contains(text) {
            assert!(Instant::now() < end, "{text:?} is not said");
            std::thread::yield_now();
        }
    }

    /// Waits until the shadow of the documentation's thing is so.
    fn wait_shadow(&self, seen: impl Fn(&Shadow) -> bool) {
        let shadows = Arc::clone(&self.shadows);
        self.cloud.wait_lab("the shadow", |_| {
            shadows.lock().unwrap().get("MyThing", None).is_some_and(&seen).then_some(())
        });
    }

    /// What an operator writes into it.
    fn change(&self, state: &Value) {
        let said = self.shadows.lock().unwrap().change("MyThing", None, state, self.cloud.lab.now());
        for (topic, payload) in said {
            self.cloud.lab.push(&topic, payload.to_string());
        }
    }

    /// The code with which the agent ends at this signal, and its log.
    fn end(&mut self, signal: Signal) -> (Option<i32>, String) {
        let mut agent = self.agent.take().unwrap();
        kill(Pid::from_raw(i32::try_from(agent.id()).unwrap()), signal).unwrap();
        let code = agent.wait().unwrap().code();
        (code, fs::read_to_string(self.path("/log")).unwrap())
    }

    /// Runs a line that ends by itself: its code and what it says.
    fn ends(&self, line: &str) -> (Option<i32>, String) {
        let Output { status, stdout, stderr } = self.otandem(line).output().unwrap();
        let said = [stdout, stderr].concat();
        (status.code(), String::from_utf8(said).unwrap())
    }

    fn preferred(&self) -> String {
        fs::read_link(self.path("/var/chariotd/certs/preferred")).unwrap().display().to_string()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            eprintln!("{}", fs::read_to_string(self.path("/log")).unwrap_or_default());
            // It may have ended by itself.
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}

#[test]
fn posting_to_topics_as_documented() {
    let mut fleet = Fleet::new();
    fs::create_dir_all(fleet.path("/var/chariotd/mqtt")).unwrap();
    fleet.up(&format!("chariotd {NEEDED} --messages=/var/chariotd/mqtt"));
    fleet.wait_status("the directory", |status| status["messages"]["mqtt"]["waiting"] == 0);
    let message = r#"'{ "topic": "mytopic/foo", "payload": { "key": "value", "key2": 2 } }'"#;
    fleet.shell(&format!("echo {message} > /var/chariotd/mqtt/tmp/foomsg"));
    fleet.shell("mv /var/chariotd/mqtt/tmp/foomsg /var/chariotd/mqtt/new/");
    let got = fleet.cloud.wait_lab("the message", |lab| {
        lab.messages(Direction::In, "mytopic/foo").next().map(otandem_lab::Entry::json)
    });
    assert_eq!(got, json!({"key": "value", "key2": 2}));
    fleet.wait_status("the file to leave new/", |status| status["messages"]["mqtt"]["sent"] == 1);
    assert!(!fleet.path("/var/chariotd/mqtt/new/foomsg").exists());
    assert_eq!(fleet.preferred(), "95b9");
    fleet.cloud.assert_kept_the_rules();
    let (code, log) = fleet.end(Signal::SIGTERM);
    assert_eq!(code, Some(0), "{log}");
}

#[test]
fn updating_a_device_shadow_as_documented() {
    let mut fleet = Fleet::new();
    fs::create_dir_all(fleet.path("/var/chariotd/shadow")).unwrap();
    fleet.up(&format!("chariotd {NEEDED} --updates=MyThing:/var/chariotd/shadow"));
    fleet.wait_status("the directory", |status| status["services"]["MyThing"]["updates"]["waiting"] == 0);
    fleet.shell(r#"echo '{ "led1": "red", "led2": "green" }' > /var/chariotd/shadow/tmp/foo"#);
    fleet.shell("mv /var/chariotd/shadow/tmp/foo /var/chariotd/shadow/new");
    let foo = json!({"foo": {"led1": "red", "led2": "green"}});
    fleet.wait_shadow(|shadow| json!(shadow.reported) == foo);
    let (code, log) = fleet.end(Signal::SIGTERM);
    assert_eq!(code, Some(0), "{log}");
}

#[test]
fn a_shadow_key_is_hooked_to_a_service_as_documented() {
    let mut fleet = Fleet::new();
    // As documented, but for a command that is not on every machine.
    let module = "
     module.exports = {
       key: 'foo',
       outfile: '/config/foo.rc',
       outformat: 'SHELL',
       informat: 'SHELL',
       notifycmd: 'sv restart foo',
     }
";
    let module =
        fleet.here(module).replace("sv restart foo", &fleet.here("cp /config/foo.rc /config/restarted"));
    fleet.write("/var/chariotd/svcs/foo.js", &module);
    fs::create_dir_all(fleet.path("/config")).unwrap();
    fleet.change(&json!({"desired": {"foo": {"led1": "red"}}}));
    fleet.up(&format!("chariotd {NEEDED} --services=MyThing:/var/chariotd/svcs"));
    fleet.wait_shadow(|shadow| shadow.desired.is_empty());
    fleet.change(&json!({"desired": {"foo": {"led2": "it's"}}}));
    let foo = json!({"foo": {"led1": "red", "led2": "it's"}});
    fleet.wait_shadow(|shadow| shadow.desired.is_empty() && json!(shadow.reported) == foo);
    let text = "led1='red'\nled2='it'\\''s'\n";
    assert_eq!(fs::read_to_string(fleet.path("/config/foo.rc")).unwrap(), text);
    // The command runs beside the report.
    let (restarted, end) = (fleet.path("/config/restarted"), Instant::now() + LIMIT);
    while fs::read_to_string(&restarted).unwrap_or_default() != text {
        assert!(Instant::now() < end, "the command did not run");
        std::thread::yield_now();
    }
    let (code, log) = fleet.end(Signal::SIGTERM);
    assert_eq!(code, Some(0), "{log}");
}

#[test]
fn a_definition_that_is_a_program_refuses_what_it_does_not_want() {
    let js = binary::otandem().unwrap().with_file_name("otandem-js");
    if !js.exists() {
        return eprintln!("skipped: otandem-js is not built; cargo build -p otandem-js");
    }
    let mut fleet = Fleet::new();
    let module = "const base = '/config/';
module.exports = { key: 'foo', outfile: base + 'foo.json', outformat: 'JSON', notifycmd: 'true',
  validate(cfg) { if (cfg.port > 65535) throw new Error('no port: ' + cfg.port); return { ...cfg, made: true }; } }";
    fleet.write("/var/chariotd/svcs/foo.js", &fleet.here(module));
    fs::create_dir_all(fleet.path("/config")).unwrap();
    fleet.change(&json!({"desired": {"foo": {"port": 70000}}}));
    fleet.up(&format!("chariotd {NEEDED} --services=MyThing:/var/chariotd/svcs"));
    fleet.wait_shadow(|shadow| {
        let why = &json!(shadow.reported)["otandem"]["refused"]["foo"];
        why.as_str().is_some_and(|why| why.ends_with("no port: 70000"))
    });
    assert!(!fleet.path("/config/foo.json").exists());
    fleet.change(&json!({"desired": {"foo": {"port": 80}}}));
    fleet.wait_shadow(|shadow| shadow.desired.is_empty() && json!(shadow.reported)["foo"]["made"] == true);
    assert_eq!(fs::read_to_string(fleet.path("/config/foo.json")).unwrap(), "{\"made\":true,\"port\":80}");
    let (code, log) = fleet.end(Signal::SIGTERM);
    assert_eq!(code, Some(0), "{log}");
}

#[test]
fn fleet_provisioning_as_documented() {
    const THING: &str = "1234";
    let mut fleet = Fleet::new();
    let service = fleet.leave_the_factory();
    let line = format!("chariotd {NEEDED} --fleetprov=/var/chariotd/fp.json");
    let (code, text) = fleet.ends(&line);
    assert_eq!(code, Some(0), "{text}");
    let id = service.lock().unwrap().registered()[0].id.clone();
    let certs = fleet.path("/var/chariotd/certs");
    let key = certs.join(&id).join(format!("{id}-private.pem.key"));
    assert_eq!(fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fleet.preferred(), id);
    // Its supervisor starts it again.
    let connects = |fleet: &Fleet| fleet.cloud.counters().connects.get(THING).copied().unwrap_or_default();
    let before = connects(&fleet);
    fleet.start(fleet.otandem(&line));
    fleet.cloud.wait_lab("the session", |lab| {
        (lab.counters.connects.get(THING).copied().unwrap_or_default() > before).then_some(())
    });
    let (code, log) = fleet.end(Signal::SIGTERM);
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(service.lock().unwrap().made().len(), 1);
}

#[test]
fn before_it_tries_again_to_be_provisioned_it_waits_and_can_be_told_to_end() {
    let mut fleet = Fleet::new();
    fleet.leave_the_factory().lock().unwrap().faults(&[Fault::Reject(400, "InvalidParameters")]);
    fleet.start(fleet.otandem(&format!("chariotd {NEEDED} --fleetprov=/var/chariotd/fp.json")));
    fleet.wait_said("not provisioned");
    // There is no shadow yet that could be asked for.
    kill(Pid::from_raw(i32::try_from(fleet.agent.as_ref().unwrap().id()).unwrap()), Signal::SIGHUP).unwrap();
    let (code, log) = fleet.end(Signal::SIGTERM);
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("InvalidParameters"), "{log}");
}

#[test]
fn under_the_name_of_chariotd_the_options_are_all_there_is() {
    let mut fleet = Fleet::new();
    let link = fleet.path("/chariotd");
    symlink(binary::otandem().unwrap(), &link).unwrap();
    let (ours, state) = (fleet.path("/ours.toml"), fleet.path("/state"));
    let mut command = fleet.command(&link, &format!("{NEEDED} --config"));
    command.arg(ours).arg(format!("--state-dir={}", state.display()));
    fleet.start(command);
    fleet.cloud.wait_connected(1);
    let (code, log) = fleet.end(Signal::SIGINT);
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("jobs/"), "chariotd has no jobs: {log}");
}

#[test]
fn what_cannot_run_ends_with_1_at_once_and_one_line() {
    let fleet = Fleet::new();
    let with = |more: &str| format!("chariotd {NEEDED} {more}");
    fs::create_dir_all(fleet.path("/var/chariotd/empty")).unwrap();
    fs::write(fleet.path("/var/chariotd/empty/endpoint.txt"), "localhost").unwrap();
    for (line, said) in [
        (with("--frob"), "--frob"),
        ("chariotd --clientid=myclient --cacert=/path/to/AmazonRootCA1.pem".into(), "--certstore is needed"),
        (with("--certstore=/var/chariotd/gone"), "endpoint.txt"),
        (with("--certstore=/var/chariotd/empty"), "no certificate"),
        (with("--cacert=/path/to/gone.pem"), "gone.pem"),
        (with("--messages=/var/chariotd/gone"), "/var/chariotd/gone"),
        (with("--services=MyThing:/var/chariotd/gone"), "/var/chariotd/gone"),
        (with("--updates=MyThing"), "--updates=MyThing"),
        (with("--tunnelmappings=MyThing:SSH=22"), "no secure tunnels"),
        (with("--fleetprov=/var/chariotd/gone.json"), "gone.json"),
        (with("--state-dir=/proc/here"), "give --state-dir"),
        (with("--messages=/var/chariotd/certs --default-message-order=newest"), "newest-first"),
        (with("--messages=/var/chariotd/certs --default-message-concurrency=0"), "must be 1 to"),
        (with("--subscribe-exec=a/#/b:true"), "the last level"),
    ] {
        let (code, text) = fleet.ends(&line);
        assert_eq!((code, text.lines().count()), (Some(1), 1), "{line}: {text}");
        assert!(text.contains(said), "{line}: {text}");
    }
    let (code, text) = fleet.ends("chariotd --help");
    assert!(code == Some(0) && text.contains("--clientid=ID"), "{text}");
}

#[test]
fn the_printed_configuration_is_one() {
    let fleet = Fleet::new();
    fs::create_dir_all(fleet.path("/var/chariotd/mqtt")).unwrap();
    let (code, text) = fleet.ends(&format!("chariotd {NEEDED} --messages=/var/chariotd/mqtt --print-config"));
    assert_eq!(code, Some(0), "{text}");
    fs::write(fleet.path("/ours.toml"), text).unwrap();
    let (code, text) = fleet.ends("config check");
    assert_eq!(code, Some(0), "{text}");
}

/// Half a minute at most: that is how patient it is.
#[test]
fn a_broker_that_is_not_there_ends_it_with_1_and_the_next_start_uses_the_next_certificate() {
    let mut fleet = Fleet::new();
    fleet.certificate("a0c4");
    // A port on which nobody listens: it was free, and is bound by nobody who would serve it.
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = held.local_addr().unwrap().port();
    drop(held);
    fs::write(fleet.path("/var/chariotd/certs/endpoint.txt"), format!("localhost:{port}")).unwrap();
    fleet.start(fleet.otandem(&format!("chariotd {NEEDED}")));
    fleet.wait_said("next attempt");
    assert_eq!(fleet.preferred(), "95b9");
    let mut agent = fleet.agent.take().unwrap();
    let code = agent.wait().unwrap().code();
    let log = fs::read_to_string(fleet.path("/log")).unwrap();
    assert_eq!(code, Some(1), "{log}");
    assert_eq!(fleet.preferred(), "a0c4", "{log}");
}
