//! `otandem job plan` and `otandem job run`: documents on this device, without a daemon and without the cloud.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../handlers");

struct Desk {
    dir: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o700)).unwrap();
        let desk = Self { dir };
        desk.config("[jobs.attributes]\nregion = 'north'\n");
        desk
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn handler(&self, name: &str, text: &str) {
        let path = self.handlers().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
    }

    fn handlers(&self) -> PathBuf {
        let handlers = self.dir.path().join("handlers");
        if !handlers.exists() {
            fs::create_dir(&handlers).unwrap();
            fs::set_permissions(&handlers, PermissionsExt::from_mode(0o700)).unwrap();
        }
        handlers
    }

    fn config(&self, text: &str) {
        let socket = self.dir.path().join("control.sock");
        let own = format!("[update]\nstate-dir = {:?}\n[control]\nsocket = {socket:?}\n", self.state());
        fs::write(self.dir.path().join("otandem.toml"), own + text).unwrap();
    }

    fn otandem(&self, args: &[&str], stdin: &str) -> Output {
        let mut child = Command::new(env!("CARGO_BIN_EXE_otandem"))
            .args(["--config", self.dir.path().join("otandem.toml").to_str().unwrap()])
            .args(args)
            .current_dir(self.dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Who refuses before it reads need not read.
        if let Err(e) = child.stdin.take().unwrap().write_all(stdin.as_bytes()) {
            assert_eq!(e.kind(), ErrorKind::BrokenPipe);
        }
        child.wait_with_output().unwrap()
    }

    fn plan(&self, document: &Value) -> (Option<i32>, Value) {
        answer(&self.otandem(&["job", "plan", "-"], &document.to_string()))
    }

    fn run(&self, document: &Value) -> (Option<i32>, Value) {
        let handlers = self.handlers();
        let args =
            ["job", "run", "-", "--handler-directory", handlers.to_str().unwrap(), "--job-id", "job-7"];
        answer(&self.otandem(&args, &document.to_string()))
    }
}

fn answer(output: &Output) -> (Option<i32>, Value) {
    let text = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    (output.status.code(), serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text:?} {said}")))
}

fn handler(name: &str) -> Value {
    json!({"operation": name, "path": "default", "includeStdOut": true})
}

#[test]
fn a_plan_is_printed_and_nothing_runs() {
    let desk = Desk::new();
    let (exit, plan) = desk.plan(&json!({"operation":"touch","args":["ran"]}));
    assert_eq!(exit, Some(0));
    assert_eq!(
        plan,
        json!({"schema":"operation","valid":true,"includeStdOut":false,"finalStep":null,"steps":[
            {"name":"touch","type":"runHandler","argv":["touch","","ran"],"path":null,"runAsUser":"",
             "ignoreStepFailure":false,"allowStdErr":0}]})
    );
    assert!(!desk.dir.path().join("ran").exists());
}

#[test]
fn a_document_that_is_wrong_is_told_with_the_member_and_a_failing_exit() {
    let desk = Desk::new();
    let wrong = json!({"version":"1.0","steps":[{"action":{"name":"n","type":"runHandler","input":{}}}]});
    let (exit, plan) = desk.plan(&wrong);
    assert_eq!(exit, Some(65));
    let reason =
        "Unable to execute job, invalid job document provided! steps[0].action.input.handler: missing";
    assert_eq!(plan, json!({"valid":false,"reason":reason}));
    let (exit, status) = desk.run(&wrong);
    assert_eq!(exit, Some(65));
    assert_eq!(status, json!({"status":"REJECTED","statusDetails":{"reason":reason}}));
    let (exit, plan) = answer(&desk.otandem(&["job", "plan", "-"], "\u{1}"));
    assert_eq!((exit, plan["valid"].clone()), (Some(65), json!(false)));
    assert_eq!(desk.otandem(&["job", "plan", "/nonexistent"], "").status.code(), Some(66));
    // No size is told: of what is too long no more is read than shows that it is.
    let (exit, plan) = answer(&desk.otandem(&["job", "plan", "-"], &" ".repeat(40_000)));
    let reason = "Unable to execute job, invalid job document provided! more than 32768 bytes";
    assert_eq!((exit, plan), (Some(65), json!({"valid":false,"reason":reason})));
}

#[test]
fn the_status_is_printed_as_it_would_be_told() {
    let desk = Desk::new();
    desk.handler("good", "#!/bin/sh\necho \"$OTANDEM_JOB_ID\"");
    desk.handler("bad", "echo why >&2; exit 3");
    let (exit, status) = desk.run(&handler("good"));
    assert_eq!(exit, Some(0));
    let details = json!({"reason":"Job exited with status: 0","stdout":"job-7\n"});
    assert_eq!(status, json!({"status":"SUCCEEDED","statusDetails":details}));
    let (exit, status) = desk.run(&handler("bad"));
    assert_eq!(exit, Some(1));
    let details = json!({"reason":"Job exited with status: 3, in step bad","stderr":"why\n"});
    assert_eq!(status, json!({"status":"FAILED","statusDetails":details}));
}

#[test]
fn a_name_in_a_document_tells_the_terminal_nothing() {
    let step = json!({"name":"a\u{1b}[31m\nb","type":"runCommand","input":{"command":"true"}});
    let document = json!({"version":"1.0","steps":[{"action":step}]}).to_string();
    let said = Desk::new().otandem(&["job", "run", "-"], &document).stderr;
    let said = String::from_utf8(said).unwrap();
    assert!(said.starts_with("step 1/1: a [31m b\n") && !said.contains('\u{1b}'), "{said:?}");
}

#[test]
fn how_this_device_reads_documents_is_configured() {
    let desk = Desk::new();
    desk.handler("h", "echo $#; echo line >&2");
    assert_eq!(desk.run(&handler("h")).1["status"], "FAILED", "a line on stderr, in the old schema");
    desk.config("[jobs]\nold-schema-stderr = 'ignore'\nold-schema-user-argument = false\n");
    assert_eq!(desk.run(&handler("h")).1["statusDetails"]["stdout"], "0\n");
    desk.config("[jobs]\nold-schema-stderr = 'ignore'\nstrict-permissions = true\nhandler-timeout = '1h'\n");
    assert_eq!(desk.run(&handler("h")).1["status"], "SUCCEEDED");
    fs::set_permissions(desk.handlers().join("h"), PermissionsExt::from_mode(0o755)).unwrap();
    let reason = desk.run(&handler("h")).1["statusDetails"]["reason"].to_string();
    assert!(reason.contains("has mode 755"), "{reason}");
}

#[test]
fn settings_that_are_not_used_are_told() {
    let desk = Desk::new();
    let document = handler("h").to_string();
    desk.config("[jobs]\nstrict-permissions = true\nhandler-timeout = 'soon'\n");
    for verb in ["plan", "run"] {
        let output = desk.otandem(&["job", verb, "-"], &document);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(78) && said.contains("jobs.handler-timeout"), "{said}");
    }
    desk.config("[jobs]\nstrict-permissions = true\nenabled = false\n");
    let output = desk.otandem(&["job", "plan", "-"], &document);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("the defaults hold"), "{said}");
}

#[test]
fn conditions_decide_whether_it_runs_here() {
    let desk = Desk::new();
    desk.handler("h", "exit 0");
    let mut document = handler("h");
    document["conditions"] = json!([{"key":"region","value":["north"]}]);
    assert_eq!(desk.run(&document).1["status"], "SUCCEEDED");
    document["conditions"] = json!([{"key":"region","value":["south"]}]);
    let (exit, status) = desk.run(&document);
    assert_eq!((exit, status["status"].as_str()), (Some(65), Some("REJECTED")));
    let reason = status["statusDetails"]["reason"].to_string();
    assert!(reason.contains("region is") && reason.contains("south"), "{reason}");
}

#[test]
fn a_firmware_document_is_sent_to_its_own_command() {
    let desk = Desk::new();
    let document = json!({"operation":"fota","image":{"url":"https://h/i","sha256":"ab".repeat(32)}});
    assert_eq!(desk.plan(&document).1["schema"], "fota");
    let output = desk.otandem(&["job", "run", "-"], &document.to_string());
    assert_eq!(output.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&output.stderr).contains("otandem fota handle"));
}

#[test]
fn a_document_that_installs_is_sent_to_other_commands() {
    let desk = Desk::new();
    let image = json!({"url":"https://h/i","sha256":"ab".repeat(32)});
    let install = json!({"action":{"name":"n","type":"installImage","input":{"image":image}}});
    let document = json!({"version":"1.0","steps":[install]});
    assert_eq!(desk.plan(&document).1["steps"][0]["type"], "installImage");
    let output = desk.otandem(&["job", "run", "-"], &document.to_string());
    assert_eq!(output.status.code(), Some(64));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("`otandem install FILE`") && said.contains("`otandem fota handle FILE`"), "{said}");
}

#[test]
fn no_job_runs_beside_another_command_that_has_the_state_unless_it_is_said() {
    let desk = Desk::new();
    desk.handler("h", "exit 0");
    assert_eq!(desk.run(&handler("h")).1["status"], "SUCCEEDED");
    assert!(!desk.state().exists(), "a device without state gets none by this");
    let state = otandem_device::state::StateDir::open(&desk.state()).unwrap();
    let lock = state.lock().unwrap();
    let handlers = desk.handlers();
    let args = ["job", "run", "-", "--handler-directory", handlers.to_str().unwrap()];
    let document = handler("h").to_string();
    let output = desk.otandem(&args, &document);
    assert_eq!(output.status.code(), Some(75));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("is in use by") && said.contains("--beside"), "{said}");
    assert_eq!(
        answer(&desk.otandem(&[&args[..], &["--beside"]].concat(), &document)).1["status"],
        "SUCCEEDED"
    );
    drop(lock);
    assert_eq!(answer(&desk.otandem(&args, &document)).1["status"], "SUCCEEDED");
}

#[test]
fn an_interrupt_ends_what_runs_and_the_job_has_failed() {
    let desk = Desk::new();
    desk.handler("h", "echo up >&2; exec sleep 1000");
    let document = json!({"operation":"h","path":"default"}).to_string();
    fs::write(desk.dir.path().join("doc.json"), document).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_otandem"))
        .args(["--config", "otandem.toml", "job", "run", "doc.json", "--handler-directory", "handlers"])
        .current_dir(desk.dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The step has begun.
    let mut said = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut said, &mut line).unwrap();
    assert_eq!(line, "step 1/1: h\n");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let output = child.wait_with_output().unwrap();
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(status["statusDetails"]["reason"], "Job stopped, in step h");
    assert_eq!(output.status.code(), Some(1));
}

/// The console's templates with the parameters filled as it does: what is left out arrives as "".
#[test]
fn the_managed_templates_run_with_the_handlers_that_are_shipped() {
    let desk = Desk::new();
    for entry in fs::read_dir(SHIPPED).unwrap() {
        let path = entry.unwrap().path();
        let copy = desk.handlers().join(path.file_name().unwrap());
        fs::copy(&path, &copy).unwrap();
        fs::set_permissions(&copy, PermissionsExt::from_mode(0o700)).unwrap();
    }
    let template = |name: &str, handler: &str, args: &[&str]| {
        json!({"version":"1.0","steps":[{"action":{"name":name,"type":"runHandler","runAsUser":"",
            "input":{"handler":handler,"args":args,"path":""}}}]})
    };
    for (document, argv) in [
        (template("Reboot", "reboot.sh", &[]), vec!["reboot.sh", ""]),
        (
            template("Download-File", "download-file.sh", &["https://h/f", "/tmp/f"]),
            vec!["download-file.sh", "", "https://h/f", "/tmp/f"],
        ),
        (
            template("Install-Application", "install-packages.sh", &["a b"]),
            vec!["install-packages.sh", "", "a b"],
        ),
        (
            template("Remove-Application", "remove-packages.sh", &["a b"]),
            vec!["remove-packages.sh", "", "a b"],
        ),
        (template("Start-Application", "start-services.sh", &["s"]), vec!["start-services.sh", "", "s"]),
        (template("Stop-Application", "stop-services.sh", &["s"]), vec!["stop-services.sh", "", "s"]),
        (
            template("Restart-Application", "restart-services.sh", &["s"]),
            vec!["restart-services.sh", "", "s"],
        ),
        (
            json!({"version":"1.0","steps":[{"action":{"name":"Run-Command","type":"runCommand","runAsUser":"",
                "input":{"command":"echo,Hello\\, world"}}}]}),
            vec!["echo", "Hello, world"],
        ),
    ] {
        let (exit, plan) = desk.plan(&document);
        assert_eq!((exit, &plan["steps"][0]["argv"]), (Some(0), &json!(argv)), "{document}");
        assert!(argv[0] == "echo" || desk.handlers().join(argv[0]).exists());
    }
    // Those that change nothing on this machine run to their end, found without a path.
    let (_, status) = desk.run(&template("Health", "health-check.sh", &[]));
    assert_eq!(status["status"], "SUCCEEDED", "{status}");
    let refused = template("Download-File", "download-file.sh", &["ftp://h/f", "/tmp/f"]);
    let (_, status) = desk.run(&refused);
    assert_eq!(status["status"], "FAILED");
    assert!(status["statusDetails"]["stderr"].to_string().contains("no http or https URL"), "{status}");
}

#[test]
fn the_handlers_directory_is_named_from_anywhere() {
    let desk = Desk::new();
    desk.handler("h", "exit 0");
    fs::write(desk.dir.path().join("d.json"), handler("h").to_string()).unwrap();
    let output = desk.otandem(&["job", "run", "d.json", "--handler-directory", "handlers"], "");
    assert_eq!(answer(&output).1["status"], "SUCCEEDED");
    assert!(Path::new(SHIPPED).exists());
}

#[test]
fn a_command_of_a_user_who_may_not_be_become_fails_and_never_runs_as_the_agent() {
    use std::os::unix::process::CommandExt;
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let document = json!({"version":"1.0","includeStdOut":true,"steps":[{"action":{"name":"n","type":"runCommand",
        "runAsUser":"root","input":{"command":"/bin/echo,ran"}}}]});
    fs::write(dir.path().join("d.json"), document.to_string()).unwrap();
    fs::write(dir.path().join("otandem.toml"), "[control]\nsocket = '/nonexistent/sock'\n").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_otandem"));
    if nix::unistd::geteuid().is_root() {
        // Where the build is, that user may not look.
        let copy = dir.path().join("otandem");
        fs::copy(env!("CARGO_BIN_EXE_otandem"), &copy).unwrap();
        command = Command::new(copy);
        command.uid(65534).gid(65534);
    }
    let args = ["--config", "otandem.toml", "job", "run", "d.json", "--beside"];
    let output = command.args(args).current_dir(dir.path()).stdin(Stdio::null()).output().unwrap();
    let (exit, status) = answer(&output);
    assert_eq!((exit, status["status"].as_str()), (Some(1), Some("FAILED")), "{status}");
    assert_eq!(status["statusDetails"].get("stdout"), None, "{status}");
}
