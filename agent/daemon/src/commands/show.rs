//! `otandem status`.

use std::io::Write;

use serde_json::Value;

use super::{ask, complain, parts};
use crate::agent::{Agent, Service};
use crate::cli::Status;
use crate::cloud::tls::wall;
use crate::config::Settings;
use crate::control::Request;
use crate::exit::Exit;

/// Prints the status, of the daemon or as it lies on disk.
pub fn status(settings: &Settings, how: &Status) -> Exit {
    let status = match get(settings) {
        Ok(status) => status,
        Err((exit, why)) => return complain(exit, &why),
    };
    let mut out = std::io::stdout().lock();
    let _ = if how.json { writeln!(out, "{status:#}") } else { text(&status, &mut out) };
    let attention = status["attention"].as_array().is_some_and(|a| !a.is_empty());
    if how.check && attention { Exit::Attention } else { Exit::Ok }
}

fn get(settings: &Settings) -> Result<Value, (Exit, String)> {
    if ask::connect(settings)?.is_some() {
        return Ok(ask::ask(settings, Request::Status)?.1);
    }
    // Only looks: the agent is put together and never run.
    let runtime = parts::runtime().map_err(|e| (Exit::System, e.to_string()))?;
    let mut status = runtime.block_on(async {
        let parts = parts::parts(settings, None, Service::none()).map_err(|e| ask::open_error(&e))?;
        Ok(Agent::new(parts).status())
    })?;
    if let Some(attention) = status["attention"].as_array_mut() {
        attention.insert(0, "no daemon is running".into());
    }
    Ok(status)
}

fn text(status: &Value, out: &mut impl Write) -> std::io::Result<()> {
    let word = |v: &Value| v.as_str().unwrap_or("unknown").to_owned();
    writeln!(out, "booted:     set {}", word(&status["booted"]))?;
    writeln!(out, "confirmed:  set {}", word(&status["confirmed"]))?;
    for set in ["A", "B"] {
        let state = word(&status["bootloader"][set]);
        let first = status["bootloader"]["primary"] == set;
        writeln!(out, "set {set}:      {state}{}", if first { ", boots first" } else { "" })?;
        for (slot, held) in status["sets"][set].as_object().into_iter().flatten() {
            let version = held["version"].as_str().unwrap_or("no version");
            writeln!(out, "  {slot:<9} {version}, sha256 {}", word(&held["sha256"]))?;
        }
    }
    view(&status["bootloader"], out)?;
    writeln!(out, "phase:      {}", word(&status["phase"]))?;
    if let Some(why) = status["waits-for"].as_str() {
        writeln!(out, "waits for:  {why}")?;
    }
    if let Some(target) = status["update"]["target"].as_str() {
        let percent = status["update"]["percent"].as_u64().map(|p| format!(", {p} %")).unwrap_or_default();
        writeln!(out, "update:     into set {target}{percent}")?;
    }
    if let Some(job) = status["job"].as_object() {
        let since = job["since"].as_u64().filter(|since| *since > 0);
        let ago = since.map(|since| format!(", for {}", duration(wall().saturating_sub(since))));
        let (id, name) = (word(&job["id"]), harmless(job["name"].as_str().unwrap_or_default()));
        let (step, steps, state) = (&job["step"], &job["steps"], word(&job["state"]));
        writeln!(out, "job:        {id}, step {step}/{steps}: {name}, {state}{}", ago.unwrap_or_default())?;
    }
    if let Some(reason) = status["last-outcome"]["reason"].as_str() {
        writeln!(out, "last:       {}: {reason}", word(&status["last-outcome"]["outcome"]))?;
    }
    let cloud = &status["cloud"];
    let session = match (cloud["configured"] == true, cloud["connected"] == true) {
        (false, _) => "not configured",
        (true, true) => "connected",
        (true, false) => "not connected",
    };
    writeln!(out, "cloud:      {session}")?;
    if let Some(name) = cloud["certificate"]["name"].as_str() {
        let ends = cloud["certificate-ends"].as_u64().unwrap_or_default().saturating_sub(wall()) / 86_400;
        writeln!(out, "certificate {}, ends in {ends} days", harmless(name))?;
    }
    if let Some(step) = status["provisioning"]["step"].as_str() {
        writeln!(out, "provision:  {step}")?;
    }
    for (name, shown) in status["messages"].as_object().into_iter().flatten() {
        counted(out, &format!("messages:   {name}: "), shown, &["waiting", "failed"])?;
    }
    for (name, shown) in status["subscribe"].as_object().into_iter().flatten() {
        let counts = ["done", "waiting", "dropped", "failed"];
        counted(out, &format!("subscribe:  {name}: "), shown, &counts)?;
    }
    if status["commands"].is_object() {
        counted(out, "commands:   ", &status["commands"], &["done", "failed"])?;
    }
    for (name, shown) in status["services"].as_object().into_iter().flatten() {
        let number = |value: &Value| value.as_u64().unwrap_or_default();
        let updates = &shown["updates"];
        let (waiting, failed) = (number(&updates["waiting"]), number(&updates["failed"]));
        let services = number(&shown["services"]);
        write!(out, "services:   {name}: {services} services, {waiting} updates waiting, {failed} failed")?;
        match updates["last-error"].as_str() {
            Some(why) => writeln!(out, "; last: {}", harmless(why))?,
            None => writeln!(out)?,
        }
    }
    for line in status["attention"].as_array().into_iter().flatten() {
        writeln!(out, "attention:  {}", harmless(&word(line)))?;
    }
    Ok(())
}

/// One line of numbers, and the last mistake.
fn counted(out: &mut impl Write, begin: &str, shown: &Value, keys: &[&str]) -> std::io::Result<()> {
    let count = |key: &&str| format!("{} {key}", shown[*key].as_u64().unwrap_or_default());
    write!(out, "{begin}{}", keys.iter().map(count).collect::<Vec<_>>().join(", "))?;
    match shown["last-error"].as_str() {
        Some(why) => writeln!(out, "; last: {}", harmless(why)),
        None => writeln!(out),
    }
}

/// What lies in a boot environment, a job's document or a directory is not ours, and a terminal obeys control characters.
fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

/// The bootloader in its own words.
fn view(bootloader: &Value, out: &mut impl Write) -> std::io::Result<()> {
    let text = |v: &Value| harmless(v.as_str().unwrap_or_default());
    let view = &bootloader["view"];
    let loader = view["loader"].as_str().or(bootloader["kind"].as_str()).unwrap_or("unknown");
    writeln!(out, "bootloader: {loader}")?;
    let values: Vec<_> = view["values"].as_array().into_iter().flatten().collect();
    let width = values.iter().map(|v| text(&v["name"]).chars().count()).max().unwrap_or_default().min(32);
    for value in values {
        writeln!(out, "  {:width$}  {}", text(&value["name"]), text(&value["value"]))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn text_shows_the_bootloaders_own_view_in_its_order_and_every_line_of_attention() {
        let status = json!({
            "booted": "A", "confirmed": "A", "phase": "idle",
            "bootloader": { "kind": "u-boot", "primary": "A", "A": "good", "B": "bad", "view": {
                "loader": "U-Boot, redundant", "values": [
                    { "name": "BOOT_ORDER", "value": "A" }, { "name": "BOOT_A_LEFT", "value": "3" },
                    { "name": "x", "value": "\u{1b}[2J" },
                ],
            }},
            "attention": ["one", "two"],
        });
        let mut out = vec![];
        text(&status, &mut out).unwrap();
        let out = String::from_utf8(out).unwrap();
        assert!(out.contains("set A:      good, boots first\nset B:      bad\n"), "{out}");
        assert!(
            out.contains(
                "bootloader: U-Boot, redundant\n  BOOT_ORDER   A\n  BOOT_A_LEFT  3\n  x             [2J\n"
            ),
            "{out}"
        );
        assert!(out.ends_with("attention:  one\nattention:  two\n"), "{out}");
    }

    #[test]
    fn text_shows_the_job_that_runs_and_its_step() {
        let job = |since: u64| {
            let job = json!({ "id": "j-1", "state": "running", "step": 2, "steps": 5, "name": "fetch", "since": since });
            let mut out = vec![];
            text(&json!({ "bootloader": null, "attention": [], "job": job }), &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert!(job(0).contains("job:        j-1, step 2/5: fetch, running\n"), "{}", job(0));
        assert!(job(1).contains("fetch, running, for ") && job(1).contains(" h\n"), "{}", job(1));
        assert_eq!(
            (duration(119), duration(121), duration(7200)),
            ("119 s".into(), "2 min".into(), "2 h".into())
        );
    }

    #[test]
    fn text_of_a_device_whose_bootloader_is_not_known_says_so() {
        let mut out = vec![];
        text(&json!({ "bootloader": null, "attention": [] }), &mut out).unwrap();
        assert!(String::from_utf8(out).unwrap().contains("bootloader: unknown\n"));
    }
}
