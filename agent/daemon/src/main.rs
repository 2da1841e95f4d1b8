//! The one binary: reads the command line and carries it out.

use std::process::ExitCode;

use clap::Parser;
use otandem::cli::Cli;
use otandem::exit::Exit;

fn main() -> ExitCode {
    otandem_device::memory::be_thrifty();
    match Cli::try_parse() {
        Ok(cli) => otandem::commands::execute(cli).into(),
        Err(e) => {
            let _ = e.print();
            if e.use_stderr() { Exit::Usage.into() } else { Exit::Ok.into() }
        }
    }
}
