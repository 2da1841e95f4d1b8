//! chariotd's command line: long options, `--name=value` or `--name value`.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::PathBuf;

/// Its options, then our own. (One text: a table of so many words is twice as large in the program.)
const OPTIONS: &str = "\
clientid=ID  client id of the session; needed
cacert=FILE  root certificates that the endpoint is verified with; needed
certstore=DIR  endpoint.txt, and certificates in directories of their own; needed
fleetprov=FILE  get a certificate by fleet provisioning, as this JSON file says
services=THING:DIR  keep files of settings as the shadow of THING has them; DIR has the definitions
updates=THING:DIR  update the shadow of THING from the files in DIR/new
defaultshadow=THING:COMMAND  what the shadow of THING begins with
messages=DIR  publish the files in DIR/new
commands=DIR  take commands from the files in DIR/new
keepalive=SECONDS  between two signs of life, at most 1200 [default: 1200]
default-message-concurrency=COUNT  messages on their way at once [default: 10]
message-concurrency=DIR:COUNT  the same for one directory, as all that follow
default-message-retries=COUNT  attempts after the first [default: 2]
message-retries=DIR:COUNT
default-message-keep-failed=COUNT  files kept in DIR/failed [default: 100]
message-keep-failed=DIR:COUNT
default-message-order=ORDER  lexical, oldest-first or newest-first [default: lexical]
message-order=DIR:ORDER
default-message-jam-timeout=SECONDS  no effect: a directory that cannot be sent holds up nothing else
message-jam-timeout=DIR:SECONDS
default-message-topic-prefix=TEXT  before each topic
message-topic-prefix=DIR:TEXT
default-message-topic-suffix=TEXT  behind each topic
message-topic-suffix=DIR:TEXT
default-letterhead-file=FILE  what every message has that does not say otherwise
letterhead-file=DIR:FILE
default-letterhead-generator=PROGRAM  prints what every message has that does not say otherwise
letterhead-generator=DIR:PROGRAM
empty-array-as-delete-request  [] in shadow data deletes what it is for
last-will-topic=TOPIC  the broker publishes this when the session breaks; both or none
last-will-payload=TEXT
subscribe-write=TOPIC:FILE  write messages of TOPIC into FILE
subscribe-exec=TOPIC:COMMAND  run COMMAND for each message of TOPIC
tunnelmappings=THING:MAPPINGS
tunnelproxy=PROGRAM
tunnelcadir=DIR
config=FILE  otandem: read this configuration, and no other, below the options
default-message-rate=COUNT  otandem: messages a second, of all directories together; 0: as many as go [default: 100]
message-rate=DIR:COUNT
state-dir=DIR  otandem: keep state here [default: /var/lib/otandem]
print-config  otandem: print what the options are in otandem.toml, and end
";

/// Of them those that cannot be had, and what does that job.
const REFUSED: [(&str, &str); 3] =
    [("tunnelmappings", TUNNELS), ("tunnelproxy", TUNNELS), ("tunnelcadir", TUNNELS)];
const TUNNELS: &str =
    "otandem opens no secure tunnels: start AWS's localproxy by --subscribe-exec or by a job";

/// Whether `name` is no option that [`REFUSED`] names.
fn is_here(name: &str) -> bool {
    !REFUSED.iter().any(|(refused, _)| *refused == name)
}

/// A command line that cannot be run.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// Neither chariotd nor we know it.
    #[error("{0:?} is no option of chariotd; --help lists them")]
    Unknown(String),
    /// Without its value.
    #[error("--{0} needs a value: --{0}=VALUE")]
    NoValue(&'static str),
    /// With a value that it does not take.
    #[error("--{0} takes no value")]
    Value(&'static str),
    /// Its value is not text.
    #[error("the value of --{0} is not UTF-8")]
    NotText(&'static str),
    /// Needed, and not there.
    #[error("--{0} is needed; --help lists the options")]
    Missing(&'static str),
    /// It cannot be had.
    #[error("--{0}: {1}")]
    NotHere(&'static str, &'static str),
}

/// What a command line asks for.
#[derive(Debug, PartialEq)]
pub enum Order {
    /// `--help`
    Help,
    /// Our `--version`.
    Version,
    /// To run, or to print what it would run with.
    Run(Options),
}

/// The options that were given.
#[derive(Debug, Default, PartialEq)]
pub struct Options {
    /// By name, in their order.
    values: Vec<(&'static str, String)>,
}

impl Options {
    /// Every value of `name`.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.values.iter().filter(move |(given, _)| *given == name).map(|(_, value)| value.as_str())
    }

    /// The last value of `name`.
    #[must_use]
    pub fn last(&self, name: &str) -> Option<&str> {
        self.values.iter().rfind(|(given, _)| *given == name).map(|(_, value)| value.as_str())
    }

    /// The last value of `name` as a path.
    #[must_use]
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        self.last(name).map(PathBuf::from)
    }
}

/// Name, whether it takes a value, and its line of help.
fn known() -> impl Iterator<Item = (&'static str, bool, &'static str)> {
    OPTIONS.lines().map(|line| {
        let end = line.find([' ', '=']).unwrap_or(line.len());
        (&line[..end], line[end..].starts_with('='), line)
    })
}

/// Reads the arguments behind the program's name.
///
/// # Errors
/// See [`OptionError`].
pub fn parse(args: &[OsString]) -> Result<Order, OptionError> {
    let mut options = Options::default();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let text = arg.to_string_lossy();
        match text.as_ref() {
            "--help" | "-h" => return Ok(Order::Help),
            "--version" => return Ok(Order::Version),
            _ => {}
        }
        let (name, value) =
            text.split_once('=').map_or((text.as_ref(), None), |(name, value)| (name, Some(value)));
        let found = name.strip_prefix("--").and_then(|name| known().find(|(known, ..)| *known == name));
        let Some((name, takes_value, _)) = found else {
            return Err(OptionError::Unknown(name.chars().take(64).collect()));
        };
        if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
            return Err(OptionError::NotHere(name, why));
        }
        let value = match (takes_value, value) {
            (false, None) => String::new(),
            (false, Some(_)) => return Err(OptionError::Value(name)),
            (true, Some(value)) => {
                arg.to_str().ok_or(OptionError::NotText(name))?;
                value.to_owned()
            }
            (true, None) => {
                let value = args.next().ok_or(OptionError::NoValue(name))?;
                value.to_str().ok_or(OptionError::NotText(name))?.to_owned()
            }
        };
        options.values.push((name, value));
    }
    for needed in ["clientid", "cacert", "certstore"] {
        if options.last(needed).is_none_or(str::is_empty) {
            return Err(OptionError::Missing(needed));
        }
    }
    Ok(Order::Run(options))
}

/// `--help`
#[must_use]
pub fn help() -> String {
    let mut text = String::from(
        "otandem in place of chariotd: its options, with the meaning that they have there.\n\n\
         Usage: chariotd OPTIONS   (also: otandem chariotd OPTIONS)\n\n",
    );
    for (_, _, line) in known().filter(|(name, ..)| is_here(name)) {
        let _ = writeln!(text, "  --{line}");
    }
    text.push_str("  --help, --version\n\nKnown, and refused:\n");
    for (name, why) in REFUSED {
        let _ = writeln!(text, "  --{name}: {why}");
    }
    text.push_str("\nExit codes: 0 told to end, or provisioned; 1 anything else, to be started again by a supervisor.\n");
    text
}
