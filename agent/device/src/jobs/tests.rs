use super::*;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use otandem_core::jobs::document::{JobDocument, OldSchema, parse};
use serde_json::{Value, json};

/// A device with a directory of handlers.
struct Bench {
    dir: tempfile::TempDir,
    terms: Terms,
    stop: Stop,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let handlers = dir.path().join("handlers");
        fs::create_dir(&handlers).unwrap();
        fs::set_permissions(&handlers, PermissionsExt::from_mode(0o700)).unwrap();
        let home = dir.path().join("home");
        let terms = Terms {
            search: place::search(Some(&home), dir.path(), &handlers),
            handler_directory: handlers,
            rule: Rule::Safe,
            handler_user: HandlerUser::Agent,
            step_timeout: None,
            job_timeout: None,
            grace: Duration::from_millis(200),
            cwd: dir.path().to_owned(),
            job: "job-1".into(),
            thing: "thing-1".into(),
            reboot_mark: Some(dir.path().join("mark")),
            reboot_wait: Duration::ZERO,
        };
        Self { dir, terms, stop: Stop::new().unwrap() }
    }

    fn handler(&self, name: &str, text: &str) -> PathBuf {
        self.file(&self.terms.handler_directory.join(name), text, 0o700)
    }

    fn file(&self, path: &Path, text: &str, mode: u32) -> PathBuf {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        path.to_owned()
    }

    fn execute(&self, document: &Value) -> Finish {
        execute(&plan(document), 0, &self.terms, &self.stop, &mut |_, _| {})
    }

    fn run(&self, document: &Value) -> (Outcome, Details) {
        match self.execute(document) {
            Finish::Ended(outcome, details) => (outcome, details),
            other => panic!("neither a reboot nor an image was asked for: {other:?}"),
        }
    }

    /// One handler with this text, run by a document of one step.
    fn script(&self, text: &str, change: impl FnOnce(&mut Value)) -> (Outcome, Details) {
        self.handler("h", text);
        let mut step = step("h", &[]);
        change(&mut step);
        self.run(&steps(&[step]))
    }

    fn failure(&self, document: &Value) -> String {
        match self.run(document).0 {
            Outcome::Failed { reason } => reason,
            other => panic!("not failed: {other:?}"),
        }
    }
}

fn plan(document: &Value) -> JobPlan {
    match parse(document, OldSchema::default()) {
        Ok(JobDocument::Plan(plan)) => plan,
        other => panic!("no plan: {other:?}"),
    }
}

fn steps(steps: &[Value]) -> Value {
    let steps: Vec<_> = steps.iter().map(|action| json!({ "action": action })).collect();
    json!({ "version": "1.0", "includeStdOut": true, "steps": steps })
}

fn step(handler: &str, args: &[&str]) -> Value {
    json!({"name": handler, "type": "runHandler", "input": {"handler": handler, "args": args, "path": "default"}})
}

fn command(text: &str) -> Value {
    json!({"name": "command", "type": "runCommand", "input": {"command": text}})
}

fn sh(script: &str) -> Value {
    command(&format!("/bin/sh,-c,{}", script.replace(',', "\\,")))
}

fn root() -> bool {
    let root = geteuid().is_root();
    if !root {
        eprintln!("skipped: only root can become another user");
    }
    root
}

#[test]
fn a_handler_gets_the_user_then_its_arguments() {
    let bench = Bench::new();
    bench.handler("h", "#!/bin/sh\nfor a in \"$@\"; do echo \"[$a]\"; done");
    let mut first = step("h", &["a b", ""]);
    first["runAsUser"] = json!("web");
    let (outcome, details) = bench.run(&steps(&[first, step("h", &[])]));
    assert_eq!(outcome, Outcome::succeeded("Job exited with status: 0"));
    assert_eq!(details["stdout"], "[web]\n[a b]\n[]\n[]\n");
}

#[test]
fn death_by_signal_is_no_success() {
    let (outcome, _) = Bench::new().script("#!/bin/sh\nkill -9 $$", |_| {});
    assert_eq!(outcome, Outcome::failed("Job killed by signal: 9 (SIGKILL), in step h"));
}

#[test]
fn exit_statuses_are_told_as_they_are() {
    for status in [1, 126, 127, 128, 137, 255] {
        let (outcome, _) = Bench::new().script(&format!("exit {status}"), |_| {});
        assert_eq!(outcome, Outcome::failed(format!("Job exited with status: {status}, in step h")));
    }
}

#[test]
fn thousands_of_lines_on_both_outputs_harm_nobody_and_their_ends_are_kept() {
    let text = "i=0; while [ $i -lt 3000 ]; do echo out$i; echo 'err 0123456789012345678901234567890123456789' >&2; \
                i=$((i+1)); done; echo last";
    let (outcome, details) = Bench::new().script(text, |_| {});
    assert_eq!(outcome, Outcome::succeeded("Job exited with status: 0"));
    assert!(details["stdout"].ends_with("out2999\nlast\n"));
    assert_eq!((details["stdout"].len(), details["stderr"].len()), (1024, 1024));
}

#[test]
fn binary_output_without_lines_is_told_as_far_as_it_is_text() {
    let (outcome, details) = Bench::new().script("head -c 3000000 /dev/zero; printf '\\377ok'", |_| {});
    assert!(matches!(outcome, Outcome::Succeeded { .. }));
    assert!(details["stdout"].ends_with(" \u{fffd}ok") && details["stdout"].chars().count() == 1024);
}

#[test]
fn a_hundred_megabytes_without_a_line_cost_nothing_but_their_reading() {
    let flood = "head -c 104857600 /dev/zero | tr '\\0' x";
    let (outcome, details) = Bench::new().script(&format!("{flood} & {flood} >&2; wait; exit 5"), |_| {});
    assert_eq!(outcome, Outcome::failed("Job exited with status: 5, in step h"));
    assert_eq!((details["stdout"].as_str(), details["stderr"].len()), ("x".repeat(1024).as_str(), 1024));
}

#[test]
fn standard_output_is_told_only_where_it_is_asked_for() {
    let bench = Bench::new();
    bench.handler("h", "echo out; echo err >&2");
    let mut document = steps(&[step("h", &[])]);
    document["includeStdOut"] = json!(false);
    let (_, details) = bench.run(&document);
    assert_eq!(details, Details::from([("stderr".into(), "err\n".into())]));
}

#[test]
fn lines_on_standard_error_fail_a_step_only_beyond_what_is_allowed() {
    for (allowed, passes) in [(json!(null), true), (json!(2), true), (json!(1), false), (json!(0), false)] {
        let (outcome, _) =
            Bench::new().script("echo 1 >&2; printf 2 >&2", |step| step["allowStdErr"] = allowed.clone());
        assert_eq!(matches!(outcome, Outcome::Succeeded { .. }), passes, "{allowed}: {outcome:?}");
    }
    let (outcome, _) = Bench::new().script("exit 3", |step| step["allowStdErr"] = json!(9));
    assert!(matches!(outcome, Outcome::Failed { .. }), "a step can fail whatever it may write");
}

#[test]
fn the_first_failure_ends_the_job_and_the_final_step_runs_only_after_success() {
    let bench = Bench::new();
    bench.handler("good", "echo good");
    bench.handler("bad", "echo bad; exit 4");
    bench.handler("final", "echo final");
    let mut document = steps(&[step("good", &[]), step("bad", &[]), step("good", &[])]);
    document["finalStep"] = json!({ "action": step("final", &[]) });
    let (outcome, details) = bench.run(&document);
    assert_eq!(outcome, Outcome::failed("Job exited with status: 4, in step bad"));
    assert_eq!(details["stdout"], "good\nbad\n");
    document["steps"][1]["action"]["ignoreStepFailure"] = json!("true");
    let (outcome, details) = bench.run(&document);
    assert!(matches!(outcome, Outcome::Succeeded { .. }));
    assert_eq!(details["stdout"], "good\nbad\ngood\nfinal\n");
    document["finalStep"]["action"] = step("bad", &[]);
    assert!(matches!(bench.run(&document).0, Outcome::Failed { .. }));
}

#[test]
fn each_step_is_announced_before_it_runs_and_a_job_can_go_on_in_its_middle() {
    let bench = Bench::new();
    bench.handler("h", "echo run");
    let document = steps(&[step("h", &[]), step("h", &[]), step("h", &[])]);
    let mut heard = vec![];
    let finish = execute(&plan(&document), 1, &bench.terms, &bench.stop, &mut |i, name| {
        heard.push((i, name.to_owned()));
    });
    assert_eq!(heard, [(1, "h".to_owned()), (2, "h".to_owned())]);
    assert!(matches!(finish, Finish::Ended(Outcome::Succeeded { .. }, d) if d["stdout"] == "run\nrun\n"));
}

#[test]
fn a_script_without_a_first_line_is_run_by_the_shell_and_what_is_no_text_is_not() {
    let (outcome, details) = Bench::new().script("echo \"$# $0\"", |_| {});
    assert!(matches!(outcome, Outcome::Succeeded { .. }), "{outcome:?}");
    assert!(details["stdout"].starts_with("1 /"), "{details:?}");
    for text in ["\x7fELF nonsense", "a\0b", "#!/no/interpreter\n"] {
        let (outcome, _) = Bench::new().script(text, |_| {});
        assert!(outcome.reason().starts_with("Job not started: "), "{outcome:?}");
    }
}

#[test]
fn handlers_are_found_by_path_default_or_directory() {
    let bench = Bench::new();
    let at = |path: Value, name: &str| {
        let mut step = step(name, &[]);
        step["input"]["path"] = path;
        bench.run(&steps(&[step])).1.remove("stdout").unwrap_or_default()
    };
    bench.handler("only-default", "echo handlers");
    bench.file(&bench.dir.path().join("own/h"), "echo own", 0o700);
    bench.file(&bench.dir.path().join("home/.aws-iot-device-client/jobs/h"), "echo home", 0o700);
    bench.file(&bench.dir.path().join("jobs/j"), "echo jobs", 0o700);
    bench.file(&bench.dir.path().join("c"), "echo cwd", 0o700);
    assert_eq!(at(json!("default"), "only-default"), "handlers\n");
    assert_eq!(at(json!(bench.dir.path().join("own")), "h"), "own\n");
    assert_eq!(at(Value::Null, "h"), "home\n");
    assert_eq!(at(json!(""), "j"), "jobs\n");
    assert_eq!(at(Value::Null, "c"), "cwd\n");
    assert_eq!(at(Value::Null, "only-default"), "handlers\n");
    // The system's come first: the user is an argument of theirs too.
    bench.handler("echo", "echo ours");
    assert_eq!(at(Value::Null, "echo"), "\n");
}

#[test]
fn a_handler_that_is_gone_fails_its_step_and_says_so() {
    let bench = Bench::new();
    let reason = bench.failure(&steps(&[step("gone", &[])]));
    assert!(reason.starts_with("Job not started: there is no handler /"), "{reason}");
    let mut searched = step("gone", &[]);
    searched["input"]["path"] = Value::Null;
    assert!(bench.failure(&steps(&[searched.clone()])).contains("there is no handler \"gone\""));
    searched["ignoreStepFailure"] = json!("true");
    assert!(matches!(bench.run(&steps(&[searched])).0, Outcome::Succeeded { .. }));
}

#[test]
fn what_others_may_change_is_not_run() {
    let bench = Bench::new();
    let file = bench.handler("h", "echo ran");
    let document = steps(&[step("h", &[])]);
    let mode = |path: &Path, mode| fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    for good in [0o700, 0o755, 0o500] {
        mode(&file, good);
        assert!(matches!(bench.run(&document).0, Outcome::Succeeded { .. }), "{good:o}");
    }
    mode(&file, 0o777);
    assert!(bench.failure(&document).contains("may be changed by everybody"));
    mode(&file, 0o600);
    assert!(bench.failure(&document).contains("no permission to execute"));
    mode(&file, 0o700);
    mode(&bench.terms.handler_directory, 0o777);
    // It may be /usr/local/bin, which others need: no more is taken away than must be.
    assert!(bench.failure(&document).contains("may be changed by everybody: chmod go-w it"));
    mode(&bench.terms.handler_directory, 0o700);
    if root() {
        std::os::unix::fs::chown(&file, Some(12345), None).unwrap();
        assert!(bench.failure(&document).contains("belongs to user 12345"));
        std::os::unix::fs::chown(&file, Some(0), Some(12345)).unwrap();
        mode(&file, 0o770);
        assert!(bench.failure(&document).contains("may be changed by group 12345"));
    }
}

#[test]
fn a_link_to_where_others_may_write_is_not_followed() {
    let bench = Bench::new();
    let open = bench.dir.path().join("open");
    bench.file(&open.join("h"), "echo ran", 0o700);
    fs::set_permissions(&open, PermissionsExt::from_mode(0o777)).unwrap();
    std::os::unix::fs::symlink(open.join("h"), bench.terms.handler_directory.join("h")).unwrap();
    assert!(bench.failure(&steps(&[step("h", &[])])).contains("may be changed by everybody"));
}

#[test]
fn strict_permissions_want_exactly_700() {
    let mut bench = Bench::new();
    let file = bench.handler("h", "echo ran");
    bench.terms.rule = Rule::Strict;
    let document = steps(&[step("h", &[])]);
    assert!(matches!(bench.run(&document).0, Outcome::Succeeded { .. }));
    fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
    assert!(bench.failure(&document).contains("has mode 755, not 700"));
    fs::set_permissions(&file, PermissionsExt::from_mode(0o700)).unwrap();
    fs::set_permissions(&bench.terms.handler_directory, PermissionsExt::from_mode(0o755)).unwrap();
    assert!(bench.failure(&document).contains("has mode 755, not 700"));
}

#[test]
fn a_command_is_executed_without_a_shell() {
    let bench = Bench::new();
    let (outcome, details) = bench.run(&steps(&[command(r"printf,%s\,%s,$HOME,*")]));
    assert!(matches!(outcome, Outcome::Succeeded { .. }), "{outcome:?}");
    assert_eq!(details["stdout"], "$HOME,*");
    assert!(bench.failure(&steps(&[command("no-such-program-here")])).contains("there is no such program"));
}

#[test]
fn a_command_of_an_unknown_user_never_runs_as_ourselves() {
    let bench = Bench::new();
    let mut step = sh("echo ran");
    step["runAsUser"] = json!("no-such-user");
    let (outcome, details) = bench.run(&steps(&[step]));
    assert_eq!(
        outcome,
        Outcome::failed("Job not started: there is no user \"no-such-user\" on this device, in step command")
    );
    assert!(details.is_empty());
}

#[test]
fn a_command_runs_as_its_user_and_a_handler_only_where_that_is_configured() {
    if !root() {
        return;
    }
    let mut bench = Bench::new();
    fs::set_permissions(bench.dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    fs::set_permissions(&bench.terms.handler_directory, PermissionsExt::from_mode(0o755)).unwrap();
    let file = bench.handler("h", "#!/bin/sh\nid -un");
    fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
    let (mut asked, mut handler) = (sh("id -un"), step("h", &[]));
    asked["runAsUser"] = json!("nobody");
    handler["runAsUser"] = json!("nobody");
    let document = steps(&[asked, handler]);
    assert_eq!(bench.run(&document).1["stdout"], "nobody\nroot\n");
    bench.terms.handler_user = HandlerUser::RunAsUser;
    assert_eq!(bench.run(&document).1["stdout"], "nobody\nnobody\n");
}

#[test]
fn programs_are_told_their_job_and_nothing_else() {
    let bench = Bench::new();
    let (_, details) = bench
        .run(&steps(&[sh("env | sort | cut -d= -f1 | tr '\\n' ' '; echo $OTANDEM_JOB_ID \
        $OTANDEM_THING_NAME $OTANDEM_STEP_NAME")]));
    let expected = "HOME OTANDEM_JOB_ID OTANDEM_REBOOT_MARK OTANDEM_STEP_NAME OTANDEM_THING_NAME PATH PWD ";
    let stdout = &details["stdout"];
    assert!(stdout.ends_with("job-1 thing-1 command\n"), "{stdout}");
    let names: Vec<_> = stdout.split(' ').filter(|n| !["_", "SHLVL", "OLDPWD"].contains(n)).collect();
    assert!(names.join(" ").starts_with(expected), "{stdout}");
}

#[test]
fn the_time_of_a_step_and_of_the_job_end_the_whole_group() {
    let short = Some(Duration::from_millis(50));
    let mut bench = Bench::new();
    bench.terms.step_timeout = short;
    // Ignores SIGTERM, so do its children.
    let document = steps(&[sh("trap '' TERM; sleep 1000 & sleep 1000; sleep 1000")]);
    assert!(bench.failure(&document).starts_with("Job timed out: the step ran for"));
    (bench.terms.step_timeout, bench.terms.job_timeout) = (None, short);
    let mut ignored = sh("sleep 1000");
    ignored["ignoreStepFailure"] = json!("true");
    assert!(bench.failure(&steps(&[ignored, sh("true")])).starts_with("Job timed out: all steps ran for"));
}

#[test]
fn a_child_in_the_background_does_not_hold_the_job_open() {
    let (outcome, details) = Bench::new().script("sleep 1000 & echo $!", |_| {});
    assert!(matches!(outcome, Outcome::Succeeded { .. }));
    let pid = details["stdout"].trim().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[test]
fn a_handler_that_closes_its_outputs_is_waited_for() {
    let (outcome, _) = Bench::new().script("exec >&- 2>&-; exit 7", |_| {});
    assert_eq!(outcome, Outcome::failed("Job exited with status: 7, in step h"));
}

#[test]
fn a_stop_ends_the_step_and_no_other_begins() {
    let bench = Bench::new();
    let stop = bench.stop.clone();
    let document = steps(&[sh("sleep 1000"), sh("echo never")]);
    let finish = execute(&plan(&document), 0, &bench.terms, &bench.stop, &mut |_, _| stop.stop());
    let Finish::Ended(outcome, details) = finish else { panic!() };
    assert_eq!(outcome, Outcome::failed("Job stopped, in step command"));
    assert!(details.is_empty());
}

#[test]
fn a_step_that_reboots_is_waited_for_until_the_device_goes_down() {
    let bench = Bench::new();
    let document = steps(&[sh("echo $OTANDEM_JOB_ID >$OTANDEM_REBOOT_MARK"), sh("echo never")]);
    let stop = bench.stop.clone();
    let mut terms = bench.terms.clone();
    terms.reboot_wait = Duration::from_secs(1000);
    let goes_down = std::thread::spawn({
        let mark = terms.reboot_mark.clone().unwrap();
        move || {
            while !asked_for_reboot(&mark, "job-1") {
                std::thread::yield_now();
            }
            stop.stop();
        }
    });
    assert_eq!(execute(&plan(&document), 0, &terms, &bench.stop, &mut |_, _| {}), Finish::Rebooting);
    goes_down.join().unwrap();
    assert!(asked_for_reboot(terms.reboot_mark.as_ref().unwrap(), "job-1"), "the next start must find it");
}

#[test]
fn a_reboot_that_does_not_happen_fails_the_job() {
    let bench = Bench::new();
    let asks = sh("echo $OTANDEM_JOB_ID >$OTANDEM_REBOOT_MARK");
    let reason = bench.failure(&steps(&[asks, sh("echo never")]));
    assert_eq!(reason, "the reboot that step command asked for did not happen");
    let mark = bench.terms.reboot_mark.clone().unwrap();
    assert!(!mark.exists());
    // Of another job, or of a step that failed: none.
    fs::write(&mark, "job-2\n").unwrap();
    assert!(!asked_for_reboot(&mark, "job-1"));
    let failed = sh("echo $OTANDEM_JOB_ID >$OTANDEM_REBOOT_MARK; exit 5");
    assert!(bench.failure(&steps(&[failed])).starts_with("Job exited with status: 5"));
}

#[test]
fn steps_end_at_one_that_installs_and_go_on_behind_it() {
    let bench = Bench::new();
    let image = json!({"url": "https://h/i", "sha256": "ab".repeat(32)});
    let install = json!({"name": "n", "type": "installImage", "input": {"image": image}});
    let mut heard = vec![];
    let plan = plan(&steps(&[sh("echo one"), install, sh("echo two")]));
    let mut begins = |index, _: &str| heard.push(index);
    let Finish::Installs(installs) = execute(&plan, 0, &bench.terms, &bench.stop, &mut begins) else {
        panic!("not an installation")
    };
    assert_eq!((installs.index, installs.step.name.as_str()), (1, "n"));
    assert_eq!(installs.details["stdout"], "one\n");
    let Finish::Ended(outcome, details) = execute(&plan, 2, &bench.terms, &bench.stop, &mut begins) else {
        panic!("not the end")
    };
    assert!(matches!(outcome, Outcome::Succeeded { .. }), "{outcome:?}");
    assert_eq!(
        (details["stdout"].as_str(), heard),
        ("two\n", vec![0, 2]),
        "the update machine begins the other"
    );
}
