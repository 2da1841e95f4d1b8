//! The one binary: reads the command line and carries it out.

use std::process::ExitCode;

use clap::Parser;
use otandem::cli::Cli;
use otandem::exit::Exit;

fn main() -> ExitCode {
    otandem_device::memory::be_thrifty();
    let args: Vec<_> = std::env::args_os().collect();
    match Cli::named_as_another(&args).map_or_else(|| Cli::try_parse_from(args), Ok) {
        Ok(cli) => otandem::commands::execute(cli).into(),
        Err(e) => {
            let _ = e.print();
            if e.use_stderr() { Exit::Usage.into() } else { Exit::Ok.into() }
        }
    }
}
