//! Builds virtual devices, and starts one on this terminal.

mod play;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use otandem_images::Chain;

/// Virtual devices with two slot sets and a real bootloader.
#[derive(Parser)]
#[command(name = "otandem-images")]
struct Line {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Writes a device and images for updates into a folder
    Build(Build),
    /// Starts a device on this terminal; Ctrl-A X ends it. It keeps its disk until --fresh
    Play(Play),
}

/// What both have.
#[derive(Args)]
struct What {
    /// u-boot, grub, systemd-boot or systemd-boot-shared
    chain: Chain,
    /// The agent's binary; built if it is not given
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// Size of a root file system in MiB
    #[arg(long, value_name = "MIB", default_value_t = 48)]
    slot_size: u64,
}

#[derive(Args)]
struct Build {
    #[command(flatten)]
    what: What,
    /// Where to
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
}

#[derive(Args)]
struct Play {
    #[command(flatten)]
    what: What,
    /// Begins with a new device
    #[arg(long)]
    fresh: bool,
    /// Memory of the device in MiB
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    memory: u32,
}

fn main() -> ExitCode {
    let done = match Line::parse().command {
        Command::Build(build) => play::build(&build.what, &build.out),
        Command::Play(play) => play::play(&play),
    };
    match done {
        Ok(code) => code,
        Err(why) => {
            eprintln!("otandem-images: {why}");
            ExitCode::FAILURE
        }
    }
}
