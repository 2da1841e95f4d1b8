//! The command line: what can be said, nothing of what it does.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use otandem_core::boot::SetId;
use otandem_core::formats::{ArrayStyle, Format};
use otandem_core::image::Sha256;

/// OTA A/B updates that always leave a system that boots.
#[derive(Debug, Clone, PartialEq, Parser)]
#[command(name = "otandem", version, about, after_help = EXIT_CODES, propagate_version = true)]
pub struct Cli {
    /// Read the configuration from this file, or from otandem.toml and conf.d/ in this directory, and from nowhere else
    #[arg(long, global = true, value_name = "FILE|DIR")]
    pub config: Option<PathBuf>,
    /// Keep state here instead of where the configuration says
    #[arg(long, global = true, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// The whole command line, the program's name first, if that name is the one of a client that we stand in for.
    #[must_use]
    pub fn named_as_another(args: &[OsString]) -> Option<Self> {
        let (name, args) = args.split_first()?;
        let name = Path::new(name).file_name()?;
        let args = args.to_vec();
        let command = if name == crate::config::device_client::NAME {
            Command::AwsIotDeviceClient { args }
        } else if name == crate::config::chariotd::NAME {
            Command::Chariotd { args }
        } else {
            return None;
        };
        Some(Self { config: None, state_dir: None, command })
    }
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 needs attention (status --check), the job failed (job run) or it is to be started again (chariotd), 10 a reset is due (fota handle), \
64 wrong usage, 65 wrong input, 66 input cannot be read, 69 nobody answers, 70 defect, 71 system, \
73 cannot write, 74 I/O, 75 not now, 76 protocol, 77 not allowed, 78 configuration.";

/// The commands. All but `run` in its three forms, `job`, `convert`, `service`, `config`, `completions` and `man` ask a running daemon, and act by themselves when
/// none runs.
#[derive(Debug, Clone, PartialEq, Subcommand)]
pub enum Command {
    /// Run the agent
    Run,
    /// Show what runs, what is installed, and what an update is doing
    Status(Status),
    /// Install an image from a file, a URL or a job document into the inactive set
    Install(Install),
    /// Make the running set permanent
    Confirm,
    /// Go back to the other set
    Rollback,
    /// Tell the bootloader what a set is worth
    Mark(Mark),
    /// Reboot, at once
    Reboot,
    /// The steps of a FOTA job, one by one or all together
    #[command(subcommand)]
    Fota(Fota),
    /// Look at the document of a general job, or run it here
    #[command(subcommand)]
    Job(Job),
    /// Get a certificate of its own for this device, now
    Provision,
    /// Convert settings from one file format to another: standard input to standard output
    Convert(Convert),
    /// Look at definitions of services
    #[command(subcommand)]
    Service(crate::commands::Service),
    /// Look at the configuration, or make one
    #[command(subcommand)]
    Config(Config),
    /// Run the agent with the command line and the files of the AWS IoT Device Client; --help lists what is taken over
    #[command(disable_help_flag = true, disable_version_flag = true)]
    AwsIotDeviceClient {
        /// Its flags
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "FLAG VALUE")]
        args: Vec<OsString>,
    },
    /// Run the agent with the command line of chariotd; --help lists its options
    #[command(disable_help_flag = true, disable_version_flag = true)]
    Chariotd {
        /// Its options
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTION")]
        args: Vec<OsString>,
    },
    /// Print completions for a shell
    Completions {
        /// Shell
        shell: Shell,
    },
    /// Print the manual page
    Man,
}

/// `otandem status`
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Status {
    /// Print JSON; its keys are stable
    #[arg(long)]
    pub json: bool,
    /// For monitoring: exit with 1 if something needs attention
    #[arg(long)]
    pub check: bool,
}

/// `otandem install`
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Install {
    /// Image file, http(s) URL, or job document (*.json); SOURCE.sha256 beside a file is used
    pub source: String,
    /// Slot of the set that the image is for; needed if a set has several
    #[arg(long)]
    pub slot: Option<String>,
    /// SHA-256 of the image (raw or as it is in SOURCE)
    #[arg(long, value_name = "HEX", conflicts_with = "no_digest")]
    pub sha256: Option<Sha256>,
    /// Set to write; must not be the running one
    #[arg(long, value_name = "A|B")]
    pub set: Option<SetId>,
    /// Try the new set at once
    #[arg(long)]
    pub reboot: bool,
    /// Install although nothing tells whether the image is whole
    #[arg(long)]
    pub no_digest: bool,
}

/// `otandem mark`
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Mark {
    /// good: it may boot; bad: it must not; active: it is next
    pub verdict: Verdict,
    /// Which set
    #[arg(default_value = "booted", value_name = "booted|other|A|B")]
    pub target: Target,
    /// Adopt a set that was written by others: only if its first slot has this SHA-256
    #[arg(long, value_name = "SHA256")]
    pub verify: Option<Sha256>,
}

/// What a set is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It may boot.
    Good,
    /// It must not boot.
    Bad,
    /// It boots next.
    Active,
}

/// A set, as people name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// The running one.
    Booted,
    /// The one that does not run.
    Other,
    /// By its name.
    #[serde(untagged)]
    Set(SetId),
}

impl std::str::FromStr for Target {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "booted" => Ok(Self::Booted),
            "other" => Ok(Self::Other),
            _ => s.parse().map(Self::Set).map_err(|_| "use booted, other, A or B".into()),
        }
    }
}

/// `otandem fota`
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Fota {
    /// Download the image of a document into the inactive set and check it
    Update(Document),
    /// Arm the set that was written: it is tried at the next reset
    Test(Document),
    /// Make the running set final
    Confirm(Document),
    /// Reset the device
    Reset,
    /// The whole flow on the jobs of the cloud, or on one document
    Handle(Handle),
}

/// A job document.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Document {
    /// Job document; standard input if absent or "-"
    #[arg(value_name = "FILE")]
    pub document: Option<PathBuf>,
}

/// `otandem fota handle`
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Handle {
    /// Document to handle
    #[command(flatten)]
    pub document: Document,
    /// Ask for jobs even if none was announced
    #[arg(long)]
    pub force: bool,
    /// Leave the cloud while the image is downloaded
    #[arg(long, value_name = "true|false", default_value_t = true, action = clap::ArgAction::Set)]
    pub disconnect_mqtt: bool,
    /// Reset when one is due; otherwise exit with 10
    #[arg(long, value_name = "true|false", default_value_t = true, action = clap::ArgAction::Set)]
    pub auto_reset: bool,
    /// Gets the document of every other job on standard input; exit 0: the job succeeded
    #[arg(long, value_name = "PROGRAM")]
    pub job_callback: Option<PathBuf>,
}

/// `otandem job`: without the cloud, and whether or not a daemon runs.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Job {
    /// Print what a document would do, as JSON; run nothing
    Plan {
        /// Job document; "-": standard input
        #[arg(value_name = "FILE")]
        document: PathBuf,
    },
    /// Run a document here and print its status, as it would be told to the cloud
    Run(RunJob),
}

/// `otandem job run`
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct RunJob {
    /// Job document; "-": standard input
    #[arg(value_name = "FILE")]
    pub document: PathBuf,
    /// Take handlers from here instead of jobs.handler-directory
    #[arg(long, value_name = "DIR")]
    pub handler_directory: Option<PathBuf>,
    /// What the programs of the job are told as its name
    #[arg(long, value_name = "NAME", default_value = "local")]
    pub job_id: String,
    /// Run it even beside a job or an update that is under way, and let others begin beside it
    #[arg(long)]
    pub beside: bool,
}

/// `otandem convert`
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Convert {
    /// Format of standard input: json, shell, plaintext, toml, dotenv
    #[arg(long, value_name = "FORMAT")]
    pub from: Format,
    /// Format of standard output
    #[arg(long, value_name = "FORMAT")]
    pub to: Format,
    /// Lists in shell: name=('a' 'b'), or name_0='a' name_1='b' name__count='2' for shells smaller than bash
    #[arg(long, value_name = "bash|indexed", default_value = "bash")]
    pub array_style: ArrayStyle,
}

/// `otandem config`
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Config {
    /// List everything that is wrong; exit with 78 if there is anything
    Check,
    /// Print the configuration that a device of another client would have here, and tell what is not carried over
    Import(Import),
}

/// `otandem config import`
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Import {
    /// Whose configuration it is
    pub of: Origin,
    /// Its configuration; "-": standard input
    pub file: PathBuf,
    /// Its aws-iot-device-client-runtime.conf, of a device that provisioned itself
    #[arg(long, value_name = "FILE")]
    pub runtime_config: Option<PathBuf>,
    /// Its http-proxy.conf
    #[arg(long, value_name = "FILE")]
    pub proxy: Option<PathBuf>,
    /// Home directory of the user that it runs as [default: yours]
    #[arg(long, value_name = "DIR")]
    pub home: Option<PathBuf>,
}

/// Clients that devices come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Origin {
    /// The AWS IoT Device Client.
    AwsIotDeviceClient,
}

/// Shells with completions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// GNU Bash.
    Bash,
    /// Elvish.
    Elvish,
    /// fish.
    Fish,
    /// Z shell.
    Zsh,
}

/// Writes completions for `shell`.
pub fn completions(shell: Shell, out: &mut dyn std::io::Write) {
    use clap_complete::shells::{Bash, Elvish, Fish, Zsh};
    let text = match shell {
        Shell::Bash => completions_by(Bash),
        Shell::Elvish => completions_by(Elvish),
        Shell::Fish => completions_by(Fish),
        Shell::Zsh => completions_by(Zsh),
    };
    // A closed pipe is the reader's choice.
    let _ = out.write_all(&text);
}

/// `clap_complete::Shell` would bring shells along that no device has.
fn completions_by(generator: impl clap_complete::Generator) -> Vec<u8> {
    use clap::CommandFactory;
    let mut text = Vec::new();
    clap_complete::generate(generator, &mut Cli::command(), "otandem", &mut text);
    text
}

/// Writes the manual page: otandem(8), then each command as a section of its own.
///
/// # Errors
/// `out` cannot be written.
pub fn manual(out: &mut dyn std::io::Write) -> std::io::Result<()> {
    use clap::CommandFactory;
    let mut command = Cli::command();
    command.build();
    let man = clap_mangen::Man::new(command.clone()).section("8");
    man.render(out)?;
    write_commands(&command, out)
}

fn write_commands(command: &clap::Command, out: &mut dyn std::io::Write) -> std::io::Result<()> {
    for sub in command.get_subcommands().filter(|s| s.get_name() != "help") {
        let man = clap_mangen::Man::new(sub.clone());
        let name = sub.get_bin_name().unwrap_or_else(|| sub.get_name());
        writeln!(out, ".SH COMMAND: {}", name.to_uppercase())?;
        man.render_description_section(out)?;
        man.render_synopsis_section(out)?;
        man.render_options_section(out)?;
        write_commands(sub, out)?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "cli_tests.rs"]
mod tests;
