use super::pump::Tail;
use super::*;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use proptest::prelude::*;

fn sh(script: &str) -> Spec {
    Spec::new(["/bin/sh", "-c", script])
}

fn run_now(spec: Spec) -> Outcome {
    run(spec, &Stop::new().unwrap()).unwrap()
}

fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: only root can become another user");
    }
    root
}

/// A pipe with a name: it reports its end only when the last process that has it open is gone.
struct Fifo {
    path: PathBuf,
    reader: File,
    /// Ours, as long as nobody else has opened it.
    writer: Option<File>,
    _dir: tempfile::TempDir,
}

impl Fifo {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let reader = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        let writer = Some(File::options().write(true).open(&path).unwrap());
        Self { path, reader, writer, _dir: dir }
    }

    fn wait_for_up(&mut self) {
        let mut up = [0; 3];
        self.reader.read_exact(&mut up).unwrap();
    }

    fn wait_until_all_holders_are_gone(&mut self) -> String {
        self.writer = None;
        let mut text = String::new();
        self.reader.read_to_string(&mut text).unwrap();
        text
    }
}

#[test]
fn exit_codes_and_signals_are_told_apart() {
    assert_eq!(run_now(sh("exit 0")).end, End::Exited(0));
    assert_eq!(run_now(sh("exit 127")).end, End::Exited(127));
    assert_eq!(run_now(sh("kill -9 $$")).end, End::Signaled(9));
    assert!(run_now(sh("true")).success() && !run_now(sh("false")).success());
}

#[test]
fn a_program_that_cannot_start_is_no_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str, mode: u32| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        path
    };
    let start = |program: &Path| run(Spec::new([program]), &Stop::new().unwrap()).unwrap_err();
    assert!(matches!(start(&dir.path().join("none")), RunError::NotFound { .. }));
    assert!(matches!(start(Path::new("no-such-program-here")), RunError::NotFound { .. }));
    assert!(matches!(start(&file("plain", "#!/bin/sh\n", 0o644)), RunError::NoPermission { .. }));
    assert!(matches!(start(&file("bad", "#!/no/interpreter\n", 0o755)), RunError::NotExecutable { .. }));
    assert!(matches!(start(&file("elf", "\x7fELF nonsense", 0o755)), RunError::NotExecutable { .. }));
    assert!(matches!(start(dir.path()), RunError::NoPermission { .. }));
    let nowhere = Spec { cwd: Some(dir.path().join("none")), ..sh("true") };
    assert!(matches!(run(nowhere, &Stop::new().unwrap()), Err(RunError::Directory { .. })));
}

#[test]
fn a_specification_that_makes_no_sense_starts_nothing() {
    let bad = |spec: Spec| assert!(matches!(Running::start(spec), Err(RunError::BadSpec { .. })));
    bad(Spec::new([""]));
    bad(Spec::new(Vec::<OsString>::new()));
    bad(sh("true\0"));
    for (key, value) in [("", "x"), ("a=b", "x"), ("a", "\0")] {
        bad(Spec { env: vec![(key.into(), value.into())], ..sh("true") });
    }
    bad(Spec { env: vec![("A".into(), "x".repeat(MAX_ENV).into())], ..sh("true") });
}

#[test]
fn megabytes_on_both_outputs_neither_block_nor_cost_more_than_their_tails() {
    let script = "i=0; while [ $i -lt 20000 ]; do \
        echo 'out 0123456789012345678901234567890123456789012345678901234567890123456789'; \
        echo 'err 0123456789012345678901234567890123456789012345678901234567890123456789' >&2; \
        i=$((i+1)); done; echo last; printf end >&2";
    let out = run_now(Spec { output_tail: 100, ..sh(script) });
    assert_eq!(out.end, End::Exited(0));
    assert_eq!((out.stdout_tail.len(), out.stderr_tail.len()), (100, 100));
    assert!(out.stdout_tail.ends_with("\nlast\n") && out.stderr_tail.ends_with("\nend"));
    assert_eq!(out.stderr_lines, 20_001);
}

#[test]
fn a_background_grandchild_that_keeps_the_pipe_open_holds_nobody() {
    let mut fifo = Fifo::new();
    let script = format!("exec 3>{}; echo up >&3; sleep 1000 & echo $!", fifo.path.display());
    let out = run_now(sh(&script));
    assert_eq!(out.end, End::Exited(0));
    // It may live on (a service that was restarted); this one is not needed any more.
    let pid = out.stdout_tail.trim().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(fifo.wait_until_all_holders_are_gone(), "up\n");
}

#[test]
fn a_process_in_the_background_may_go_on_to_write_when_its_parent_has_ended() {
    let mut fifo = Fifo::new();
    let go = fifo.path.with_extension("go");
    let more = "i=0; while [ $i -lt 3000 ]; do echo 01234567890123456789012345678901234567890123456789; i=$((i+1)); done";
    let waits = format!("while [ ! -e {} ]; do sleep 0.01; done", go.display());
    let script = format!("({waits}; {more}; echo alive >&3) 3>{} & echo started", fifo.path.display());
    assert_eq!(run_now(sh(&script)).stdout_tail, "started\n");
    std::fs::write(go, "").unwrap();
    // Its own lines fill a pipe twice over; the shell's `echo` would end it at a closed one.
    assert_eq!(fifo.wait_until_all_holders_are_gone(), "alive\n");
}

#[test]
fn the_time_limit_ends_the_whole_group_even_what_ignores_sigterm() {
    let mut fifo = Fifo::new();
    let script =
        format!("exec 3>{}; (trap '' TERM; sleep 1000; sleep 1000) & sleep 1000", fifo.path.display());
    let limit = Some(Duration::from_millis(100));
    let out = run_now(Spec { time_limit: limit, grace: Duration::from_millis(50), ..sh(&script) });
    assert_eq!(out.end, End::TimedOut);
    fifo.wait_until_all_holders_are_gone();
}

#[test]
fn a_stop_ends_the_group_which_may_clean_up_first() {
    let mut fifo = Fifo::new();
    let script = format!(
        "trap 'echo cleaned; exit 0' TERM; exec 3>{}; (echo up >&3; exec sleep 1000) & wait",
        fifo.path.display()
    );
    let stop = Stop::new().unwrap();
    let running = Running::start(sh(&script)).unwrap();
    let waiting = std::thread::spawn({
        let stop = stop.clone();
        move || running.wait(&stop).unwrap()
    });
    fifo.wait_for_up();
    stop.stop();
    let out = waiting.join().unwrap();
    assert_eq!((out.end, out.stdout_tail.as_str()), (End::Stopped, "cleaned\n"));
    assert_eq!(fifo.wait_until_all_holders_are_gone(), "");
    assert!(stop.is_set() && stop.flag().load(Ordering::SeqCst));
}

#[test]
fn a_stop_before_the_start_ends_it_at_once() {
    let stop = Stop::new().unwrap();
    stop.stop();
    assert_eq!(run(sh("sleep 1000"), &stop).unwrap().end, End::Stopped);
}

#[test]
fn what_is_dropped_is_killed() {
    let mut fifo = Fifo::new();
    let running =
        Running::start(sh(&format!("exec 3>{}; echo up >&3; sleep 1000", fifo.path.display()))).unwrap();
    fifo.wait_for_up();
    drop(running);
    assert_eq!(fifo.wait_until_all_holders_are_gone(), "");
}

#[test]
fn signal_handling_starts_from_defaults() {
    // This process ignores SIGPIPE, as every Rust program; a blocked signal is added.
    let mut blocked = nix::sys::signal::SigSet::empty();
    blocked.add(nix::sys::signal::Signal::SIGTERM);
    blocked.thread_block().unwrap();
    let status = run_now(Spec::new(["cat", "/proc/self/status"])).stdout_tail;
    blocked.thread_unblock().unwrap();
    for field in ["SigIgn:", "SigBlk:"] {
        let mask = status.lines().find_map(|l| l.strip_prefix(field)).unwrap();
        // Two real-time signals belong to the C library, which lets nobody change them.
        let mask = u64::from_str_radix(mask.trim(), 16).unwrap() & !(0b11 << 31);
        assert_eq!(mask, 0, "{field} {mask:x}");
    }
}

#[test]
fn no_descriptor_is_inherited() {
    let file = File::open("/dev/null").unwrap();
    let inheritable = fcntl(&file, FcntlArg::F_DUPFD(100)).unwrap();
    assert!(inheritable >= 100 && inheritable != file.as_raw_fd());
    let listed = run_now(sh("echo /proc/self/fd/*")).stdout_tail;
    nix::unistd::close(inheritable).unwrap();
    assert!(listed.contains("/proc/self/fd/2") && !listed.contains("/proc/self/fd/1 0"), "{listed}");
    assert!(!listed.contains(&format!("/fd/{inheritable}")), "{listed}");
}

#[test]
fn the_environment_is_exactly_what_was_given() {
    let env = vec![("A".into(), "1".into()), ("B".into(), "two words".into())];
    let out = run_now(Spec { env, ..Spec::new(["/usr/bin/env"]) });
    let mut lines: Vec<_> = out.stdout_tail.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["A=1", "B=two words"]);
}

#[test]
fn it_leads_a_session_of_its_own_in_the_directory_given() {
    let out =
        run_now(Spec { cwd: Some("/usr".into()), ..sh("pwd; cut -d' ' -f1,5,6 /proc/$$/stat; echo $$") });
    let mut lines = out.stdout_tail.lines();
    assert_eq!(lines.next(), Some("/usr"));
    let numbers = lines.next().unwrap().to_owned();
    let pid = lines.next().unwrap();
    assert_eq!(numbers, format!("{pid} {pid} {pid}"));
    assert_eq!(run_now(sh("pwd")).stdout_tail, "/\n");
}

#[test]
fn input_is_fed_whole_and_may_be_ignored() {
    let input = vec![b'x'; 1_000_000];
    let out = run_now(Spec { stdin: Some(input.clone()), ..sh("wc -c") });
    assert_eq!(out.stdout_tail.trim(), "1000000");
    assert_eq!(run_now(Spec { stdin: Some(input), ..sh("exit 3") }).end, End::Exited(3));
    assert_eq!(run_now(Spec { stdin: Some(vec![]), ..sh("cat") }).stdout_tail, "");
    assert_eq!(run_now(sh("cat")).stdout_tail, "", "without input there is none");
}

#[test]
fn an_unknown_user_or_group_never_runs_as_ourselves() {
    let user = Spec { user: Some("no-such-user".into()), ..sh("true") };
    assert!(matches!(Running::start(user), Err(RunError::UnknownUser { .. })));
    let nul = Spec { user: Some("root\0".into()), ..sh("true") };
    assert!(Running::start(nul).is_err());
    let group = Spec { group: Some("no-such-group".into()), ..sh("true") };
    assert!(matches!(Running::start(group), Err(RunError::UnknownGroup { .. })));
}

#[test]
fn another_user_has_its_own_groups_alone() {
    if !root() {
        return;
    }
    let ids = "id -u; id -g; id -G; grep -E '^(Uid|Gid)' /proc/$$/status";
    let spec = Spec { user: Some("nobody".into()), ..sh(ids) };
    // From a thread that has a group more, which must not be handed on.
    let out = std::thread::spawn(move || {
        let extra: [libc::gid_t; 1] = [12345];
        // SAFETY: one valid array; called past the C library it concerns this thread alone.
        assert_eq!(unsafe { libc::syscall(libc::SYS_setgroups, 1, extra.as_ptr()) }, 0);
        run_now(spec)
    })
    .join()
    .unwrap();
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    let lines: Vec<_> = out.stdout_tail.lines().collect();
    assert_eq!(lines[0], nobody.uid.to_string());
    assert_eq!(lines[1], nobody.gid.to_string());
    assert_eq!(lines[2], nobody.gid.to_string());
    let all_four = |line: &str, id: String| line.split_whitespace().skip(1).all(|field| field == id);
    assert!(all_four(lines[3], lines[0].to_owned()) && all_four(lines[4], lines[1].to_owned()), "{lines:?}");
}

#[test]
fn a_directory_that_the_user_may_not_enter_is_told() {
    if !root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o700)).unwrap();
    let spec = Spec { user: Some("nobody".into()), cwd: Some(dir.path().into()), ..sh("true") };
    assert!(matches!(Running::start(spec), Err(RunError::Directory { .. })));
}

#[test]
fn a_tail_begins_with_a_whole_character() {
    let out = run_now(Spec { output_tail: 4, ..sh("printf 'aäöü'") });
    assert_eq!(out.stdout_tail, "öü");
    let out = run_now(Spec { output_tail: 3, ..sh("printf 'aäöü'") });
    assert_eq!(out.stdout_tail, "ü");
}

proptest! {
    #[test]
    fn the_tail_is_the_end_of_the_text_whatever_the_pieces(
        text in "[a-zäöü€\u{1F600}\n]{0,200}", limit in 0..80_usize, piece in 1..30_usize,
    ) {
        let mut tail = Tail::new(limit);
        for chunk in text.as_bytes().chunks(piece) {
            tail.push(chunk);
        }
        prop_assert_eq!(tail.lines(), u64::try_from(text.lines().count()).unwrap());
        let kept = tail.finish();
        prop_assert!(text.ends_with(&kept));
        prop_assert!(kept.len() <= limit && kept.len() + 3 >= limit.min(text.len()));
    }

    #[test]
    fn bytes_that_are_no_text_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), limit in 0..50_usize) {
        let mut tail = Tail::new(limit);
        tail.push(&bytes);
        prop_assert!(tail.finish().chars().count() <= limit);
    }
}
