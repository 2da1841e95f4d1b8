//! The job handlers, run by the shells that devices have, with tools in `PATH` that only write down how they were
//! called.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const HANDLERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../handlers");

/// What handlers may use beside the tools that they are for.
const BASICS: [&str; 10] = ["id", "env", "rm", "mv", "sync", "sleep", "sh", "setsid", "cat", "touch"];

/// A device with a few tools, whose shell is one of those that devices have.
struct Device {
    dir: tempfile::TempDir,
    shell: Vec<&'static str>,
    env: Vec<(String, String)>,
}

impl Device {
    fn all(tools: &[&str]) -> Vec<Self> {
        let mut devices = vec![];
        for shell in [vec!["dash"], vec!["busybox", "sh"]] {
            if which(shell[0]).is_none() {
                eprintln!("skipped: no {} on this machine", shell[0]);
                continue;
            }
            // Its applets come before what stands in PATH: it would run the real thing.
            if shell[0] == "busybox" && tools.iter().any(|tool| is_applet(tool)) {
                continue;
            }
            let device = Self { dir: tempfile::tempdir().unwrap(), shell, env: vec![] };
            fs::create_dir(device.path("bin")).unwrap();
            for tool in BASICS {
                if let Some(found) = which(tool) {
                    symlink(found, device.path("bin").join(tool)).unwrap();
                }
            }
            tools.iter().for_each(|tool| device.tool(tool, "exit 0"));
            devices.push(device);
        }
        assert!(!devices.is_empty());
        devices
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A tool that writes down how it was called, then does this.
    fn tool(&self, name: &str, then: &str) {
        assert!(self.shell[0] != "busybox" || !is_applet(name), "{name} would be the real one");
        let path = self.path("bin").join(name);
        // What stands there may be a link to the real one.
        let _ = fs::remove_file(&path);
        let log = self.path("log");
        let script = format!("#!/bin/sh\necho \"{name} $*\" >>'{}'\n{then}\n", log.display());
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    }

    fn run(&self, handler: &str, args: &[&str]) -> Output {
        let _ = fs::remove_file(self.path("log"));
        let shell = which(self.shell[0]).unwrap();
        Command::new(shell)
            .args(&self.shell[1..])
            .arg(Path::new(HANDLERS).join(handler))
            .args(args)
            .env_clear()
            .env("PATH", self.path("bin"))
            .env("SVDIR", self.path("service"))
            .env("OTANDEM_INIT_DIR", self.path("init.d"))
            .envs(self.env.iter().cloned())
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn log(&self) -> Vec<String> {
        let log = fs::read_to_string(self.path("log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    #[track_caller]
    fn does(&self, handler: &str, args: &[&str], log: &[&str]) {
        let output = self.run(handler, args);
        assert!(output.status.success(), "{:?} {handler} {args:?}: {}", self.shell, said(&output));
        assert_eq!(self.log(), log, "{:?} {handler} {args:?}", self.shell);
    }

    #[track_caller]
    fn fails(&self, handler: &str, args: &[&str], why: &str) {
        let output = self.run(handler, args);
        assert!(!output.status.success(), "{:?} {handler} {args:?} succeeds", self.shell);
        let said = said(&output);
        assert!(said.contains(why), "{:?} {handler} {args:?}: {said:?} does not say {why:?}", self.shell);
    }
}

fn which(tool: &str) -> Option<PathBuf> {
    ["/usr/bin", "/bin", "/usr/sbin", "/sbin"].iter().map(|d| Path::new(d).join(tool)).find(|p| p.exists())
}

fn is_applet(tool: &str) -> bool {
    let listed = Command::new("busybox").arg("--list").output().unwrap().stdout;
    String::from_utf8_lossy(&listed).lines().any(|applet| applet == tool)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn packages_are_installed_and_removed_with_what_the_device_has() {
    for (tool, install, remove) in [
        ("apt-get", "apt-get install -y a b", "apt-get remove -y --purge a b"),
        ("dnf", "dnf install -y a b", "dnf remove -y a b"),
        ("yum", "yum install -y a b", "yum remove -y a b"),
        ("opkg", "opkg install a b", "opkg remove a b"),
        ("apk", "apk add a b", "apk del a b"),
    ] {
        for device in Device::all(&[tool]) {
            device.does("install-packages.sh", &["", "a", "b"], &[install]);
            // As managed templates send them.
            device.does("install-packages.sh", &["", "a b"], &[install]);
            device.does("remove-packages.sh", &["", " a  b "], &[remove]);
            device.tool(tool, "exit 100");
            assert_eq!(device.run("install-packages.sh", &["", "a"]).status.code(), Some(100));
        }
    }
}

#[test]
fn package_handlers_refuse_what_they_cannot_mean() {
    for device in Device::all(&[]) {
        device.fails("install-packages.sh", &["", "a"], "no package manager");
        device.tool("apt-get", "exit 0");
        device.fails("install-packages.sh", &[""], "no package is named");
        device.fails("remove-packages.sh", &["", " "], "no package is named");
        device.fails("install-packages.sh", &["", "a --allow-unauthenticated"], "is no name of a package");
        assert_eq!(device.log(), [""; 0]);
        // No file name of the working directory takes the place of a word.
        fs::write(device.path("lib1"), "").unwrap();
        device.does("install-packages.sh", &["", "lib*"], &["apt-get install -y lib*"]);
    }
}

#[test]
fn packages_are_found_installed_or_not_and_named() {
    let dpkg = r#"case "$3" in here) printf installed ;; half) printf config-files ;; *) exit 1 ;; esac"#;
    let opkg = r#"if [ "$2" = here ]; then echo "Status: install user installed"; fi"#;
    let named = |n: u8| format!(r#"[ "${n}" = here ]"#);
    for (manager, tool, then) in [
        ("apt-get", "dpkg-query", dpkg.to_owned()),
        ("dnf", "rpm", named(2)),
        ("yum", "rpm", named(2)),
        ("opkg", "opkg", opkg.to_owned()),
        ("apk", "apk", named(3)),
    ] {
        for device in Device::all(&[manager, tool]) {
            device.tool(tool, &then);
            assert!(device.run("verify-packages-installed.sh", &["", "here"]).status.success(), "{manager}");
            device.fails("verify-packages-installed.sh", &["", "here gone"], "not installed: gone");
            assert!(device.run("verify-packages-removed.sh", &["", "gone"]).status.success(), "{manager}");
            device.fails("verify-packages-removed.sh", &["", "gone", "here"], "still installed: here");
            if tool == "dpkg-query" {
                device.fails("verify-packages-installed.sh", &["", "half"], "not installed: half");
            }
        }
    }
}

#[test]
fn services_are_handled_by_what_keeps_them() {
    for device in Device::all(&["systemctl"]) {
        device.does("start-services.sh", &["", "a", "b"], &["systemctl start a", "systemctl start b"]);
        device.does("stop-services.sh", &["", "a b"], &["systemctl stop a", "systemctl stop b"]);
        device.does("restart-services.sh", &["", "a"], &["systemctl restart a"]);
    }
    for device in Device::all(&["service"]) {
        device.does("restart-services.sh", &["", "a"], &["service a restart"]);
    }
    for device in Device::all(&["sv", "service"]) {
        let service = device.path("service").join("a");
        fs::create_dir_all(&service).unwrap();
        let runit = format!("sv stop {}", service.display());
        device.does("stop-services.sh", &["", "a", "b"], &[&runit, "service b stop"]);
    }
    for device in Device::all(&[]) {
        fs::create_dir(device.path("init.d")).unwrap();
        device.tool("script", "exit 0");
        symlink(device.path("bin").join("script"), device.path("init.d").join("a")).unwrap();
        device.does("start-services.sh", &["", "a"], &["script start"]);
        device.fails("start-services.sh", &["", "b"], "nothing here can start \"b\"");
        device.fails("start-services.sh", &["", "../bin/script"], "is no name of a service");
        device.fails("start-services.sh", &[""], "no service is named");
    }
}

#[test]
fn one_service_that_fails_fails_the_step_and_the_others_are_tried() {
    for device in Device::all(&[]) {
        device.tool("systemctl", r#"[ "$2" != bad ]"#);
        device.fails("restart-services.sh", &["", "bad", "good"], "restart of \"bad\" failed with status 1");
        assert_eq!(device.log(), ["systemctl restart bad", "systemctl restart good"]);
    }
}

#[test]
fn the_agent_itself_is_restarted_last_and_not_waited_for() {
    for device in Device::all(&["systemctl"]) {
        for name in ["otandem", "aws-iot-device-client.service"] {
            let log = ["systemctl restart a".to_owned(), format!("systemctl --no-block restart {name}")];
            device.does(
                "restart-services.sh",
                &["", &format!("{name} a")],
                &log.each_ref().map(String::as_str),
            );
        }
    }
}

#[test]
fn another_user_is_become_by_sudo_and_never_replaced_by_the_caller() {
    for device in Device::all(&["systemctl", "apt-get", "id"]) {
        device.tool(
            "id",
            r#"case "$*" in "-un") echo agent ;; "-u") echo 1000 ;; web|agent) ;; *) exit 1 ;; esac"#,
        );
        device.fails("restart-services.sh", &["nobody-here", "a"], "there is no user \"nobody-here\"");
        device.fails("restart-services.sh", &["-u root", "a"], "is no user name");
        device.fails("restart-services.sh", &["web", "a"], "cannot become user \"web\"");
        assert!(!device.log().iter().any(|l| l.starts_with("systemctl")));
        device.tool("sudo", r#"shift 3; exec "$@""#);
        let output = device.run("restart-services.sh", &["web", "a"]);
        assert!(output.status.success(), "{}", said(&output));
        let log = device.log();
        let done: Vec<_> = log.iter().filter(|l| !l.starts_with("id ")).collect();
        assert_eq!(done, ["sudo -u web -n systemctl restart a", "systemctl restart a"]);
        // Ourselves: nothing to become.
        let output = device.run("restart-services.sh", &["agent", "a"]);
        assert!(output.status.success() && !device.log().iter().any(|l| l.starts_with("sudo")));
        device.tool("sudo", "exit 1");
        assert!(!device.run("install-packages.sh", &["web", "a"]).status.success());
        assert!(!device.log().iter().any(|l| l.starts_with("apt-get")));
    }
}

#[test]
fn root_without_sudo_becomes_another_user_all_the_same() {
    for device in Device::all(&["systemctl", "id", "su"]) {
        device.tool("id", r#"case "$*" in "-un") echo root ;; "-u") echo 0 ;; esac"#);
        device.tool("su", r#"shift 7; exec "$@""#);
        let output = device.run("start-services.sh", &["web", "a"]);
        assert!(output.status.success(), "{}", said(&output));
        let log = device.log();
        assert!(
            log.contains(&"su -s /bin/sh -c exec \"$@\" -- web sh systemctl start a".to_owned()),
            "{log:?}"
        );
        assert_eq!(log.last().map(String::as_str), Some("systemctl start a"));
    }
}

#[test]
fn the_real_su_runs_as_that_user() {
    if !nix::unistd::geteuid().is_root() || which("su").is_none() {
        eprintln!("skipped: only root can become another user");
        return;
    }
    for device in Device::all(&[]) {
        // Debian's and BusyBox's.
        let _ = symlink(which("su").unwrap(), device.path("bin").join("su"));
        fs::set_permissions(device.dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        device.tool("systemctl", "id -un >&2");
        let output = device.run("start-services.sh", &["nobody", "a"]);
        let heard = said(&output);
        assert_eq!(heard.lines().find(|l| !l.contains("log")), Some("nobody"), "{:?}: {heard}", device.shell);
        // The command has options, which are not those of su.
        device.tool("apt-get", "id -un >&2; [ \"$2\" = -y ]");
        let output = device.run("install-packages.sh", &["nobody", "a"]);
        let heard = said(&output);
        assert_eq!(heard.lines().find(|l| !l.contains("log")), Some("nobody"), "{:?}: {heard}", device.shell);
        assert!(output.status.success(), "{:?}: {heard}", device.shell);
    }
}

#[test]
fn a_file_is_downloaded_whole_or_not_at_all() {
    let url = "https://host/dir/file.bin?X-Amz-Signature=secret";
    let wget = r#"printf new >"$3""#;
    for (tool, then) in [("wget", wget), ("curl", wget)] {
        for device in Device::all(&["wget"]) {
            fs::remove_file(device.path("bin/wget")).unwrap();
            device.tool(tool, then);
            let out = device.path("out");
            assert!(device.run("download-file.sh", &["", url, out.to_str().unwrap()]).status.success());
            assert_eq!(fs::read_to_string(&out).unwrap(), "new");
            // Into a directory, by the name in the URL.
            fs::create_dir(device.path("into")).unwrap();
            assert!(device.run("download-file.sh", &["", url, "into"]).status.success());
            assert_eq!(fs::read_to_string(device.path("into/file.bin")).unwrap(), "new");
            device.fails("download-file.sh", &["", "https://host/?x", "into"], "names no file");

            device.tool(tool, r#"printf half >"$3"; exit 8"#);
            fs::write(&out, "old").unwrap();
            let output = device.run("download-file.sh", &["", url, out.to_str().unwrap()]);
            assert!(!output.status.success());
            assert_eq!(fs::read_to_string(&out).unwrap(), "old");
            assert!(!device.path("out.part").exists());
            let all = format!("{}{}", said(&output), String::from_utf8_lossy(&output.stdout));
            assert!(all.contains("https://host/dir/file.bin failed") && !all.contains("secret"), "{all}");
        }
    }
    for device in Device::all(&["wget"]) {
        fs::remove_file(device.path("bin/wget")).unwrap();
        device.fails("download-file.sh", &["", "https://h/f", "out"], "neither wget nor curl");
    }
    for device in Device::all(&[]) {
        device.fails("download-file.sh", &["", "file:///etc/passwd", "out"], "no http or https URL");
        device.fails("download-file.sh", &["", "https://h/f"], "a URL and a path are needed");
    }
}

/// With the wget of the shell itself.
#[test]
fn the_real_wget_downloads_from_a_server() {
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/dir/file.bin?X-Amz-Signature=secret", server.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in server.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let n = stream.read(&mut request).unwrap();
            let there = request[..n].starts_with(b"GET /dir/file.bin?");
            let answer = if there {
                "200 OK\r\nContent-Length: 3\r\n\r\nnew"
            } else {
                "404 No\r\nContent-Length: 0\r\n\r\n"
            };
            stream.write_all(format!("HTTP/1.0 {answer}").as_bytes()).unwrap();
        }
    });
    for device in Device::all(&[]) {
        match which("wget") {
            Some(wget) => symlink(wget, device.path("bin/wget")).unwrap(),
            None if device.shell[0] != "busybox" => {
                symlink(which("busybox").unwrap(), device.path("bin/wget")).unwrap()
            }
            None => {}
        }
        let output = device.run("download-file.sh", &["", &url, "."]);
        assert!(output.status.success(), "{:?}: {}", device.shell, said(&output));
        assert_eq!(fs::read_to_string(device.path("file.bin")).unwrap(), "new");
        device.fails(
            "download-file.sh",
            &["", &url.replace("file.bin", "gone"), "out"],
            "failed with status",
        );
        assert!(!device.path("out").exists() && !device.path("out.part").exists());
    }
}

#[test]
fn a_reboot_is_told_to_the_agent_before_it_happens_and_taken_back_if_it_does_not() {
    for (tool, call) in
        [("systemctl", "systemctl reboot"), ("reboot", "reboot "), ("shutdown", "shutdown -r now")]
    {
        // Never with applets that could be the real reboot.
        let tools = if tool == "systemctl" { vec![tool] } else { vec![tool, "reboot"] };
        for mut device in Device::all(&tools) {
            if tool == "shutdown" {
                fs::remove_file(device.path("bin/reboot")).unwrap();
            }
            let mark = device.path("mark");
            device.tool(tool, &format!("cat '{}' || exit 9", mark.display()));
            device.does_reboot(&mark, call);
            device.tool(tool, "exit 1");
            device.fails("reboot.sh", &[""], "the device does not reboot (status 1)");
            assert!(!mark.exists());
            // Without an agent that wants to know it reboots all the same.
            device.env.clear();
            device.tool(tool, "exit 0");
            assert!(device.run("reboot.sh", &[""]).status.success());
        }
    }
}

impl Device {
    fn does_reboot(&mut self, mark: &Path, call: &str) {
        self.env.push(("OTANDEM_REBOOT_MARK".into(), mark.display().to_string()));
        self.env.push(("OTANDEM_JOB_ID".into(), "job-1".into()));
        let output = self.run("reboot.sh", &[""]);
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(self.log().last().map(String::as_str), Some(call));
        assert_eq!(String::from_utf8_lossy(&output.stdout), "job-1\n", "it was there before the reboot");
    }
}

#[test]
fn the_device_is_switched_off_after_the_job_can_be_reported() {
    for device in Device::all(&["shutdown"]) {
        device.does("shutdown.sh", &[""], &["shutdown -h +1"]);
    }
    for device in Device::all(&["poweroff"]) {
        fs::remove_file(device.path("bin/poweroff")).unwrap();
        device.fails("shutdown.sh", &[""], "neither shutdown nor poweroff");
    }
}

#[test]
fn echo_prints_its_arguments_and_the_health_check_is_well() {
    for device in Device::all(&[]) {
        assert_eq!(device.run("echo", &["user", "Hello", "world!"]).stdout, b"Hello world!\n");
        assert!(device.run("health-check.sh", &[""]).status.success());
    }
}

#[test]
fn every_handler_is_clean_and_may_be_executed() {
    let mut files: Vec<_> = fs::read_dir(HANDLERS).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 13);
    for file in &files {
        let mode = fs::metadata(file).unwrap().permissions().mode();
        let library = file.file_name().unwrap() == "handler-lib.sh";
        assert_eq!(mode & 0o100 != 0, !library, "{}", file.display());
    }
    match Command::new("shellcheck").arg("-x").args(&files).current_dir(HANDLERS).output() {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout)),
        Err(e) => eprintln!("skipped: shellcheck cannot be run: {e}"),
    }
}
