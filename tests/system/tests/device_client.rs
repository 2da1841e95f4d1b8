//! A fleet that comes from the AWS IoT Device Client: its files, its handlers, its command line, its jobs.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use otandem_lab::jobs::request::Code;
use otandem_lab::{Lab, LabConfig, MqttFault, Operation, Rule, Status};
use otandem_system_tests::world::LIMIT;
use otandem_system_tests::{CloudSide, binary};
use serde_json::{Value, json};
use tempfile::TempDir;

const NAME: &str = "aws-iot-device-client";

/// A device on which the client was installed: a home directory with its files, and a cloud.
struct Fleet {
    cloud: CloudSide,
    home: TempDir,
    agent: Option<Child>,
}

impl Fleet {
    fn new() -> Self {
        let home = tempfile::Builder::new().prefix("otandem-").tempdir().unwrap();
        let lab = Lab::start(LabConfig::default()).unwrap();
        let cloud = CloudSide { lab, thing: "device".into(), limit: LIMIT };
        let fleet = Self { cloud, home, agent: None };
        let certs = fleet.directory("certs");
        let (ca, files) = fleet.cloud.lab.write_identity("device", &certs).unwrap();
        let handlers = fleet.directory(&format!(".{NAME}/jobs"));
        let handler = handlers.join("greet.sh");
        fs::write(
            &handler,
            "#!/bin/sh\n[ ! -e hang ] || { : >began; exec sleep 30; }\necho \"hello $2\"\necho 'a warning' >&2\n",
        )
        .unwrap();
        for path in [&handlers, &handler] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
        }
        let config = json!({
            "endpoint": "localhost", "thing-name": "device", "root-ca": ca, "cert": files.certificate, "key": files.key,
            "logging": {"level": "DEBUG", "type": "STDOUT"}, "jobs": {"enabled": true},
            "tunneling": {"enabled": true}, "device-defender": {"enabled": false, "interval": 300},
        });
        fleet.write(&format!(".{NAME}/{NAME}.conf"), &config.to_string());
        // The lab is not at the port of the real broker, and tests not in the directories of a device.
        let run = fleet.path("run").display().to_string();
        let ours = format!(
            "[cloud]\nport = {}\n[update]\nrun-dir = {run:?}\nstate-dir = {:?}\n",
            fleet.cloud.lab.mqtt_port(),
            fleet.path("state").display().to_string(),
        );
        fleet.write("ours/conf.d/test.toml", &ours);
        fleet
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn directory(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn write(&self, name: &str, text: &str) {
        self.directory(Path::new(name).parent().unwrap().to_str().unwrap());
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o640)).unwrap();
    }

    fn command(&self, program: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(args).arg("--config").arg(self.path("ours"));
        command.env("HOME", self.home.path()).env_remove("NOTIFY_SOCKET").current_dir(self.home.path());
        command.stdin(Stdio::null()).stderr(Stdio::piped()).stdout(Stdio::piped());
        command
    }

    fn otandem(&self, args: &[&str]) -> Output {
        self.command(binary::otandem().unwrap(), args).output().unwrap()
    }

    /// Starts the agent, by this name, and waits until it has connected.
    fn start(&mut self, program: &Path, args: &[&str]) {
        let log = fs::File::create(self.path("log")).unwrap();
        let before = self.cloud.counters().connects.get("device").copied().unwrap_or_default();
        self.agent = Some(self.command(program, args).stderr(log).spawn().unwrap());
        self.cloud.wait_connected(before + 1);
    }

    fn kill(&mut self) {
        let mut agent = self.agent.take().unwrap();
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    fn client(&mut self, args: &[&str]) {
        let link = self.path(NAME);
        symlink(binary::otandem().unwrap(), &link).unwrap();
        self.start(&link, args);
    }

    /// Ends the agent in order; its log.
    fn finish(mut self) -> String {
        self.cloud.assert_kept_the_rules();
        let mut agent = self.agent.take().unwrap();
        kill(Pid::from_raw(i32::try_from(agent.id()).unwrap()), Signal::SIGTERM).unwrap();
        let ended = agent.wait().unwrap();
        let mut log = String::new();
        fs::File::open(self.path("log")).unwrap().read_to_string(&mut log).unwrap();
        assert!(ended.success(), "{ended}: {log}");
        log
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            eprintln!("{}", fs::read_to_string(self.path("log")).unwrap_or_default());
            // It may have ended by itself.
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}

/// The sample of the old schema, and of the new one.
fn samples() -> [Value; 2] {
    let input = json!({"handler": "greet.sh", "args": ["world"], "path": "default"});
    [
        json!({"operation": "greet.sh", "args": ["world"], "path": "default", "includeStdOut": true}),
        json!({"version": "1.0", "includeStdOut": "true", "steps": [
            {"action": {"name": "Greet", "type": "runHandler", "input": input, "runAsUser": ""}}]}),
    ]
}

fn assert_serves(fleet: &Fleet) {
    for (id, document) in ["old", "new"].iter().zip(samples()) {
        // Both write a line to standard error, which never was a failure on this fleet.
        fleet.cloud.run(id, &document, Status::Succeeded, "Job exited with status: 0");
        assert_eq!(fleet.cloud.details(id)["stdout"].trim(), "hello world");
    }
}

#[test]
fn under_the_clients_name_and_with_its_file_alone_its_jobs_run() {
    let mut fleet = Fleet::new();
    fleet.client(&[]);
    assert_serves(&fleet);
    let firmware = json!({"operation": "fota", "image": {"url": "https://h/i", "sha256": "ab".repeat(32)}});
    fleet.cloud.job("firmware", &firmware);
    let (status, reason) = fleet.cloud.wait_end("firmware");
    assert!(status == Status::Failed || status == Status::Rejected, "there are no slots: {reason}");
    let status = fleet.otandem(&["status", "--check"]);
    let said = String::from_utf8_lossy(&status.stdout);
    assert!(status.status.success(), "a device without slots that is well: {said}");
    assert!(fleet.path("run/settled").exists(), "no dead-man has anything to do here");
    let log = fleet.finish();
    assert!(log.contains("tunneling.enabled: not carried over"), "{log}");
}

#[test]
fn its_flags_win_over_its_file() {
    let mut fleet = Fleet::new();
    let config = fleet.path("elsewhere.json");
    fs::rename(fleet.path(&format!(".{NAME}/{NAME}.conf")), &config).unwrap();
    fs::rename(fleet.path(&format!(".{NAME}/jobs")), fleet.path("handlers")).unwrap();
    let config = config.to_str().unwrap().to_owned();
    let flags = "--enable-jobs true --jobs-handler-dir ~/handlers --enable-tunneling false --log-level INFO";
    let args: Vec<_> = flags.split(' ').chain(["--config-file", &config]).collect();
    fleet.client(&args);
    assert_serves(&fleet);
    let log = fleet.finish();
    assert!(!log.contains("DEBUG") && !log.contains("tunneling"), "{log}");
}

#[test]
fn the_imported_configuration_runs_the_same_jobs() {
    let mut fleet = Fleet::new();
    let file = format!(".{NAME}/{NAME}.conf");
    let mut import = Command::new(binary::otandem().unwrap());
    let import = import.args(["config", "import", NAME, &file]).env("HOME", fleet.home.path());
    let made = import.current_dir(fleet.home.path()).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    fleet.write("ours/otandem.toml", &String::from_utf8(made.stdout).unwrap());
    fleet.start(binary::otandem().unwrap(), &["run"]);
    assert_serves(&fleet);
    fleet.finish();
}

/// Makes a FIFO; hears when somebody writes to it.
fn opened(path: PathBuf) -> mpsc::Receiver<std::io::Result<File>> {
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let (tell, hear) = mpsc::channel();
    std::thread::spawn(move || tell.send(File::open(path)));
    hear
}

#[test]
fn a_job_that_another_client_left_in_its_middle_is_run_from_its_beginning() {
    let mut fleet = Fleet::new();
    fs::write(fleet.path("hang"), "").unwrap();
    let began = opened(fleet.path("began"));
    // The client tells the cloud nothing of a step.
    fleet.cloud.lab.fault(Rule::always(MqttFault::Reject(Operation::Update, Code::RequestThrottled)));
    fleet.client(&[]);
    fleet.cloud.job("left", &samples()[1]);
    began.recv_timeout(LIMIT).expect("the step begins").unwrap();
    fleet.cloud.wait_status("left", Status::InProgress);
    fleet.kill();
    fleet.cloud.lab.clear_faults();
    // As after a change of the client: the cloud knows of the job, and nothing on the device does.
    fs::remove_dir_all(fleet.path("state")).unwrap();
    fs::remove_file(fleet.path("hang")).unwrap();
    fleet.start(&fleet.path(NAME), &[]);
    fleet.cloud.expect_end("left", Status::Succeeded, "Job exited with status: 0");
    fleet.finish();
}
