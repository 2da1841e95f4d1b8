//! What each command does. `run` is the daemon; everything else asks it, or acts by itself when none runs.

mod ask;
mod chariotd;
mod convert;
mod device_client;
mod input;
mod job;
mod parts;
mod run;
mod service;
mod show;

use std::io::Write;

use crate::cli::{Cli, Command, Config, Document, Fota};
use crate::config::{Feature as Switch, Finding, Settings, Sources};
use crate::control::{FotaCall, FotaRequest, Request};
use crate::exit::Exit;

pub use ask::{Asked, ask};
pub use run::{Handling, handle};
pub use service::Service;

/// Carries out a command line.
#[must_use]
pub fn execute(cli: Cli) -> Exit {
    let sources = Sources { explicit: cli.config, state_dir: cli.state_dir, ..Sources::default() };
    match cli.command {
        Command::Completions { shell } => {
            crate::cli::completions(shell, &mut std::io::stdout());
            Exit::Ok
        }
        Command::Man => match crate::cli::manual(&mut std::io::stdout()) {
            Ok(()) => Exit::Ok,
            Err(e) => complain(Exit::Io, &e.to_string()),
        },
        Command::Config(Config::Import(import)) => device_client::import(&import),
        Command::AwsIotDeviceClient { args } => device_client::run(sources, &args),
        Command::Chariotd { args } => chariotd::run(sources, &args),
        Command::Convert(convert) => match convert::convert(&convert) {
            Ok(()) => Exit::Ok,
            Err((exit, why)) => complain(exit, &why),
        },
        Command::Service(service) => service::service(&service),
        command => match Settings::load(&sources) {
            Ok((settings, findings)) => with_settings(command, &settings, &findings),
            Err(e) => complain(Exit::Config, &e.to_string()),
        },
    }
}

fn with_settings(command: Command, settings: &Settings, findings: &[Finding]) -> Exit {
    match command {
        Command::Config(Config::Check) => return config_check(findings),
        Command::Run => return run::run(settings, findings, run::Restarted::Never),
        _ => crate::log::init(&settings.log),
    }
    match command {
        Command::Status(status) => show::status(settings, &status),
        Command::Install(install) => match input::install(&install) {
            Ok(request) => tell(settings, Request::Install(request)),
            Err((exit, why)) => complain(exit, &why),
        },
        Command::Confirm => tell(settings, Request::Confirm),
        Command::Rollback => tell(settings, Request::Rollback),
        Command::Reboot => tell(settings, Request::Reboot),
        Command::Mark(mark) => {
            tell(settings, Request::Mark { verdict: mark.verdict, target: mark.target, verify: mark.verify })
        }
        Command::Fota(fota) => fota_call(settings, fota),
        Command::Job(job) => job::job(settings, &job),
        Command::Provision => provision(settings),
        Command::Run
        | Command::Config(_)
        | Command::AwsIotDeviceClient { .. }
        | Command::Chariotd { .. }
        | Command::Convert(_)
        | Command::Service(_)
        | Command::Completions { .. }
        | Command::Man => Exit::Software,
    }
}

fn fota_call(settings: &Settings, fota: Fota) -> Exit {
    let with = |call, document: &Document| match input::document(document) {
        Ok(document) => tell(settings, Request::Fota(FotaRequest::new(call, Some(document)))),
        Err((exit, why)) => complain(exit, &why),
    };
    match fota {
        Fota::Update(document) => with(FotaCall::Update, &document),
        Fota::Test(document) => with(FotaCall::Test, &document),
        Fota::Confirm(_) => tell(settings, Request::Fota(FotaRequest::new(FotaCall::Confirm, None))),
        Fota::Reset => tell(settings, Request::Fota(FotaRequest::new(FotaCall::Reset, None))),
        Fota::Handle(h) => {
            let document = h.document.document.as_ref().map(|_| input::document(&h.document)).transpose();
            let document = match document {
                Ok(document) => document,
                Err((exit, why)) => return complain(exit, &why),
            };
            let handling = Handling {
                document,
                force: h.force,
                disconnect_mqtt: h.disconnect_mqtt,
                auto_reset: h.auto_reset,
                job_callback: h.job_callback,
            };
            report(handle(settings, handling))
        }
    }
}

/// A daemon does it beside its session; without one it is done here.
fn provision(settings: &Settings) -> Exit {
    let done = match (&settings.provisioning, ask::connect(settings)) {
        (Switch::Off, _) => Err((Exit::Config, "no provisioning is configured: see [provisioning]".into())),
        (Switch::Broken(finding), _) => Err((Exit::Config, finding.to_string())),
        (Switch::On(_), Ok(Some(_))) => return tell(settings, Request::Provision),
        (Switch::On(_), Ok(None)) => crate::features::provision(settings),
        (Switch::On(_), Err(e)) => Err(e),
    };
    match done {
        Ok(data) => {
            let _ = writeln!(std::io::stdout(), "{data}");
            Exit::Ok
        }
        Err((exit, why)) => complain(exit, &why),
    }
}

/// Asks and prints what comes.
fn tell(settings: &Settings, request: Request) -> Exit {
    report(ask(settings, request))
}

fn report(asked: Asked) -> Exit {
    match asked {
        Ok((exit, data)) => {
            if let Some(message) = data.get("message").and_then(serde_json::Value::as_str) {
                let _ = writeln!(std::io::stdout(), "{message}");
            }
            exit
        }
        Err((exit, why)) => complain(exit, &why),
    }
}

fn config_check(findings: &[Finding]) -> Exit {
    for finding in findings {
        let _ = writeln!(std::io::stdout(), "{finding}");
    }
    if findings.is_empty() {
        let _ = writeln!(std::io::stderr(), "the configuration is right");
        Exit::Ok
    } else {
        Exit::Config
    }
}

fn complain(exit: Exit, why: &str) -> Exit {
    let _ = writeln!(std::io::stderr(), "otandem: {why}");
    exit
}
