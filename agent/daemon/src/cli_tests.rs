use super::*;
use clap::CommandFactory;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

fn command(line: &str) -> Command {
    parse(line).unwrap_or_else(|e| panic!("{line}: {e}")).command
}

#[test]
fn the_definitions_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn global_options_go_before_and_after_the_command() {
    for line in ["otandem --config x --state-dir /s status", "otandem status --config x --state-dir /s"] {
        let cli = parse(line).unwrap();
        assert_eq!((cli.config, cli.state_dir), (Some("x".into()), Some("/s".into())));
    }
}

#[test]
fn sets_and_digests_are_checked_on_the_command_line() {
    let hash = "ab".repeat(32);
    let Command::Install(i) =
        command(&format!("otandem install /img --set B --sha256 {hash} --slot rootfs --reboot"))
    else {
        panic!()
    };
    assert_eq!((i.set, i.reboot, i.slot.as_deref()), (Some(SetId::B), true, Some("rootfs")));
    assert_eq!(i.sha256.unwrap().to_string(), hash);
    for bad in [
        "otandem install",
        "otandem install x --set C",
        "otandem install x --sha256 ab",
        &format!("otandem install x --no-digest --sha256 {hash}"),
        "otandem mark fine",
        "otandem mark good third",
        "otandem frobnicate",
        "otandem",
    ] {
        assert!(parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn mark_means_the_booted_set_unless_told() {
    let marked = |line| match command(line) {
        Command::Mark(m) => (m.verdict, m.target),
        other => panic!("{other:?}"),
    };
    assert_eq!(marked("otandem mark good"), (Verdict::Good, Target::Booted));
    assert_eq!(marked("otandem mark bad other"), (Verdict::Bad, Target::Other));
    assert_eq!(marked("otandem mark active B"), (Verdict::Active, Target::Set(SetId::B)));
}

#[test]
fn fota_handle_keeps_the_usual_defaults() {
    let handled = |line| match command(line) {
        Command::Fota(Fota::Handle(h)) => h,
        other => panic!("{other:?}"),
    };
    let h = handled("otandem fota handle");
    assert_eq!((h.force, h.disconnect_mqtt, h.auto_reset), (false, true, true));
    assert_eq!((h.document.document, h.job_callback), (None, None));
    let h = handled(
        "otandem fota handle - --force --disconnect-mqtt false --auto-reset false --job-callback /bin/x",
    );
    assert_eq!((h.force, h.disconnect_mqtt, h.auto_reset), (true, false, false));
    assert_eq!(h.document.document, Some("-".into()));
    assert_eq!(h.job_callback, Some("/bin/x".into()));
    assert!(parse("otandem fota handle --auto-reset maybe").is_err());
}

#[test]
fn everything_behind_the_other_clients_name_is_its_own() {
    let words = |line: &str| line.split_whitespace().map(OsString::from).collect::<Vec<_>>();
    let flags = "--endpoint e --config-file f --enable-jobs true";
    let all = Command::AwsIotDeviceClient { args: words(flags) };
    assert_eq!(command(&format!("otandem aws-iot-device-client {flags}")), all);
    let linked = |name: &str| Cli::named_as_another(&words(&format!("{name} {flags}")));
    assert_eq!(linked("/sbin/aws-iot-device-client").unwrap().command, all);
    assert_eq!(linked("/usr/bin/otandem"), None);
    for flag in ["--help", "--version", "-x"] {
        let own = Command::AwsIotDeviceClient { args: words(flag) };
        assert_eq!(command(&format!("otandem aws-iot-device-client {flag}")), own);
    }
    let cli = parse("otandem --state-dir /s aws-iot-device-client --cert c").unwrap();
    assert_eq!(cli.state_dir, Some("/s".into()));
    let all = Command::Chariotd { args: words("--clientid=x --help") };
    assert_eq!(command("otandem chariotd --clientid=x --help"), all);
    let linked = Cli::named_as_another(&words("/usr/bin/chariotd --clientid=x --help"));
    assert_eq!(linked.unwrap().command, all);
}

#[test]
fn convert_takes_formats_in_any_case() {
    let Command::Convert(c) = command("otandem convert --from json --to SHELL --array-style indexed") else {
        panic!()
    };
    assert_eq!((c.from, c.to, c.array_style), (Format::Json, Format::Shell, ArrayStyle::Indexed));
    for bad in ["--from json", "--to json", "--from yaml --to json", "--from json --to shell --array-style x"]
    {
        assert!(parse(&format!("otandem convert {bad}")).is_err(), "{bad}");
    }
}

#[test]
fn completions_and_manual_name_every_command() {
    let mut text = Vec::new();
    manual(&mut text).unwrap();
    for shell in Shell::value_variants() {
        let mut out = Vec::new();
        completions(*shell, &mut out);
        let out = String::from_utf8(out).unwrap();
        assert!(out.contains("rollback"), "{shell:?}");
    }
    let text = String::from_utf8(text).unwrap();
    for name in ["rollback", "no\\-digest", "auto\\-reset", "Exit codes"] {
        assert!(text.contains(name), "{name}");
    }
}

#[test]
fn the_exit_codes_in_the_help_are_those_of_the_program() {
    use crate::exit::Exit;
    for exit in [
        Exit::Ok,
        Exit::Attention,
        Exit::ResetDue,
        Exit::Usage,
        Exit::Data,
        Exit::NoInput,
        Exit::Unavailable,
        Exit::Software,
        Exit::System,
        Exit::CannotCreate,
        Exit::Io,
        Exit::TempFail,
        Exit::Protocol,
        Exit::NoPermission,
        Exit::Config,
    ] {
        assert!(EXIT_CODES.contains(&format!(" {} ", exit.code())), "{exit:?}");
    }
}
