use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;

use nix::unistd::{Gid, Uid};
use proptest::prelude::*;
use serde_json::json;
use tokio::sync::mpsc;

use super::server::Access;
use super::*;

const NO_GROUP: &str = "no-such-group-anywhere";

/// A daemon that answers with `act`, and a blocking caller on a thread of its own.
async fn with_daemon<T: Send + 'static>(
    act: impl Fn(Call) + Send + 'static,
    caller: impl FnOnce(&Path) -> T + Send + 'static,
) -> T {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run/control.sock");
    let server = Server::bind(&path, NO_GROUP).unwrap();
    let (calls, mut received) = mpsc::channel(1);
    let daemon = tokio::spawn(async move {
        while let Some(call) = received.recv().await {
            act(call);
        }
    });
    let server = tokio::spawn(server.run(calls));
    let out = tokio::task::spawn_blocking(move || caller(&path)).await.unwrap();
    daemon.abort();
    server.await.unwrap();
    out
}

fn raw(path: &Path, bytes: &[u8]) -> String {
    let mut stream = StdStream::connect(path).unwrap();
    // The daemon may refuse and close before it has read everything.
    let _ = stream.write_all(bytes);
    let mut line = String::new();
    let _ = BufReader::new(stream).read_line(&mut line);
    line
}

#[tokio::test]
async fn a_request_gets_its_progress_and_its_answer_and_the_next_one_too() {
    let act = |call: Call| match call.request {
        Request::Install(i) => {
            call.reply.progress(Progress { phase: "download".into(), done: 1, total: Some(2) });
            call.reply.done(Exit::Ok, json!({ "source": i.source }));
        }
        other => call.reply.failed(Exit::TempFail, format!("{other:?} not now")),
    };
    with_daemon(act, |path| {
        let mut client = Client::connect(path).unwrap().unwrap();
        let mut seen = Vec::new();
        let install = InstallRequest {
            source: "/img".into(),
            document: None,
            slot: None,
            file_sha256: None,
            sha256: Some("ab".repeat(32).parse().unwrap()),
            set: Some(SetId::B),
            reboot: true,
            no_digest: false,
        };
        let answer = client.call(&Request::Install(install), &mut |p| seen.push(p.clone())).unwrap();
        assert_eq!(answer, Answer::Done { exit: Exit::Ok, data: json!({"source": "/img"}) });
        assert_eq!(seen, [Progress { phase: "download".into(), done: 1, total: Some(2) }]);
        let answer = client.call(&Request::Reboot, &mut |_| {}).unwrap();
        assert_eq!(answer, Answer::Failed { exit: Exit::TempFail, reason: "Reboot not now".into() });
    })
    .await;
}

#[tokio::test]
async fn a_hold_stands_as_long_as_the_caller_and_its_refusal_says_why() {
    let (left, gone) = std::sync::mpsc::channel();
    let held = std::sync::Mutex::new(None);
    let act = move |call: Call| {
        let mut held = held.lock().unwrap();
        if held.as_ref().is_some_and(|reply: &Reply| !reply.is_closed()) {
            return call.reply.failed(Exit::TempFail, "held");
        }
        left.send(held.is_some()).unwrap();
        call.reply.progress(Progress { phase: "held".into(), done: 0, total: None });
        *held = Some(call.reply);
    };
    with_daemon(act, move |path| {
        let connect = || Client::connect(path).unwrap().unwrap();
        let mut first = connect();
        assert_eq!(first.hold().unwrap(), None);
        assert!(!gone.recv().unwrap());
        let refused = Answer::Failed { exit: Exit::TempFail, reason: "held".into() };
        assert_eq!(connect().hold().unwrap(), Some(refused));
        drop(first);
        // The daemon sees that as soon as it looks at the connection.
        while connect().hold().unwrap().is_some() {}
        assert!(gone.recv().unwrap());
    })
    .await;
}

#[test]
fn a_socket_that_a_child_of_a_killed_daemon_holds_is_no_daemon() {
    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
    use std::os::fd::AsRawFd;
    use std::os::unix::process::CommandExt;

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    // Inherited on purpose.
    let held = socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None).unwrap();
    bind(held.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    let (inherited, backlog) = (held.try_clone().unwrap(), Backlog::new(1).unwrap());
    let mut daemon = std::process::Command::new("sh");
    daemon.args(["-c", "sleep 60 >/dev/null 2>&1 & echo $!"]);
    // SAFETY: one system call.
    unsafe { daemon.pre_exec(move || Ok(listen(&inherited, backlog)?)) };
    let out = daemon.output().unwrap();
    drop((daemon, held));
    let client = Client::connect(&path).unwrap().unwrap();
    assert!(!client.is_alive());
    let child: i32 = String::from_utf8(out.stdout).unwrap().trim().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), nix::sys::signal::Signal::SIGKILL).unwrap();
    drop(client);
    std::fs::remove_file(&path).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    assert!(Client::connect(&path).unwrap().unwrap().is_alive());
}

#[tokio::test]
async fn a_daemon_that_drops_a_request_is_told_as_a_defect() {
    with_daemon(drop, |path| {
        let answer = Client::connect(path).unwrap().unwrap().call(&Request::Status, &mut |_| {}).unwrap();
        assert!(matches!(answer, Answer::Failed { exit: Exit::Software, .. }), "{answer:?}");
    })
    .await;
}

#[tokio::test]
async fn hostile_input_costs_the_caller_its_connection_and_the_daemon_nothing() {
    let act = |call: Call| call.reply.done(Exit::Ok, json!(1));
    with_daemon(act, |path| {
        for (bytes, exit) in [
            (b"nonsense\n".to_vec(), "protocol"),
            (b"{}\n".to_vec(), "protocol"),
            (b"\n".to_vec(), "protocol"),
            (br#"{"v":2,"request":{"command":"from-the-future"}}"#.iter().chain(b"\n").copied().collect(), "protocol"),
            (br#"{"v":1,"request":{"command":"from-the-future"}}"#.iter().chain(b"\n").copied().collect(), "protocol"),
            (br#"{"v":1,"request":{"command":"mark","verdict":"fine","target":"booted"}}"#.iter().chain(b"\n").copied().collect(), "protocol"),
            (vec![b'x'; MAX_LINE + 2], "data"),
            (vec![b'['; MAX_LINE - 1].into_iter().chain(*b"\n").collect(), "protocol"),
            ([0xff, 0, b'\n'].to_vec(), "protocol"),
        ] {
            let line = raw(path, &bytes);
            assert!(line.contains(&format!("\"exit\":\"{exit}\"")), "{:?}: {line}", &bytes[..bytes.len().min(60)]);
        }
        let mut client = Client::connect(path).unwrap().unwrap();
        assert!(matches!(client.call(&Request::Status, &mut |_| {}), Ok(Answer::Done { .. })));
    })
    .await;
}

#[tokio::test]
async fn a_request_above_the_limit_is_not_even_sent() {
    with_daemon(drop, |path| {
        let document = Some("x".repeat(MAX_LINE));
        let request = FotaRequest {
            call: FotaCall::Update,
            document,
            force: false,
            auto_reset: false,
            job_callback: None,
        };
        let error =
            Client::connect(path).unwrap().unwrap().call(&Request::Fota(request), &mut |_| {}).unwrap_err();
        assert!(matches!(error, ClientError::TooLarge { .. }), "{error}");
    })
    .await;
}

#[tokio::test]
async fn an_answer_above_the_limit_becomes_an_error_not_a_torn_line() {
    let act = |call: Call| call.reply.done(Exit::Ok, json!("x".repeat(MAX_LINE)));
    with_daemon(act, |path| {
        let answer = Client::connect(path).unwrap().unwrap().call(&Request::Status, &mut |_| {}).unwrap();
        assert!(matches!(answer, Answer::Failed { exit: Exit::Software, .. }), "{answer:?}");
    })
    .await;
}

#[tokio::test]
async fn callers_are_bounded_and_the_next_one_is_told_to_try_again() {
    let act = |call: Call| call.reply.done(Exit::Ok, json!(null));
    with_daemon(act, |path| {
        let mut held: Vec<_> = (0..8).map(|_| Client::connect(path).unwrap().unwrap()).collect();
        for client in &mut held {
            client.call(&Request::Status, &mut |_| {}).unwrap();
        }
        let line = raw(path, b"");
        assert!(line.contains("temp-fail"), "{line}");
    })
    .await;
}

#[tokio::test]
async fn a_caller_that_leaves_is_seen_as_closed() {
    let (left, mut seen) = mpsc::channel(1);
    let act = move |call: Call| {
        let left = left.clone();
        tokio::spawn(async move {
            let mut reply = call.reply;
            reply.closed().await;
            assert!(reply.is_closed());
            left.send(()).await.unwrap();
        });
    };
    with_daemon(act, move |path| {
        let mut stream = StdStream::connect(path).unwrap();
        stream.write_all(b"{\"v\":1,\"request\":{\"command\":\"status\"}}\n").unwrap();
        drop(stream);
        assert_eq!(seen.blocking_recv(), Some(()));
    })
    .await;
}

#[tokio::test]
async fn talking_out_of_turn_ends_the_connection() {
    let held = std::sync::Mutex::new(Vec::new());
    let act = move |call: Call| held.lock().unwrap().push(call);
    with_daemon(act, |path| {
        let line = b"{\"v\":1,\"request\":{\"command\":\"status\"}}\n".repeat(2);
        assert!(raw(path, &line).contains("wait for the answer"));
    })
    .await;
}

#[tokio::test]
async fn no_daemon_is_none_and_a_dead_ones_socket_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.sock");
    assert!(Client::connect(&path).unwrap().is_none());
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    assert!(Client::connect(&path).unwrap().is_none());
    let server = Server::bind(&path, NO_GROUP).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    assert_eq!(std::fs::metadata(&path).unwrap().uid(), Uid::effective().as_raw());
    let second = Server::bind(&path, NO_GROUP).unwrap_err();
    assert!(matches!(second, ControlError::InUse { .. }), "{second}");
    drop(server);
    assert!(!path.exists());
    std::fs::write(&path, "precious").unwrap();
    let error = Server::bind(&path, NO_GROUP).unwrap_err();
    assert!(matches!(error, ControlError::NotASocket { .. }), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn root_the_own_user_and_the_group_may_speak_and_nobody_else() {
    let (uid, gid) = (Uid::from_raw, Gid::from_raw);
    let access = Access { us: uid(500), group: Some(gid(77)) };
    let none = |_, _| Vec::new();
    assert!(access.allows(uid(0), gid(0), none));
    assert!(access.allows(uid(500), gid(1), none));
    assert!(access.allows(uid(1000), gid(77), none));
    assert!(access.allows(uid(1000), gid(1), |_, _| vec![gid(5), gid(77)]));
    assert!(!access.allows(uid(1000), gid(1), |_, _| vec![gid(5)]));
    let closed = Access { us: uid(0), group: None };
    assert!(!closed.allows(uid(1000), gid(77), |_, _| vec![gid(77)]));
}

#[test]
fn the_wire_form_is_stable() {
    let mark = Request::Mark { verdict: Verdict::Good, target: Target::Other, verify: None };
    let line = serde_json::to_string(&RequestLine { v: 1, request: mark }).unwrap();
    assert_eq!(line, r#"{"v":1,"request":{"command":"mark","verdict":"good","target":"other"}}"#);
    let set: Request = serde_json::from_str(r#"{"command":"mark","verdict":"bad","target":"B"}"#).unwrap();
    assert_eq!(set, Request::Mark { verdict: Verdict::Bad, target: Target::Set(SetId::B), verify: None });
    let fota: Request =
        serde_json::from_str(r#"{"command":"fota","call":"handle","document":"{}","force":true}"#).unwrap();
    assert!(matches!(fota, Request::Fota(FotaRequest { call: FotaCall::Handle, force: true, .. })));
    let answer =
        AnswerLine { v: 1, what: What::Answer(Answer::Failed { exit: Exit::TempFail, reason: "x".into() }) };
    let line = serde_json::to_string(&answer).unwrap();
    assert_eq!(line, r#"{"v":1,"answer":{"end":"failed","exit":"temp-fail","reason":"x"}}"#);
}

proptest! {
    #[test]
    fn no_line_panics(line in prop::collection::vec(any::<u8>(), 0..100)) {
        let _ = server::parse(&line);
    }

    #[test]
    fn no_shape_of_json_panics(command in "[a-z-]{0,8}", target in "\\PC{0,4}", v in 0u32..3) {
        let line = json!({"v": v, "request": {"command": command, "verdict": "good", "target": target}}).to_string();
        let _ = server::parse(line.as_bytes());
    }
}
