//! The managed templates of the console as jobs, run by the handlers that we install: what they did, as whom, and what
//! the job says of it. The scenarios on ministack run the same table.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use otandem_lab::{Access, Scheme};
use otandem_system_tests::world::World;
use serde_json::{Map, Value};
use tempfile::TempDir;

const HERE: &str = env!("CARGO_MANIFEST_DIR");
/// The tools that would change the machine of the test.
const TOOLS: [&str; 3] = ["apt-get", "systemctl", "site-tool"];
/// `nobody`, whom rows name as another user.
const NOBODY: u32 = 65534;

/// The folders that the rows are about. Other users may pass through, to the files and to the recorders.
struct Bench {
    folder: TempDir,
    me: u32,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("otandem-bench-").tempdir().unwrap();
        let me = fs::metadata(folder.path()).unwrap().uid();
        let bench = Self { folder, me };
        bench.allow("", 0o711);
        let recorder = fs::read_to_string(Path::new(HERE).join("recorder.sh")).unwrap();
        for (name, mode) in [("handlers", 0o700), ("tools", 0o755), ("files", 0o777)] {
            fs::create_dir(bench.path(name)).unwrap();
            bench.allow(name, mode);
        }
        for tool in TOOLS {
            let name = format!("tools/{tool}");
            fs::write(bench.path(&name), recorder.replace("HERE", bench.path("tools").to_str().unwrap()))
                .unwrap();
            bench.allow(&name, 0o755);
        }
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn allow(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    /// Before a row: nothing is written down, and what is to be broken is.
    fn prepare(&self, row: &Value) {
        for handler in fs::read_dir(Path::new(HERE).join("../../handlers")).unwrap() {
            let handler = handler.unwrap();
            fs::copy(handler.path(), self.path("handlers").join(handler.file_name())).unwrap();
        }
        fs::write(self.path("tools/calls"), "").unwrap();
        self.allow("tools/calls", 0o666);
        for tool in TOOLS {
            let status = self.path(&format!("tools/{tool}.status"));
            match &row["fails"][tool] {
                Value::Null => drop(fs::remove_file(status)),
                code => fs::write(status, format!("{code}\n")).unwrap(),
            }
        }
        if let Some(handler) = row["gone"].as_str() {
            fs::remove_file(self.path("handlers").join(handler)).unwrap();
        }
    }

    /// What is not as the row says, after its job.
    fn difference(&self, row: &Value, body: &[u8]) -> Option<String> {
        let text = fs::read_to_string(self.path("tools/calls")).unwrap();
        let calls: Value = text.lines().map(|line| line.split('\t').collect::<Vec<_>>()).collect();
        if calls != row["calls"] {
            return Some(format!("called were {calls}, not {}", row["calls"]));
        }
        let path = self.path("files").join(row["file"].as_str()?);
        if fs::read(&path).ok().as_deref() != Some(body) {
            return Some(format!("{} is not what was uploaded", path.display()));
        }
        let owner = fs::metadata(&path).unwrap().uid();
        let wanted = if row["user"] == true { NOBODY } else { self.me };
        (owner != wanted).then(|| format!("{} belongs to user {owner}", path.display()))
    }
}

/// A template's document with these parameters; one that was not given becomes an empty text.
fn fill(template: &Value, parameters: &Map<String, Value>, words: &[(&str, &str)]) -> Value {
    match template {
        Value::Object(members) => {
            members.iter().map(|(name, value)| (name.clone(), fill(value, parameters, words))).collect()
        }
        Value::Array(items) => items.iter().map(|item| fill(item, parameters, words)).collect(),
        Value::String(text) => {
            let Some(name) = text.strip_prefix("${aws:iot:parameter:").and_then(|t| t.strip_suffix('}'))
            else {
                return template.clone();
            };
            let given = parameters.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
            Value::String(words.iter().fold(given, |text, (word, stands_for)| text.replace(word, stands_for)))
        }
        other => other.clone(),
    }
}

/// Why nothing of this can be run on this machine.
fn cannot_run(me: u32) -> Option<String> {
    let own = if me == 0 { vec![] } else { vec!["--map-root-user"] };
    match Command::new("unshare").args(own).args(["--mount", "true"]).output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(e) => Some(format!("unshare: {e}")),
    }
}

/// Are there users beside us? In a name space of our own there are not.
fn has_users(me: u32) -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let holds = |line: &str| {
        let numbers: Vec<u32> = line.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        numbers.len() == 3 && NOBODY.checked_sub(numbers[0]).is_some_and(|n| n < numbers[2])
    };
    me == 0 && map.lines().any(holds)
}

fn has(tool: &str) -> bool {
    ["/usr/bin", "/bin"].iter().any(|dir| Path::new(dir).join(tool).exists())
}

fn table() -> Value {
    serde_json::from_str(include_str!("../templates.json")).unwrap()
}

#[test]
fn every_managed_template_does_what_it_says_and_its_job_tells_how_it_ended() {
    let bench = Bench::new();
    if let Some(why) = cannot_run(bench.me) {
        eprintln!("skipped: the tools of this machine cannot be covered: {why}");
        return;
    }
    let (tools, wrapper) = (bench.path("tools"), format!("{HERE}/with-tools.sh"));
    let handlers = format!("{:?}", bench.path("handlers"));
    let world = World::off(|spec| {
        spec.with("jobs", "handler-directory", &handlers).started_by(&[&wrapper, tools.to_str().unwrap()])
    });
    let reboot =
        format!("[ \"$1\" != reboot ] || echo reboot >'{}'\n", world.device.folder().events().display());
    fs::write(tools.join("systemctl.then"), reboot).unwrap();
    let body: Vec<u8> = (0..4096u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    world.lab.put_image("files/template.bin", body.clone(), Access::Signed);
    let url = |name| world.lab.placeholder(name, Scheme::Http);
    let (there, gone) = (url("files/template.bin"), url("files/nothing.bin"));
    world.device.power_on().unwrap();
    world.wait_connected(1);
    let (table, mut wrong) = (table(), Vec::new());
    for row in table["rows"].as_array().unwrap() {
        let name = row["name"].as_str().unwrap();
        if row["user"] == true && !has_users(bench.me) {
            eprintln!("skipped: {name}: only root can become another user");
            continue;
        }
        if row["file"].is_string() && !has("wget") && !has("curl") {
            eprintln!("skipped: {name}: neither wget nor curl is there");
            continue;
        }
        bench.prepare(row);
        let boots = world.device.look(|heard| heard.boots.len());
        let (handlers, files) = (bench.path("handlers"), bench.path("files"));
        let words = [
            ("{handlers}", handlers.to_str().unwrap()),
            ("{files}", files.to_str().unwrap()),
            ("{url}", &there),
            ("{missing}", &gone),
        ];
        let template = &table["templates"][row["template"].as_str().unwrap()];
        world.job(name, &fill(template, row["parameters"].as_object().unwrap(), &words));
        let (status, reason) = world.wait_end(name);
        let stderr = world.details(name).remove("stderr").unwrap_or_default();
        let text = |key: &str| row[key].as_str().unwrap_or_default();
        if status.name() != text("status") || !reason.contains(text("reason")) {
            wrong.push(format!("{name}: {} ({reason}), {stderr}", status.name()));
        } else if !stderr.contains(text("stderr")) {
            wrong.push(format!("{name}: the cause is not in stderr: {stderr}"));
        }
        wrong.extend(bench.difference(row, &body).map(|what| format!("{name}: {what}; {stderr}")));
        let booted = world.device.look(|heard| heard.boots.len()) - boots;
        if booted != usize::from(row["reboots"] == true) {
            wrong.push(format!("{name}: booted {booted} times"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    world.finish();
}

#[test]
fn each_template_of_the_console_succeeds_and_fails_in_the_table() {
    let table = table();
    let rows = table["rows"].as_array().unwrap();
    let templates = table["templates"].as_object().unwrap();
    assert_eq!(templates.len(), 8);
    for name in templates.keys() {
        let some = |good: bool| {
            rows.iter().any(|row| row["template"] == **name && (row["status"] == "SUCCEEDED") == good)
        };
        assert!(some(true) && some(false), "{name}");
    }
    let mut names: Vec<_> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), rows.len());
}
