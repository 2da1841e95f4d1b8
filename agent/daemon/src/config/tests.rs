use std::fs;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::fragments::{Fragment, all_keys};
use super::*;

const EXAMPLE: &str = include_str!("../../../dist/etc/otandem/otandem.toml.example");

/// The example with the lines of the given comment marks uncommented.
fn uncommented(marks: &[&str]) -> String {
    let mut out = String::new();
    for line in EXAMPLE.lines() {
        let body = line.trim_start_matches('#');
        let mark = &line[..line.len() - body.len()];
        let is_key = !mark.is_empty() && body.chars().next().is_some_and(|c| c.is_ascii_lowercase());
        out.push_str(if is_key && marks.contains(&mark) { body } else { line });
        out.push('\n');
    }
    out
}

fn load(text: &str) -> (Settings, Vec<Finding>) {
    let (fragment, mut findings) = Fragment::parse(Path::new("t.toml"), text);
    let settings = Settings::from_fragment(fragment, &mut findings);
    (settings, findings)
}

const SLOTS: &str = "[slots.A]\nrootfs='/dev/a'\n[slots.B]\nrootfs='/dev/b'\n";
const CLOUD: &str = "[cloud]\nendpoint='e.example'\nthing-name='t'\ncert='/c'\nkey='/k'\n";

#[test]
fn the_example_as_it_is_changes_nothing() {
    assert_eq!(load(EXAMPLE).0, Settings::default());
    assert_eq!(load(&uncommented(&["#"])).0, Settings::default());
}

#[test]
fn the_defaults_in_the_example_are_the_defaults_of_the_code() {
    let (examples_only, findings) = load(&uncommented(&["##"]));
    assert_eq!(findings, []);
    assert!(examples_only.updates.is_ok() && examples_only.cloud.on().is_some());
    let (with_defaults, findings) = load(&uncommented(&["#", "##"]));
    assert_eq!(findings, []);
    assert_eq!(with_defaults, examples_only);
}

#[test]
fn the_example_names_every_key_and_no_other() {
    let everything: toml::Table = uncommented(&["#", "##", "###"]).parse().unwrap();
    for key in all_keys() {
        let mut at = toml::Value::Table(everything.clone());
        for part in key.split('.') {
            at = at.get(part).unwrap_or_else(|| panic!("{key} is missing in the example")).clone();
        }
    }
    let (_, findings) = load(&uncommented(&["#", "##", "###"]));
    assert!(findings.iter().all(|f| f.kind != Kind::Unknown), "{findings:?}");
}

#[test]
fn no_configuration_is_an_offline_device_without_updates() {
    let settings = Settings::default();
    assert_eq!(settings.cloud, Feature::Off);
    assert!(settings.updates.unwrap_err().problem.contains("[slots.A]"));
    assert!(settings.network.is_ok());
}

#[test]
fn a_device_without_slots_that_says_so_has_no_mistake_and_takes_no_firmware() {
    let (settings, findings) = load(&format!("{CLOUD}[update]\nwithout-slots=true\n"));
    assert_eq!(findings, []);
    assert!(settings.updates.unwrap_err().problem.contains("without-slots"));
    assert!(settings.cloud.on().is_some() && settings.jobs.on().is_some());
    assert!(load(&format!("{SLOTS}[update]\nwithout-slots=true\n")).0.updates.is_ok(), "slots are named");
    let half = "[slots.A]\nrootfs='/dev/a'\n[update]\nwithout-slots=true\n";
    assert_eq!(load(half).1.len(), 1, "half of them is a mistake as ever");
    assert_eq!(load("[update]\nwithout-slots=false\n").1.len(), 1);
}

#[test]
fn an_unknown_key_is_told_with_its_file_and_full_name_and_has_no_effect() {
    let (settings, findings) = load(&format!("{SLOTS}[update]\nhealth-timout='5s'\n[updates]\nx=1\n"));
    assert!(settings.updates.is_ok());
    let told: Vec<_> = findings.iter().map(ToString::to_string).collect();
    assert!(told.iter().any(|t| t.starts_with("t.toml: update.health-timout: ")), "{told:?}");
    assert!(told.iter().any(|t| t.starts_with("t.toml: updates: ")), "{told:?}");
    assert!(findings.iter().all(|f| f.kind == Kind::Unknown));
}

#[test]
fn a_mistake_in_a_feature_costs_that_feature_alone() {
    for (table, area) in [
        ("[jobs]\nstep-timeout='often'\n", Area::Jobs),
        ("[jobs]\nenabled='yes'\n", Area::Jobs),
        ("[jobs]\nold-schema-stderr='sometimes'\n", Area::Jobs),
        ("[jobs]\nhandler-timeout='0s'\n", Area::Jobs),
        ("[network]\nproxy='socks://x'\n", Area::Network),
        ("[log]\nlevel=3\n", Area::Log),
        ("[log]\ntarget='paper'\n", Area::Log),
        ("[control]\nsocket='here'\n", Area::Control),
        ("[messages]\ndirectory='/m'\n", Area::Messages),
        ("[messages.a]\ndirectory='m'\n", Area::Messages),
        ("[messages.a]\ndirectory='/m'\norder='any'\n", Area::Messages),
        ("[messages.a]\ndirectory='/m'\ndrop='all'\n", Area::Messages),
        ("[messages.a]\ndirectory='/m'\nconcurrency=0\n", Area::Messages),
        ("[messages.a]\ndirectory='/m'\ntopic-prefix='a/#/'\n", Area::Messages),
        ("[messages.a]\ndirectory='/m'\nletterhead-file='l.json'\n", Area::Messages),
        ("[messages.a]\ndirectory='/m'\n[messages.b]\ndirectory='/m'\n", Area::Messages),
        ("[subscribe]\ntopic='a'\n", Area::Subscribe),
        ("[subscribe.a]\ntopic='a'\n", Area::Subscribe),
        ("[subscribe.a]\ntopic='a'\nwrite='/w'\nexec='x'\n", Area::Subscribe),
        ("[subscribe.a]\ntopic='a/#/b'\nwrite='/w'\n", Area::Subscribe),
        ("[subscribe.a]\ntopic='$share/g/a'\nwrite='/w'\n", Area::Subscribe),
        ("[subscribe.a]\ntopic='a'\nwrite='w'\n", Area::Subscribe),
        ("[subscribe.a]\ntopic='a'\nexec='x'\ntimeout='0s'\n", Area::Subscribe),
        ("[subscribe.a]\ntopic='a'\nexec='x'\nqueue=0\n", Area::Subscribe),
        ("[subscribe.a]\ntopic='a'\nexec=\"x\\u0000\"\n", Area::Subscribe),
        ("[subscribe.a]\ntopic='a'\nwrite='/w'\n[subscribe.b]\ntopic='b'\nwrite='/w'\n", Area::Subscribe),
        ("[commands]\ndirectory='c'\n", Area::Commands),
        ("[commands]\ndirectory='/c'\nkeep-failed=-1\n", Area::Commands),
        ("[services]\nupdates='/u'\n", Area::Services),
        ("[services.a]\nupdates='u'\n", Area::Services),
        ("[services.a]\ndirectory='d'\n", Area::Services),
        ("[services.a]\nupdates='/u'\nthing='a/b'\n", Area::Services),
        ("[services.a]\nupdates='/u'\nshadow='a/b'\n", Area::Services),
        ("[services.a]\ndefault-shadow=\"a\\u0000\"\n", Area::Services),
        ("[services.a]\nupdates='/u'\n[services.b]\nupdates='/u'\n", Area::Services),
        ("[messages.a]\ndirectory='/m'\n[services.b]\nupdates='/m'\n", Area::Services),
    ] {
        let (settings, findings) = load(&format!("{SLOTS}{CLOUD}{table}"));
        assert!(settings.updates.is_ok(), "{table}");
        assert!(settings.cloud.on().is_some(), "{table}");
        assert_eq!(matches!(settings.jobs, Feature::Broken(_)), area == Area::Jobs, "{table}");
        assert_eq!(matches!(settings.messages, Feature::Broken(_)), area == Area::Messages, "{table}");
        assert_eq!(matches!(settings.subscribe, Feature::Broken(_)), area == Area::Subscribe, "{table}");
        assert_eq!(matches!(settings.commands, Feature::Broken(_)), area == Area::Commands, "{table}");
        assert_eq!(matches!(settings.services, Feature::Broken(_)), area == Area::Services, "{table}");
        assert_eq!(settings.network.is_err(), area == Area::Network, "{table}");
        assert_eq!(findings.iter().map(|f| f.kind).collect::<Vec<_>>(), [Kind::Invalid(area)], "{table}");
    }
}

#[test]
fn a_mistake_in_the_cloud_table_leaves_updates_on() {
    for wrong in [
        "port=70000",
        "keep-alive='1d'",
        "client-id=3",
        "cert-store='/x'",
        "thing-name-file='/y'",
        "kind='x'",
    ] {
        let (settings, findings) = load(&format!("{SLOTS}{CLOUD}{wrong}\n"));
        assert!(settings.updates.is_ok(), "{wrong}");
        assert!(matches!(settings.cloud, Feature::Broken(_)), "{wrong}");
        assert_eq!(findings.len(), 1, "{wrong}: {findings:?}");
    }
    let hostile = CLOUD.replace("'t'", "'t/#'");
    assert!(matches!(load(&hostile).0.cloud, Feature::Broken(_)));
}

#[test]
fn what_an_update_needs_is_refused_when_wrong_never_guessed() {
    let slots = |a: &str, b: &str| format!("[slots.A]\n{a}\n[slots.B]\n{b}\n");
    for text in [
        slots("rootfs='/dev/a'", ""),
        slots("rootfs='/dev/a'", "rootfs='/dev/a'"),
        slots("rootfs='dev/a'", "rootfs='/dev/b'"),
        slots("rootfs='/dev/a'\nindex=1", "rootfs='/dev/b'"),
        slots("rootfs='/dev/a'\nboot-name='B'", "rootfs='/dev/b'"),
        slots("'../x'='/dev/a'", "'../x'='/dev/b'"),
        slots("rootfs=3", "rootfs='/dev/b'"),
        format!("{SLOTS}[slots.C]\nrootfs='/dev/c'"),
        format!("{SLOTS}[update]\ntrial-boots=4"),
        format!("{SLOTS}[update]\ntrial-boots=0"),
        format!("{SLOTS}[update]\nhealth-timeout=0"),
        format!("{SLOTS}[update]\nca='roots.pem'"),
        format!("{SLOTS}[update]\nca=true"),
        format!("{SLOTS}[update]\nreboot-command=[]"),
        format!("{SLOTS}[update]\nboots-first='boot'"),
        format!("{SLOTS}[update]\nif-missing={{rootfs='guess'}}"),
        format!("{SLOTS}[bootloader]\nkind='lilo'"),
        format!("{SLOTS}[bootloader]\nkind='custom'"),
        format!("{SLOTS}[device]\ncompatible=['a']"),
        format!("update=3\n{SLOTS}"),
        format!("{SLOTS}[update"),
    ] {
        let (settings, findings) = load(&text);
        let finding = settings.updates.expect_err(&text);
        assert!(matches!(finding.kind, Kind::Invalid(Area::Update)), "{text}: {finding}");
        assert!(findings.contains(&finding), "{text}");
    }
}

#[test]
fn a_proxy_with_a_password_is_never_repeated_in_a_finding() {
    let (_, findings) = load("[network]\nproxy='ftp://user:hunter2@proxy:3128'\n");
    assert_eq!(findings.iter().filter(|f| f.key == "network.proxy").count(), 1);
    assert!(!findings.iter().any(|f| f.to_string().contains("hunter2")));
    let (_, findings) = load("[network]\nproxy='http://user:hunter2@proxy:3128\n");
    assert!(findings[0].to_string().contains("in line 2"), "{findings:?}");
    assert!(!findings[0].to_string().contains("hunter2"));
}

#[test]
fn a_slot_is_a_path_or_a_table_and_both_sets_hold_it_the_same_way() {
    let slots = |a: &str, b: &str| format!("[slots.A]\nkernel={a}\n[slots.B]\nkernel={b}\n");
    let (settings, findings) =
        load(&slots("{path='/efi/a/vmlinuz',in-place=true}", "{path='/efi/b/vmlinuz',in-place=true}"));
    assert_eq!(findings, []);
    let updates = settings.updates.unwrap();
    assert_eq!(updates.a.slots["kernel"], Path::new("/efi/a/vmlinuz"));
    assert!(updates.a.in_place.contains("kernel") && updates.b.in_place.contains("kernel"));
    let plain = load(&slots("{path='/a'}", "'/b'")).0.updates.unwrap();
    assert!(plain.a.in_place.is_empty());
    for (a, b, told) in [
        ("{path='/a',in-place=true}", "'/b'", "same slots in place"),
        ("{path='/a',in-plce=true}", "'/b'", "in-plce"),
        ("{in-place=true}", "'/b'", "path"),
        ("{path='a'}", "'/b'", "absolute"),
        ("['/a']", "'/b'", "expected a path or"),
    ] {
        let (settings, findings) = load(&slots(a, b));
        assert!(settings.updates.is_err(), "{a}");
        assert!(findings.iter().any(|f| f.to_string().contains(told)), "{a}: {findings:?}");
    }
}

#[test]
fn each_bootloader_takes_its_own_keys_and_names_those_of_others() {
    let keys = [
        "program='/p'",
        "directory='/d'",
        "timeout='1s'",
        "fw-env-config='/c'",
        "fw-printenv='/p'",
        "fw-setenv='/s'",
        "grubenv='/g'",
        "entries-a='/a'\nentries-b='/b'",
    ];
    for (kind, own) in [
        ("auto", vec![0, 2, 3, 4, 5, 6, 7]),
        ("custom", vec![0, 2]),
        ("simulated", vec![1]),
        ("u-boot", vec![2, 3, 4, 5]),
        ("grub", vec![6]),
        ("systemd-boot", vec![7]),
    ] {
        for (i, key) in keys.iter().enumerate() {
            let (_, findings) = load(&format!("{SLOTS}[bootloader]\nkind='{kind}'\n{key}\n"));
            let idle: Vec<_> = findings.iter().filter(|f| f.kind == Kind::Idle).collect();
            assert_eq!(idle.is_empty(), own.contains(&i), "{kind}, {key}: {findings:?}");
            assert!(idle.iter().all(|f| f.to_string().contains(kind)), "{idle:?}");
        }
    }
}

#[test]
fn what_a_bootloader_needs_is_told_when_it_is_missing() {
    for (text, told) in [
        ("kind='lilo'", "use auto, u-boot, grub, systemd-boot, custom, simulated"),
        ("kind='simulated'", "needs a directory"),
        ("kind='custom'", "needs the program"),
        ("kind='grub'\ngrubenv='grubenv'", "not an absolute path"),
        ("kind='systemd-boot'\nentries-a='/a'", "both of entries-a and entries-b"),
    ] {
        let (settings, findings) = load(&format!("{SLOTS}[bootloader]\n{text}\n"));
        assert!(settings.updates.is_err(), "{text}");
        assert!(findings.iter().any(|f| f.problem.contains(told)), "{text}: {findings:?}");
    }
    for text in ["kind='u-boot'", "kind='grub'", "kind='systemd-boot'", "program='/p'"] {
        let (settings, findings) = load(&format!("{SLOTS}[bootloader]\n{text}\n"));
        assert!(settings.updates.is_ok(), "{text}: {findings:?}");
    }
}

fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

fn sources(dir: &Path) -> Sources {
    Sources {
        directories: ["usr", "etc", "run"].iter().map(|d| dir.join(d)).collect(),
        explicit: None,
        state_dir: Some(dir.join("state")),
    }
}

#[test]
fn later_files_win_key_by_key() {
    let dir = tree(&[
        ("usr/otandem.toml", "[update]\ntrial-boots=2\nhealth-timeout='1min'\nretry-interval='1min'\n"),
        (
            "etc/otandem.toml",
            &format!("{SLOTS}[update]\nhealth-timeout='2min'\n[update.if-missing]\nrootfs='copy'"),
        ),
        ("etc/conf.d/20.toml", "[update]\nretry-interval='20min'"),
        ("etc/conf.d/10.toml", "[update]\nretry-interval='10min'"),
        ("etc/conf.d/readme", "not read"),
        ("run/otandem.toml", "[slots.B]\nrootfs='/dev/c'"),
        ("state/device.toml", CLOUD),
    ]);
    let (settings, findings) = Settings::load(&sources(dir.path())).unwrap();
    assert_eq!(findings, []);
    let update = settings.updates.unwrap();
    assert_eq!(update.trial_boots, 2);
    assert_eq!(update.health_timeout, Duration::from_secs(120));
    assert_eq!(update.retry_interval, Duration::from_secs(1200));
    assert_eq!(update.b.slots["rootfs"], Path::new("/dev/c"));
    assert_eq!(update.if_missing["rootfs"], IfMissing::Copy);
    assert_eq!(settings.cloud.on().unwrap().endpoint, "e.example");
    assert_eq!(settings.state_dir, dir.path().join("state"));
}

#[test]
fn a_device_file_that_others_may_write_is_not_believed() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tree(&[("etc/otandem.toml", SLOTS), ("state/device.toml", CLOUD)]);
    let file = dir.path().join("state/device.toml");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
    let (settings, _) = Settings::load(&sources(dir.path())).unwrap();
    assert!(settings.updates.is_ok());
    let Feature::Broken(finding) = settings.cloud else { panic!("{:?}", settings.cloud) };
    assert!(finding.to_string().contains("chmod"), "{finding}");
}

#[test]
fn an_explicit_configuration_replaces_all_others() {
    let dir = tree(&[
        ("etc/otandem.toml", SLOTS),
        ("state/device.toml", CLOUD),
        ("mine.toml", "[log]\nlevel='debug'"),
    ]);
    let explicit = |name: &str| Sources { explicit: Some(dir.path().join(name)), ..sources(dir.path()) };
    let (settings, _) = Settings::load(&explicit("mine.toml")).unwrap();
    assert_eq!(settings.log.level, "debug");
    assert!(settings.updates.is_err());
    assert_eq!(settings.cloud, Feature::Off);
    let (settings, _) = Settings::load(&explicit("etc")).unwrap();
    assert!(settings.updates.is_ok());
    let error = Settings::load(&explicit("nowhere")).unwrap_err();
    assert!(error.to_string().contains("--config"), "{error}");
}

#[test]
fn a_layer_above_replaces_the_identity_and_one_below_gives_way() {
    let file = "[cloud]\nendpoint='e'\nthing-name-file='/n'\ncert-store='/s'\nport=8884\n";
    let dir = tree(&[("etc/otandem.toml", SLOTS), ("state/device.toml", file)]);
    let layer = |text: &str| Fragment::parse(Path::new("layer"), text).0;
    let below = layer("[cloud]\nport=443\nkeep-alive='1min'\n");
    let above = layer("[cloud]\nthing-name='t'\ncert='/c'\nkey='/k'\n");
    let (settings, findings) = Settings::load_between(below, &sources(dir.path()), above).unwrap();
    assert_eq!(findings, []);
    let cloud = settings.cloud.on().unwrap();
    assert_eq!((cloud.endpoint.as_str(), cloud.port, cloud.keep_alive), ("e", 8884, Duration::from_secs(60)));
    assert_eq!(cloud.thing, ThingName::Name("t".into()));
    assert_eq!(cloud.credentials, Credentials::Files { cert: "/c".into(), key: "/k".into() });
}

#[test]
fn a_file_that_is_noise_refuses_updates_and_the_daemon_can_still_start() {
    let dir = tree(&[("etc/otandem.toml", SLOTS), ("state/device.toml", CLOUD)]);
    fs::write(dir.path().join("etc/conf.d.toml"), "").unwrap();
    fs::create_dir_all(dir.path().join("etc/conf.d")).unwrap();
    fs::write(dir.path().join("etc/conf.d/x.toml"), [0xff, 0xfe, 0, 1]).unwrap();
    let (settings, findings) = Settings::load(&sources(dir.path())).unwrap();
    assert!(settings.updates.is_err());
    assert!(settings.cloud.on().is_some());
    assert_eq!(findings.len(), 1);
}

proptest! {
    #[test]
    fn no_file_panics(text in "\\PC{0,200}") {
        let _ = load(&text);
    }

    #[test]
    fn no_value_of_a_known_key_panics(key in prop::sample::select(all_keys()), value in prop::sample::select(vec![
        "1", "-1", "true", "''", "'x'", "[]", "['']", "{}", "{a=1}", "1.5", "1979-05-27", "9223372036854775807"]))
    {
        let (table, key) = key.rsplit_once('.').unwrap();
        let (_, findings) = load(&format!("[{table}]\n{key}={value}\n"));
        prop_assert!(findings.iter().all(|f| f.kind != Kind::Unknown));
    }
}

#[test]
fn each_subscription_has_a_topic_and_one_target_and_the_broker_takes_fifty() {
    let (settings, findings) = load(&format!(
        "{SLOTS}[subscribe.b]\ntopic='b/#'\nexec='cat'\ntimeout='1min'\nqueue=7\n[subscribe.a]\ntopic='+/a'\nwrite='/a'\n\
         [subscribe.later]\nexec='x'\n[commands]\ndirectory='/c'\nkeep-failed=3\n",
    ));
    assert_eq!(findings, []);
    let [a, b] = settings.subscribe.on().unwrap().as_slice() else { panic!("{:?}", settings.subscribe) };
    assert_eq!((a.name.as_str(), &a.target, a.queue), ("a", &Target::Write("/a".into()), 100));
    assert_eq!((&b.target, b.timeout, b.queue), (&Target::Exec("cat".into()), Duration::from_secs(60), 7));
    assert!(b.filter.matches("b/x/y") && a.filter.matches("x/a"));
    let commands = settings.commands.on().unwrap();
    assert_eq!((commands.directory.as_path(), commands.keep.files), (Path::new("/c"), 3));
    assert_eq!(load("[subscribe.later]\nexec='x'\n[commands]\nkeep-failed=3\n").0.subscribe, Feature::Off);
    let many = |topic: &dyn Fn(u32) -> String| {
        let tables = (0..51).map(|n| format!("[subscribe.r{n}]\ntopic='{}'\nexec='x'\n", topic(n)));
        load(&format!("{SLOTS}{}", tables.collect::<String>())).1
    };
    assert_eq!(many(&|n| format!("t/{n}")).len(), 1);
    // One subscription brings the messages of all of them.
    assert_eq!(many(&|n| if n == 50 { "t/#".into() } else { format!("t/{n}") }), []);
}

#[test]
fn each_directory_of_messages_has_its_own_settings_and_one_without_a_directory_is_off() {
    let (settings, findings) = load(&format!(
        "{SLOTS}[messages.b]\ndirectory='/b'\nrate=0\norder='newest-first'\n[messages.a]\ndirectory='/a'\ntopic-prefix='p/'\n\
         [messages.later]\nrate=7\n",
    ));
    assert_eq!(findings, []);
    let directories = settings.messages.on().unwrap();
    let shown: Vec<_> =
        directories.iter().map(|d| (d.name.as_str(), d.pace.rate, d.topic_prefix.as_str())).collect();
    assert_eq!(shown, [("a", 100, "p/"), ("b", 0, "")]);
    assert_eq!(load("[messages.later]\nrate=7\n").0.messages, Feature::Off);
}

#[test]
fn a_table_of_services_does_what_it_names_and_one_that_names_nothing_is_off() {
    let (settings, findings) = load(&format!(
        "{SLOTS}[services.b]\nupdates='/u'\nthing='other'\nshadow='net'\nempty-list-deletes=true\nkeep-failed=3\n\
         [services.a]\ndirectory='/d'\n[services.later]\nthing='x'\n",
    ));
    assert_eq!(findings, []);
    let tables = settings.services.on().unwrap();
    let shown: Vec<_> = tables.iter().map(|t| (t.name.as_str(), t.thing.as_deref(), t.keep.files)).collect();
    assert_eq!(shown, [("a", None, 10), ("b", Some("other"), 3)]);
    assert_eq!(tables[1].shadow.as_deref(), Some("net"));
    assert_eq!(load("[services.later]\nthing='x'\n").0.services, Feature::Off);
}

const CLAIM: &str = "[provisioning]\nclaim-store='/claim'\ntemplate='gateways'\n";

#[test]
fn a_device_that_will_be_provisioned_needs_no_name_and_finds_its_broker_in_the_store() {
    let dir = tree(&[("certs/endpoint.txt", "e.example:443\n")]);
    let store = dir.path().join("certs").display().to_string();
    let (settings, findings) = load(&format!("[cloud]\ncert-store='{store}'\n{CLAIM}"));
    assert!(findings.iter().all(|f| f.key.starts_with("slots")), "{findings:?}");
    let cloud = settings.cloud.on().unwrap();
    assert_eq!((cloud.endpoint.as_str(), cloud.port), ("e.example", 443));
    assert_eq!(cloud.thing, ThingName::File("/var/lib/otandem/thing-name".into()));
    let own = settings.provisioning.on().unwrap();
    assert_eq!((own.template.as_str(), own.renew_before, &own.outfile), ("gateways", None, &None));
    let said = format!("[cloud]\nendpoint='own'\nport=8884\nthing-name='t'\ncert-store='{store}'\n");
    let (settings, _) = load(&said);
    let cloud = settings.cloud.on().unwrap();
    assert_eq!((cloud.endpoint.as_str(), cloud.port), ("own", 8884), "what is configured goes before");
    assert_eq!(settings.provisioning, Feature::Off);
    let by_claim = |claim: &str| load(&format!("[cloud]\ncert-store='/none'\n{claim}")).0;
    let claim = CLAIM.replace("/claim", &store);
    assert_eq!(by_claim(&claim).cloud.on().map(|c| c.port), Some(443), "the claim knows where it is for");
    assert!(matches!(by_claim(CLAIM).provisioning, Feature::Broken(_)), "nobody knows the broker");
    fs::write(dir.path().join("certs/endpoint.txt"), "no host").unwrap();
    assert!(matches!(load(&format!("[cloud]\ncert-store='{store}'\n")).0.cloud, Feature::Broken(_)));
}

#[test]
fn parameters_are_texts_or_files_and_a_mistake_costs_provisioning_alone() {
    let store = "[cloud]\nendpoint='e'\nthing-name='t'\ncert-store='/s'\n";
    let (settings, findings) = load(&format!(
        "{SLOTS}{store}{CLAIM}parameters={{a='x',b=7,c=true,d={{file='/sn'}}}}\noutfile='/o'\noutformat='SHELL'\n\
         renew-before='30d'\nkey='cloud'\n"
    ));
    assert_eq!(findings, []);
    let own = settings.provisioning.on().unwrap();
    let text = |text: &str| Parameter::Text(text.into());
    let all = [("a", text("x")), ("b", text("7")), ("c", text("true")), ("d", Parameter::File("/sn".into()))];
    assert!(own.parameters.iter().map(|(k, v)| (k.as_str(), v.clone())).eq(all));
    assert_eq!(own.outfile, Some(("/o".into(), otandem_core::formats::Format::Shell)));
    assert_eq!(own.renew_before, Some(Duration::from_secs(30 * 86_400)));
    for (keys, told) in [
        ("parameters={a={file='sn'}}", "absolute"),
        ("parameters={a=['x']}", "expected a text"),
        ("parameters={a={fil='/x'}}", "expected a text"),
        ("key='tpm'", "device or cloud"),
        ("outfile='o'", "absolute"),
        ("outformat='yaml'", "yaml"),
        ("notify-timeout='0s'", "more than zero"),
    ] {
        let (settings, findings) = load(&format!("{SLOTS}{store}{CLAIM}{keys}\n"));
        let Feature::Broken(finding) = settings.provisioning else { panic!("{keys}") };
        assert!(finding.to_string().contains(told), "{keys}: {finding}");
        assert!(settings.updates.is_ok() && settings.cloud.on().is_some(), "{findings:?}");
    }
    for template in ["", "a/b", "a+b", "#"] {
        let claim = format!("[provisioning]\nclaim-store='/c'\ntemplate='{template}'\n");
        assert!(matches!(load(&format!("{store}{claim}")).0.provisioning, Feature::Broken(_)), "{template}");
    }
    let files = load(&format!("{CLOUD}{CLAIM}")).0.provisioning;
    let Feature::Broken(finding) = files else { panic!("{files:?}") };
    assert!(finding.to_string().contains("cert-store"), "{finding}");
}
