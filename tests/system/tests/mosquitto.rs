//! Against a broker that nobody here wrote: mosquitto, which wants the device's certificate.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use otandem_system_tests::binary;
use otandem_system_tests::world::LIMIT;
use tempfile::TempDir;

const MESSAGES: usize = 300;

/// A broker, a device with the directories of chariotd's documentation, and the agent on it.
struct Bench {
    root: TempDir,
    port: u16,
    broker: Child,
    agent: Option<Child>,
}

fn there(program: &str) -> bool {
    Command::new(program).arg("--help").output().is_ok()
}

fn done(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// A root with a certificate for a server and one for a client, in `folder`.
fn certificates(folder: &Path) {
    let openssl = |line: &str| drop(done(Command::new("openssl").current_dir(folder).args(line.split(' '))));
    fs::create_dir_all(folder).unwrap();
    openssl(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -subj /CN=root -days 9",
    );
    for (name, extension) in
        [("server", "subjectAltName=DNS:localhost"), ("device", "extendedKeyUsage=clientAuth")]
    {
        fs::write(folder.join("extension"), extension).unwrap();
        openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}"
        ));
        openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out {name}.pem -days 9 -extfile extension"
        ));
    }
}

impl Bench {
    /// `None` where there is no mosquitto.
    fn new() -> Option<Self> {
        if !["mosquitto", "mosquitto_sub", "mosquitto_pub", "openssl"].into_iter().all(there) {
            eprintln!("skipped: no mosquitto, mosquitto-clients or openssl");
            return None;
        }
        let root = tempfile::Builder::new().prefix("otandem-").tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        certificates(&at("pki"));
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let user = if nix::unistd::geteuid().is_root() { "user root\n" } else { "" };
        let pki = at("pki").display().to_string();
        let config = format!(
            "{user}log_type all\nper_listener_settings true\nmax_queued_messages 0\n\
             listener {port} 127.0.0.1\ncafile {pki}/ca.pem\ncertfile {pki}/server.pem\nkeyfile {pki}/server.key\n\
             require_certificate true\nallow_anonymous true\nlistener 0 {}\nallow_anonymous true\n",
            at("socket").display()
        );
        fs::write(at("broker.conf"), config).unwrap();
        let log = fs::File::create(at("broker.log")).unwrap();
        let mut broker = Command::new("mosquitto");
        let broker =
            broker.arg("-c").arg(at("broker.conf")).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let store = at("certs/one");
        fs::create_dir_all(&store).unwrap();
        fs::copy(at("pki/device.pem"), store.join("one-certificate.pem.crt")).unwrap();
        fs::copy(at("pki/device.key"), store.join("one-private.pem.key")).unwrap();
        fs::write(at("certs/endpoint.txt"), format!("localhost:{port}\n")).unwrap();
        fs::create_dir(at("messages")).unwrap();
        fs::write(at("ours.toml"), format!("[update]\nrun-dir = '{}'\n", at("run").display())).unwrap();
        Some(Self { root, port, broker, agent: None })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// `chariotd` with a certificate store, and what each test wants.
    fn start(&mut self, options: &[String]) {
        let mut agent = Command::new(binary::otandem().unwrap());
        agent.arg("--config").arg(self.path("ours.toml")).arg("--state-dir").arg(self.path("state"));
        agent.args(["chariotd", "--clientid=device"]).env_remove("NOTIFY_SOCKET");
        agent.arg(format!("--cacert={}", self.path("pki/ca.pem").display()));
        agent.arg(format!("--certstore={}", self.path("certs").display())).args(options);
        let log = fs::File::create(self.path("log")).unwrap();
        self.agent = Some(agent.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap());
    }

    fn client(&self, program: &str) -> Command {
        let mut client = Command::new(program);
        client.arg("--unix").arg(self.path("socket")).args(["-q", "1"]);
        client
    }

    fn wait(&self, what: &str, seen: impl Fn() -> bool) {
        let end = Instant::now() + LIMIT;
        while !seen() {
            let log = |name: &str| fs::read_to_string(self.path(name)).unwrap_or_default();
            assert!(Instant::now() < end, "{what}\n{}\n{}", log("log"), log("broker.log"));
            std::thread::yield_now();
        }
    }

    /// Whether the broker granted this filter.
    fn heard(&self, filter: &str) -> bool {
        let log = fs::read_to_string(self.path("broker.log")).unwrap_or_default();
        log.lines().any(|line| line.ends_with(&format!(" 1 {filter}")))
    }

    fn said(&self, text: &str) -> bool {
        fs::read_to_string(self.path("log")).unwrap_or_default().contains(text)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for process in self.agent.iter_mut().chain([&mut self.broker]) {
            // It may have ended by itself.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

#[test]
fn messages_go_both_ways_over_mutual_tls() {
    let Some(mut bench) = Bench::new() else { return };
    let at = |name: &str| bench.path(name).display().to_string();
    let options = [
        format!("--messages={}", at("messages")),
        "--default-message-rate=0".into(),
        format!("--subscribe-write=down/+/write:{}", at("written")),
        format!(
            "--subscribe-exec=down/#:cat >{0}.new; echo \"$MESSAGE_TOPIC\" >>{0}.new; mv {0}.new {0}",
            at("run-by")
        ),
    ];
    bench.start(&options);
    bench.wait("no session", || bench.said("connected to the cloud"));

    // Up: everything, in its order, as it was written.
    bench.wait("no broker", || bench.path("socket").exists());
    let mut listener = bench.client("mosquitto_sub");
    listener.args(["-t", "up/#", "-F", "%t %p", "-C", &MESSAGES.to_string(), "-W", "60"]);
    let listener = listener.stdout(Stdio::piped()).spawn().unwrap();
    bench.wait("no subscriptions", || ["up/#", "down/#"].iter().all(|filter| bench.heard(filter)));
    for i in 0..MESSAGES {
        let file = bench.path("messages/tmp").join(format!("m{i:04}"));
        fs::write(&file, format!("{{\"topic\":\"up/{i}\",\"payload\":{{\"n\":{i},\"text\":\"é '\\\"\"}}}}"))
            .unwrap();
        fs::rename(&file, bench.path("messages/new").join(format!("m{i:04}"))).unwrap();
    }
    let heard = listener.wait_with_output().unwrap();
    let heard = String::from_utf8(heard.stdout).unwrap();
    let wanted: String =
        (0..MESSAGES).map(|i| format!("up/{i} {{\"n\":{i},\"text\":\"é '\\\"\"}}\n")).collect();
    assert_eq!(heard, wanted);
    let new = bench.path("messages/new");
    bench.wait("files stay in new/", || fs::read_dir(&new).unwrap().next().is_none());

    // Down: to a file, and to a command that is told the topic.
    done(bench.client("mosquitto_pub").args(["-t", "down/a/write", "-m", "it's here"]));
    bench.wait("nothing is written", || {
        fs::read(bench.path("written")).is_ok_and(|text| text == b"it's here")
    });
    let told = "it's heredown/a/write\n";
    bench.wait("no command runs", || fs::read_to_string(bench.path("run-by")).is_ok_and(|text| text == told));
    let agent = bench.agent.as_mut().unwrap();
    kill(Pid::from_raw(i32::try_from(agent.id()).unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(agent.wait().unwrap().code(), Some(0));
}

#[test]
fn a_broker_that_another_root_vouches_for_is_not_talked_to() {
    let Some(mut bench) = Bench::new() else { return };
    certificates(&bench.path("others"));
    fs::copy(bench.path("others/ca.pem"), bench.path("pki/ca.pem.others")).unwrap();
    fs::rename(bench.path("pki/ca.pem.others"), bench.path("pki/ca.pem")).unwrap();
    let options = [format!("--messages={}", bench.path("messages").display())];
    bench.wait("no broker", || std::net::TcpStream::connect(("127.0.0.1", bench.port)).is_ok());
    bench.start(&options);
    bench.wait("no refusal", || bench.said("a CA that is not among the roots"));
    assert!(!bench.said("connected to the cloud"));
}
