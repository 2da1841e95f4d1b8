//! `otandem-lab`: the lab from a command line.
//!
//! It prints one JSON object with its endpoints and the files of each thing, then answers one JSON object per line of
//! standard input, so that a person as well as a script can drive it. It ends with its input, or on `quit`.

use std::io::{BufRead as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use otandem_lab::{Access, ClockMode, Force, JobSpec, Lab, LabConfig, Scheme};
use serde_json::{Value, json};

const USAGE: &str = "\
usage: otandem-lab --dir FOLDER [--thing NAME]... [--allow get|describe|notify]... [--clock running|standing]

Starts a cloud on 127.0.0.1 and writes ca.pem and a certificate and key for each thing into FOLDER.
Commands on standard input, one a line, each answered by one line of JSON:
  create JOB THING DOCUMENT     DOCUMENT is JSON in the rest of the line, or @FILE
  cancel JOB [force]            what is QUEUED; with force also what is IN_PROGRESS
  delete JOB [force]
  list                          every execution
  put OBJECT FILE               serve FILE as bucket/key
  url OBJECT http|https         placeholder for a job document, and a URL signed for an hour
  expire                        expire every URL signed so far
  advance SECONDS               put the lab's clock forward
  identity THING                certificate and key for one more thing
  kick THING                    close its connection
  push THING PAYLOAD            publish anything on its notify-next
  counters                      messages, connections, violations, requests
  transcript                    everything that was said
  quit";

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("otandem-lab: {message}");
            ExitCode::from(64)
        }
    }
}

struct Options {
    folder: PathBuf,
    things: Vec<String>,
    config: LabConfig,
}

fn options(arguments: Vec<String>) -> Result<Options, String> {
    let (mut folder, mut things) = (None, Vec::new());
    let mut config = LabConfig { clock: ClockMode::Running, ..LabConfig::default() };
    let mut arguments = arguments.into_iter();
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value\n{USAGE}"))?;
        match (name.as_str(), value.as_str()) {
            ("--dir", _) => folder = Some(PathBuf::from(value)),
            ("--thing", _) => things.push(value),
            ("--allow", "get") => config.policy = config.policy.with_request("get"),
            ("--allow", "describe") => config.policy = config.policy.with_request("*/get"),
            ("--allow", "notify") => config.policy = config.policy.with_push("notify"),
            ("--clock", "running") => config.clock = ClockMode::Running,
            ("--clock", "standing") => config.clock = ClockMode::Standing,
            _ => return Err(format!("unknown option {name} {value}\n{USAGE}")),
        }
    }
    let folder = folder.ok_or_else(|| format!("--dir is missing\n{USAGE}"))?;
    Ok(Options { folder, things, config })
}

fn run(arguments: Vec<String>) -> Result<(), String> {
    if arguments.iter().any(|a| a == "--help" || a == "-h") {
        println!("{USAGE}");
        return Ok(());
    }
    let Options { folder, things, config } = options(arguments)?;
    std::fs::create_dir_all(&folder).map_err(|e| format!("cannot make {}: {e}", folder.display()))?;
    let lab = Lab::start(config).map_err(|e| e.to_string())?;
    let identities: Result<Vec<_>, _> = things.iter().map(|thing| identity(&lab, thing, &folder)).collect();
    say(&json!({
        "mqtt": {"host": "localhost", "port": lab.mqtt_port()},
        "http": lab.origin(Scheme::Http),
        "https": lab.origin(Scheme::Https),
        "ca": folder.join("ca.pem"),
        "things": identities?,
    }));
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|e| format!("cannot read standard input: {e}"))?;
        match line.trim() {
            "" => {}
            "quit" => break,
            command => match obey(&lab, &folder, command) {
                Ok(answer) => say(&json!({"ok": true, "result": answer})),
                Err(error) => say(&json!({"ok": false, "error": error})),
            },
        }
    }
    Ok(())
}

/// One line on standard output; a reader that is gone is noticed at the end of the input.
fn say(value: &Value) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{value}").and_then(|()| out.flush());
}

fn identity(lab: &Lab, thing: &str, folder: &Path) -> Result<Value, String> {
    let (_, files) = lab.write_identity(thing, folder).map_err(|e| e.to_string())?;
    Ok(json!({"thing": thing, "cert": files.certificate, "key": files.key}))
}

fn obey(lab: &Lab, folder: &Path, command: &str) -> Result<Value, String> {
    let (verb, rest) = command.split_once(' ').unwrap_or((command, ""));
    let words: Vec<&str> = rest.split_whitespace().collect();
    match (verb, words.as_slice()) {
        ("create", [job, thing, ..]) => {
            let document = rest.splitn(3, ' ').nth(2).ok_or("create JOB THING DOCUMENT")?;
            let document = match document.strip_prefix('@') {
                Some(file) => {
                    std::fs::read_to_string(file).map_err(|e| format!("cannot read {file}: {e}"))?
                }
                None => document.to_owned(),
            };
            text(lab.create_job(&JobSpec::new(job, thing, &document)))
        }
        ("cancel", [job, force @ ..]) => text(lab.cancel_job(job, forced(force)?)),
        ("delete", [job, force @ ..]) => text(lab.delete_job(job, forced(force)?)),
        ("list", []) => Ok(list(lab)),
        ("put", [object, file]) => text(lab.put_file(object, Path::new(file), Access::Signed)),
        ("url", [object, scheme]) => {
            let scheme = match *scheme {
                "http" => Scheme::Http,
                "https" => Scheme::Https,
                other => return Err(format!("{other} is neither http nor https")),
            };
            let signed = lab.signed_url(object, scheme, Duration::from_secs(3600));
            Ok(json!({"placeholder": lab.placeholder(object, scheme), "signed": signed}))
        }
        ("expire", []) => {
            lab.expire_urls();
            Ok(Value::Null)
        }
        ("advance", [seconds]) => {
            let seconds = seconds.parse().map_err(|e| format!("{seconds}: {e}"))?;
            lab.advance(Duration::from_secs(seconds));
            Ok(Value::Null)
        }
        ("identity", [thing]) => identity(lab, thing, folder),
        ("kick", [thing]) => {
            lab.kick(thing);
            Ok(Value::Null)
        }
        ("push", [thing, ..]) => {
            let payload = rest.split_once(' ').map_or("", |(_, payload)| payload).to_owned();
            lab.push_notify_next(thing, payload);
            Ok(Value::Null)
        }
        ("counters", []) => Ok(counters(lab)),
        ("transcript", []) => {
            Ok(lab.inspect(|lab| lab.transcript.iter().map(ToString::to_string).collect::<Vec<_>>().into()))
        }
        _ => Err(format!("not a command: {command:?}; see --help")),
    }
}

fn forced(words: &[&str]) -> Result<Force, String> {
    match words {
        [] => Ok(Force::No),
        ["force"] => Ok(Force::Yes),
        _ => Err("only `force` may follow".into()),
    }
}

fn text<E: std::fmt::Display>(result: Result<(), E>) -> Result<Value, String> {
    result.map(|()| Value::Null).map_err(|e| e.to_string())
}

fn list(lab: &Lab) -> Value {
    lab.inspect(|lab| {
        let one = |e: &otandem_lab::jobs::Execution| {
            json!({"job": e.job, "thing": e.thing, "number": e.number, "status": e.status.name(),
                "version": e.version, "details": e.details})
        };
        lab.jobs.executions().map(one).collect()
    })
}

fn counters(lab: &Lab) -> Value {
    lab.inspect(|lab| {
        let c = lab.counters;
        let path = |(path, count): (&String, &otandem_lab::record::PathCount)| {
            let value = json!({"requests": count.requests, "bodyBytes": count.body_bytes,
                "offsets": count.offsets, "statuses": count.statuses});
            (path.clone(), value)
        };
        json!({"received": c.received, "sent": c.sent, "byJob": c.by_job, "connects": c.connects,
            "violations": c.violations, "offences": c.offences, "failedHandshakes": c.failed_handshakes,
            "throttled": c.throttled, "paths": c.paths.iter().map(path).collect::<serde_json::Map<_, _>>(),
            "connected": lab.connected})
    })
}
