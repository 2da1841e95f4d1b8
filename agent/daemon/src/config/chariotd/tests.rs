use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::options::{self, OptionError};
use super::*;
use crate::config::fragments::Fragment;
use crate::config::{Credentials, Finding, Settings, ThingName};

/// Of all four examples in chariotd's documentation.
const NEEDED: &str =
    "--clientid=myclient --cacert=/path/to/AmazonRootCA1.pem --certstore=/var/chariotd/certs";

fn words(line: &str) -> Vec<OsString> {
    line.split_whitespace().map(OsString::from).collect()
}

fn parsed(line: &str) -> Options {
    match options::parse(&words(line)) {
        Ok(Order::Run(options)) => options,
        other => panic!("{line}: {other:?}"),
    }
}

const ENDPOINT: (&str, Option<u16>) = ("e.example", None);

fn with_fleet(line: &str, fleet: Option<&Value>) -> Result<Translation, String> {
    translate(&parsed(&format!("{NEEDED} {line}")), Path::new("/here"), ENDPOINT, fleet)
}

fn translated(line: &str) -> Translation {
    with_fleet(line, None).unwrap_or_else(|why| panic!("{line}: {why}"))
}

fn refused(line: &str) -> String {
    with_fleet(line, None).err().unwrap_or_else(|| panic!("{line}: taken"))
}

/// The lines of a table, without the table's name.
fn lines(made: &Translation, table: &str) -> Vec<String> {
    let text = made.toml();
    let mut lines = text.lines().skip_while(|line| *line != format!("[{table}]")).skip(1);
    lines.by_ref().take_while(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// As `run` reads it.
fn settings(made: &Translation) -> (Settings, Vec<Finding>) {
    let (fragment, mut findings) = Fragment::parse(Path::new("result"), &made.toml());
    let settings = Settings::from_fragment(fragment, &mut findings);
    (settings, findings)
}

#[test]
fn the_session_is_the_one_that_chariotd_has() {
    let (settings, findings) = settings(&translated(""));
    assert_eq!(findings, []);
    let cloud = settings.cloud.on().unwrap();
    assert_eq!((cloud.endpoint.as_str(), cloud.port), ("e.example", 8883));
    assert_eq!(cloud.client_id.as_deref(), Some("myclient"));
    assert_eq!(cloud.keep_alive.as_secs(), 1200);
    assert_eq!(cloud.ca, Some("/path/to/AmazonRootCA1.pem".into()));
    assert_eq!(cloud.credentials, Credentials::Store("/var/chariotd/certs".into()));
    assert_eq!(cloud.thing, ThingName::Name("myclient".into()));
    assert!(settings.without_slots() && settings.jobs.on().is_none());
    // A client id need be no name of a thing.
    assert!(lines(&translated("--clientid=a/b"), "cloud").contains(&"thing-name = \"chariotd\"".to_owned()));
    assert!(lines(&translated("--updates=T:/u"), "cloud").contains(&"thing-name = \"T\"".to_owned()));
    for (given, kept) in [("60", 60), ("1", 5), ("99999", 1200)] {
        let made = translated(&format!("--keepalive={given}"));
        assert!(lines(&made, "cloud").contains(&format!("keep-alive = {kept}")), "{given}");
        assert_eq!(made.told.is_empty(), given == "60");
    }
}

#[test]
fn posting_to_topics() {
    let made = translated("--messages=/var/chariotd/mqtt");
    assert_eq!(
        lines(&made, "messages.mqtt"),
        ["directory = \"/var/chariotd/mqtt\"", "reserved-topics = true", "priorities = true"]
    );
    assert_eq!(made.directories, ["/var/chariotd/mqtt"]);
    let (settings, findings) = settings(&made);
    assert_eq!(findings, []);
    assert_eq!(settings.messages.on().unwrap()[0].directory, PathBuf::from("/var/chariotd/mqtt"));
}

#[test]
fn each_directory_of_messages_has_its_own_settings() {
    let made = translated(
        "--messages=/a/m --messages /b/m/ --messages=c --default-message-concurrency=5 --message-concurrency=/b/m:7 \
         --message-topic-prefix=/a/m:x:y/ --default-message-order=newest-first --message-order=c:oldest-first \
         --default-letterhead-file=l.json --letterhead-file=/b/m/:/l --message-retries=c:0 --message-keep-failed=c:3 \
         --message-topic-suffix=c:/end --letterhead-generator=c:/bin/g --default-message-jam-timeout=5 \
         --default-message-rate=0 --message-rate=c:9",
    );
    assert_eq!(
        lines(&made, "messages.m"),
        [
            "directory = \"/a/m\"",
            "reserved-topics = true",
            "priorities = true",
            "concurrency = 5",
            "order = \"newest-first\"",
            "topic-prefix = \"x:y/\"",
            "rate = 0",
            "letterhead-file = \"/here/l.json\""
        ]
    );
    assert_eq!(
        lines(&made, "messages.m-2"),
        [
            "directory = \"/b/m/\"",
            "reserved-topics = true",
            "priorities = true",
            "concurrency = 7",
            "order = \"newest-first\"",
            "rate = 0",
            "letterhead-file = \"/l\""
        ]
    );
    assert_eq!(
        lines(&made, "messages.c"),
        [
            "directory = \"/here/c\"",
            "reserved-topics = true",
            "priorities = true",
            "concurrency = 5",
            "retries = 0",
            "keep-failed = 3",
            "order = \"oldest-first\"",
            "topic-suffix = \"/end\"",
            "rate = 9",
            "letterhead-file = \"/here/l.json\"",
            "letterhead-generator = \"/bin/g\""
        ]
    );
    assert!(
        made.told.len() == 1 && made.told[0].starts_with("--default-message-jam-timeout"),
        "{:?}",
        made.told
    );
    assert_eq!(settings(&made).1, []);
    for wrong in
        ["--message-order=/d:lexical", "--message-retries=/a/m", "--message-retries=/a/m:x", "--messages="]
    {
        let why = refused(&format!("--messages=/a/m {wrong}"));
        assert!(why.contains(wrong.split('=').next().unwrap()) || why.contains("empty"), "{why}");
    }
}

#[test]
fn updating_a_shadow_and_hooking_a_key_of_it() {
    let made = translated("--updates=MyThing:/var/chariotd/shadow");
    assert_eq!(
        lines(&made, "services.MyThing"),
        ["thing = \"MyThing\"", "updates = \"/var/chariotd/shadow\""]
    );
    let made = translated("--services=MyThing:/var/chariotd/svcs");
    assert_eq!(
        lines(&made, "services.MyThing"),
        ["thing = \"MyThing\"", "directory = \"/var/chariotd/svcs\""]
    );
    let made = translated(
        "--services=a:b:/s --services=a:/last --updates=T:u --defaultshadow=T:/bin/cmd:x --empty-array-as-delete-request",
    );
    assert_eq!(
        lines(&made, "services.a"),
        ["thing = \"a\"", "empty-list-deletes = true", "directory = \"/last\""]
    );
    assert_eq!(
        lines(&made, "services.T"),
        [
            "thing = \"T\"",
            "empty-list-deletes = true",
            "updates = \"/here/u\"",
            "default-shadow = \"/bin/cmd:x\""
        ]
    );
    assert_eq!(made.directories, ["/last", "/here/u"]);
    for wrong in ["--services=T", "--updates=:x", "--updates=T:", "--defaultshadow=a/b:x"] {
        assert!(refused(wrong).contains(wrong.split('=').next().unwrap()), "{wrong}");
    }
}

#[test]
fn fleet_provisioning_as_its_file_says() {
    let fleet = json!({
        "claimstore": "/config/factory/cert", "template": "my-provisioning-template",
        "parameters": {"SerialNumber": "1234", "a b\"": 7}, "outfile": "/config/results.json", "outformat": "JSON",
        "notifycmd": "/usr/sbin/done",
    });
    let made = with_fleet("--fleetprov=/var/chariotd/fp.json", Some(&fleet)).unwrap();
    assert_eq!(
        lines(&made, "provisioning"),
        [
            "claim-store = \"/config/factory/cert\"",
            "template = \"my-provisioning-template\"",
            "key = \"cloud\"",
            "client-id = \"myclient-fp\"",
            "outfile = \"/config/results.json\"",
            "outformat = \"JSON\"",
            "notify-command = \"/usr/sbin/done\""
        ]
    );
    assert_eq!(
        lines(&made, "provisioning.parameters"),
        ["\"SerialNumber\" = \"1234\"", "\"a b\\\"\" = \"7\""]
    );
    assert!(made.toml().parse::<toml::Table>().is_ok());
    for missing in ["claimstore", "template", "parameters", "outformat"] {
        let mut less = fleet.clone();
        less.as_object_mut().unwrap().remove(missing);
        assert!(with_fleet("", Some(&less)).unwrap_err().contains(missing));
    }
    for fleet in [json!([]), json!({"claimstore": 7}), json!(null)] {
        assert!(with_fleet("", Some(&fleet)).is_err());
    }
}

#[test]
fn commands_subscriptions_and_the_last_will() {
    let made = translated(
        "--commands=/c --subscribe-write=a/b:/f --subscribe-write=+/#:g --subscribe-exec=t:/bin/x \
         --last-will-topic=w --last-will-payload=gone",
    );
    assert_eq!(lines(&made, "commands"), ["directory = \"/c\""]);
    assert_eq!(lines(&made, "subscribe.write-1"), ["topic = \"a/b\"", "write = \"/f\""]);
    assert_eq!(lines(&made, "subscribe.write-2"), ["topic = \"+/#\"", "write = \"/here/g\""]);
    assert_eq!(lines(&made, "subscribe.exec-1"), ["topic = \"t\"", "exec = \"/bin/x\""]);
    let (fragment, _) = Fragment::parse(Path::new("result"), &made.toml());
    assert_eq!(fragment.cloud.last_will_topic.as_deref(), Some("w"));
    assert_eq!(fragment.cloud.last_will_payload.as_deref(), Some("gone"));
    assert_eq!(translated("--last-will-topic=w").told.len(), 1);
}

#[test]
fn options_are_read_in_both_forms_and_the_last_one_counts() {
    let options =
        parsed("--clientid one --clientid=two --cacert c --certstore=a=b --messages=x --messages y");
    assert_eq!((options.last("clientid"), options.last("certstore")), (Some("two"), Some("a=b")));
    assert_eq!(options.all("messages").collect::<Vec<_>>(), ["x", "y"]);
    for (line, order) in
        [("--help", Order::Help), ("--clientid=x -h --what", Order::Help), ("--version", Order::Version)]
    {
        assert_eq!(options::parse(&words(line)), Ok(order));
    }
}

#[test]
fn a_command_line_that_chariotd_refuses_is_refused() {
    let wrong = |line: &str| options::parse(&words(line)).unwrap_err();
    for needed in ["clientid", "cacert", "certstore"] {
        let rest: Vec<_> = NEEDED.split(' ').filter(|word| !word.contains(needed)).collect();
        assert_eq!(wrong(&rest.join(" ")), OptionError::Missing(needed));
        assert_eq!(wrong(&format!("{} --{needed}=", rest.join(" "))), OptionError::Missing(needed));
    }
    let with = |line: &str| wrong(&format!("{NEEDED} {line}"));
    assert_eq!(with("--frob=1"), OptionError::Unknown("--frob".into()));
    assert_eq!(with("-clientid=1"), OptionError::Unknown("-clientid".into()));
    assert_eq!(with("stray"), OptionError::Unknown("stray".into()));
    assert_eq!(with("--messages"), OptionError::NoValue("messages"));
    assert_eq!(
        with("--empty-array-as-delete-request=1"),
        OptionError::Value("empty-array-as-delete-request")
    );
    for tunnel in ["--tunnelmappings=T:SSH=22", "--tunnelproxy=x", "--tunnelcadir=x"] {
        assert!(matches!(with(tunnel), OptionError::NotHere(..)), "{tunnel}");
        assert_eq!(with(tunnel).to_string().lines().count(), 1);
    }
    let mut line = words(NEEDED);
    line.push(OsString::from_vec(b"--messages=\xff".to_vec()));
    assert_eq!(options::parse(&line), Err(OptionError::NotText("messages")));
}

#[test]
fn the_help_lists_every_option_of_the_documentation() {
    let help = options::help();
    for option in [
        "clientid",
        "cacert",
        "certstore",
        "fleetprov",
        "services",
        "updates",
        "defaultshadow",
        "messages",
        "commands",
    ] {
        assert!(help.contains(&format!("\n  --{option}=")), "{option}");
    }
}

proptest! {
    /// Whatever is said, the result is TOML, and every value comes through.
    #[test]
    fn no_value_leaves_its_line(id in "\\PC{1,20}", prefix in any::<String>(), command in "[^:]{1,20}") {
        let args = [format!("--clientid={id}"), "--cacert=c".into(), "--certstore=s".into(), "--messages=m".into(),
            format!("--message-topic-prefix=m:{prefix}x"), format!("--defaultshadow=T:{command}")];
        let args: Vec<OsString> = args.into_iter().map(Into::into).collect();
        let Ok(Order::Run(options)) = options::parse(&args) else { panic!() };
        let made = translate(&options, Path::new("/"), ENDPOINT, None).unwrap();
        let table: toml::Table = made.toml().parse().unwrap();
        prop_assert_eq!(table["cloud"]["client-id"].as_str(), Some(id.as_str()));
        let prefix = format!("{prefix}x");
        prop_assert_eq!(table["messages"]["m"]["topic-prefix"].as_str(), Some(prefix.as_str()));
        prop_assert_eq!(table["services"]["T"]["default-shadow"].as_str(), Some(command.as_str()));
    }

    #[test]
    fn no_command_line_ends_the_reader(args in prop::collection::vec("(--)?[a-z=:-]{0,20}|--messages=.*|.*", 0..6)) {
        let args: Vec<OsString> = args.into_iter().map(Into::into).collect();
        if let Ok(Order::Run(options)) = options::parse(&args) {
            let _ = translate(&options, Path::new("/"), ENDPOINT, None);
        }
    }
}
