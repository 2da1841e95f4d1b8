//! What SHELL writes, sourced by real shells: bash, dash and BusyBox must find in every variable exactly the value.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use otandem_core::formats::{ArrayStyle, Format, FormatError, parse, print};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Map, Value, json};

/// A shell, how it is called, and how it is to get lists.
const SHELLS: [(&str, &[&str], ArrayStyle); 4] = [
    ("bash", &["bash", "--norc", "--noprofile"], ArrayStyle::Bash),
    ("bash as sh", &["bash", "--posix"], ArrayStyle::Indexed),
    ("dash", &["dash"], ArrayStyle::Indexed),
    ("BusyBox", &["busybox", "sh"], ArrayStyle::Indexed),
];

/// The variables that a value must become: name, and its text or texts.
type Wanted = Vec<(String, Vec<String>, bool)>;

/// Written anew, without the code under test: every leaf under the names of its keys.
fn wanted(name: Option<&str>, value: &Value, style: ArrayStyle, into: &mut Wanted) {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Number(number) if number.is_f64() => format!("{}", number.as_f64().unwrap()),
        other => other.to_string(),
    };
    let called = || name.unwrap_or_default().to_owned();
    match value {
        Value::Null => {}
        Value::Object(members) => {
            for (key, member) in members {
                let name = name.map_or_else(|| key.clone(), |name| format!("{name}_{key}"));
                wanted(Some(&name), member, style, into);
            }
        }
        Value::Array(elements) if style == ArrayStyle::Bash => {
            into.push((called(), elements.iter().map(text).collect(), true));
        }
        Value::Array(elements) => {
            into.push((format!("{}__count", called()), vec![elements.len().to_string()], false));
            for (at, element) in elements.iter().enumerate() {
                into.push((format!("{}_{at}", called()), vec![text(element)], false));
            }
        }
        other => into.push((called(), vec![text(other)], false)),
    }
}

fn there(shell: &[&str]) -> bool {
    let mut command = Command::new(shell[0]);
    command.args(&shell[1..]).args(["-c", ":"]).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// A directory of this test alone.
fn place(name: &str) -> PathBuf {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("shells-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&place).unwrap();
    place
}

/// Has the shell source each text in a subshell of its own and tell the variables; fails at the first that differs.
fn source(what: &str, name: &str, shell: &[&str], style: ArrayStyle, values: &[Value]) -> usize {
    let place = place(&format!("{what}-{}", name.replace(' ', "-")));
    let mut script = String::new();
    let mut expected = Vec::new();
    let mut printed = Vec::new();
    for value in values {
        let Ok(text) = print(Format::Shell, value, style) else { continue };
        let file = place.join(format!("{}.sh", printed.len()));
        std::fs::write(&file, &text).unwrap();
        script += &format!("( . '{}'\n", file.display());
        let mut variables = Wanted::new();
        wanted(None, value, style, &mut variables);
        let mut answer = Vec::new();
        for (name, texts, list) in variables {
            if list {
                script += &format!("printf '%s\\0' \"${{#{name}[@]}}\" ${{{name}[@]+\"${{{name}[@]}}\"}}\n");
                answer.push(texts.len().to_string());
            } else {
                script += &format!("printf '%s\\0' \"${name}\"\n");
            }
            answer.extend(texts);
        }
        script += "printf 'end\\0' )\n";
        answer.push("end".into());
        printed.push(String::from_utf8(text).unwrap());
        expected.push(answer);
    }
    let main = place.join("main");
    std::fs::File::create(&main).unwrap().write_all(script.as_bytes()).unwrap();
    let mut command = Command::new(shell[0]);
    let run = command.args(&shell[1..]).arg(&main).env("LC_ALL", "C.UTF-8").output().unwrap();
    let complaints = String::from_utf8_lossy(&run.stderr);
    let mut answers = run.stdout.split(|byte| *byte == 0);
    for (answer, text) in expected.iter().zip(&printed) {
        for wanted in answer {
            let found = String::from_utf8_lossy(answers.next().unwrap_or_default()).into_owned();
            assert_eq!(&found, wanted, "{name} has sourced something else from:\n{text}{complaints}");
        }
    }
    assert_eq!(complaints, "", "{name} complains");
    assert!(run.status.success(), "{name}: {}", run.status);
    std::fs::remove_dir_all(place).unwrap();
    printed.len()
}

/// Any object: keys that are names, some that are not, values with everything that means something to a shell.
fn objects() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        "['\"\\\\$`!*?~#;=(){}&|<>a \t\n-]{0,8}",
        any::<String>(),
        "[\u{1}-\u{8}\u{b}-\u{1f}\u{7f}-\u{a0}é€😀']{0,4}",
        Just("'; echo broken; #".to_owned()),
        Just("$(echo broken)".to_owned()),
        Just("\\".to_owned()),
    ];
    let scalar = prop_oneof![
        4 => text.prop_map(Value::from),
        1 => any::<bool>().prop_map(Value::from),
        1 => any::<i64>().prop_map(Value::from),
        1 => (-1e6..1e6f64).prop_map(Value::from),
        1 => Just(Value::Null),
    ];
    let list = prop::collection::vec(scalar.clone(), 0..4).prop_map(Value::from);
    let leaf = prop_oneof![4 => scalar, 1 => list];
    let members = |of: BoxedStrategy<Value>| {
        let key = prop_oneof![20 => "[A-Za-z_][A-Za-z0-9_]{0,5}", 1 => ".{0,3}"];
        prop::collection::btree_map(key, of, 0..5).prop_map(|m| Value::Object(m.into_iter().collect()))
    };
    let inner = leaf.prop_recursive(3, 12, 4, move |inner| members(inner.boxed()));
    members(inner.boxed())
}

#[test]
fn every_object_that_is_written_is_sourced_to_its_values() {
    let mut runner = TestRunner::default();
    let strategy = objects();
    let values: Vec<_> = (0..400).map(|_| strategy.new_tree(&mut runner).unwrap().current()).collect();
    for (name, shell, style) in SHELLS {
        if there(shell) {
            let sourced = source("objects", name, shell, style, &values);
            assert!(sourced > 100, "only {sourced} objects could be written");
        } else {
            println!("skipped: no {name} here");
        }
    }
}

/// Names that mean something to a shell of ours, whether or not it sets them at start.
const SPECIAL: &str = "_ BASH BASHOPTS BASHPID BASH_ALIASES BASH_ARGC BASH_ARGV BASH_ARGV0 BASH_CMDS BASH_COMMAND BASH_COMPAT \
    BASH_ENV BASH_EXECUTION_STRING BASH_LINENO BASH_LOADABLES_PATH BASH_REMATCH BASH_SOURCE BASH_SUBSHELL BASH_VERSINFO \
    BASH_VERSION BASH_XTRACEFD CDPATH CHILD_MAX COLUMNS COMPREPLY COMP_CWORD COMP_KEY COMP_LINE COMP_POINT COMP_TYPE \
    COMP_WORDBREAKS COMP_WORDS COPROC DIRSTACK EMACS ENV EPOCHREALTIME EPOCHSECONDS EUID EXECIGNORE FCEDIT FIGNORE \
    FUNCNAME FUNCNEST GLOBIGNORE GROUPS HISTCMD HISTCONTROL HISTFILE HISTFILESIZE HISTIGNORE HISTSIZE HISTTIMEFORMAT HOME \
    HOSTFILE HOSTNAME HOSTTYPE IFS IGNOREEOF INPUTRC INSIDE_EMACS LINENO LINES MACHTYPE MAIL MAILCHECK MAILPATH MAPFILE \
    OLDPWD OPTARG OPTERR OPTIND OSTYPE PATH PIPESTATUS POSIXLY_CORRECT PPID PROMPT_COMMAND PROMPT_DIRTRIM PS0 PS1 PS2 PS3 \
    PS4 PWD RANDOM READLINE_ARGUMENT READLINE_LINE READLINE_MARK READLINE_POINT REPLY SECONDS SHELL SHELLOPTS SHLVL \
    SRANDOM TERM TIMEFORMAT TMOUT TMPDIR TZ UID auto_resume histchars \
    if then else elif fi do done case esac while until for in function select time coproc export readonly local eval exit";

#[test]
fn every_name_of_a_shell_is_refused_or_keeps_what_it_is_given() {
    for (name, shell, style) in SHELLS {
        if !there(shell) {
            println!("skipped: no {name} here");
            continue;
        }
        let mut set = Command::new(shell[0]);
        let set = set.args(&shell[1..]).args(["-c", "set"]).output().unwrap().stdout;
        let set = String::from_utf8_lossy(&set).into_owned();
        let own = set.lines().filter_map(|line| Some(line.split_once('=')?.0));
        let values: Vec<_> = SPECIAL
            .split_whitespace()
            .chain(own)
            .filter(|name| !name.starts_with("LC_"))
            .map(|name| Value::Object(Map::from_iter([(name.to_owned(), json!("it's 1 $x"))])))
            .collect();
        source("names", name, shell, style, &values);
    }
}

#[test]
fn the_file_is_safe_to_source_with_errors_fatal_and_variables_exported() {
    let value = json!({"a": "it's", "l": ["x", ""], "e": [], "n": {"b": true}});
    for (name, shell, style) in SHELLS {
        if !there(shell) {
            println!("skipped: no {name} here");
            continue;
        }
        let place = place(&format!("strict-{}", name.replace(' ', "-")));
        let file = place.join("file");
        std::fs::write(&file, print(Format::Shell, &value, style).unwrap()).unwrap();
        let script = format!("set -aeu; . '{}'; printf '%s,%s' \"$a\" \"$n_b\"", file.display());
        let run = Command::new(shell[0]).args(&shell[1..]).args(["-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&run.stdout), "it's,true", "{name}");
        assert_eq!(String::from_utf8_lossy(&run.stderr), "", "{name}");
        std::fs::remove_dir_all(place).unwrap();
    }
}

#[test]
fn a_name_that_would_run_code_is_never_written() {
    for key in
        ["x;reboot", "x=1\nreboot", "$(reboot)", "a b", "a'", "a[$(reboot)0]", "é", "", "1", "a-b", "a\n"]
    {
        for value in [json!({key: 1}), json!({key: ["x"]})] {
            let refused = print(Format::Shell, &value, ArrayStyle::Bash);
            assert!(matches!(refused, Err(FormatError::NoPlace { .. })), "{key:?}");
        }
    }
}

/// Words as people write them: quoted, escaped and bare pieces, without digits (no types) and without expansions.
fn word() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "'[a-c \"#;\n$()]{0,4}'",
        "'\\\\[a-c ]{1,3}'",
        "\"([a-c '#;()\n]|\\\\[\"\\\\$`ac]){0,4}\"",
        "[a-c.,:/@%+=#-]{1,4}".prop_filter("a comment", |word| !word.starts_with('#')),
        "\\\\[a-c \"'\\\\#;$()\n]",
    ];
    prop::collection::vec(piece, 1..4)
        .prop_map(|pieces| pieces.concat())
        .prop_filter("nothing, or a quote that may be one of chariotd's", |word| {
            word != "\"\"" && !word.replace('\n', "").is_empty() && !word.contains("\\'")
        })
}

/// Files as people write them; the variables are v_a, v_b, ... and lists l_a, l_b, ...
fn hand_written() -> impl Strategy<Value = String> {
    let value = prop_oneof![
        4 => word().prop_map(|word| ("v", word)),
        1 => prop::collection::vec(word(), 0..3).prop_map(|words| ("l", format!("( {} # c\n)", words.join(" ")))),
    ];
    let statement = ("(export )?", value, "( # it's\n|\n|;| ; |\n\n  )");
    prop::collection::vec(statement, 1..5).prop_map(|statements| {
        let named = statements.into_iter().zip('a'..).map(|((export, (kind, value), end), at)| {
            let export = if kind == "v" { export } else { String::new() };
            format!("{export}{kind}_{at}={value}{end}")
        });
        format!("# by hand\n{}", named.collect::<String>())
    })
}

#[test]
fn what_is_read_is_what_bash_makes_of_it() {
    if !there(&["bash"]) {
        println!("skipped: no bash here");
        return;
    }
    let place = place("hand-written");
    let mut runner = TestRunner::default();
    let strategy = hand_written();
    let texts: Vec<_> = (0..400).map(|_| strategy.new_tree(&mut runner).unwrap().current()).collect();
    let mut script = String::new();
    for (at, text) in texts.iter().enumerate() {
        let file = place.join(at.to_string());
        std::fs::write(&file, text).unwrap();
        script += &format!("( . '{}'\n", file.display());
        script += "for v in ${!v_@}; do printf '%s=%s\\0' \"$v\" \"${!v}\"; done\n";
        script += "for v in ${!l_@}; do declare -n l=$v; printf \"$v=%s\\0\" \"${l[@]}\"; done\n";
        script += "printf 'end\\0' )\n";
    }
    let main = place.join("main");
    std::fs::write(&main, script).unwrap();
    let run = Command::new("bash").args(["--norc", "--noprofile"]).arg(&main).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&run.stderr), "");
    let answers = String::from_utf8(run.stdout).unwrap();
    let mut answers = answers.split('\0').map(str::to_owned);
    for text in &texts {
        let value = parse(Format::Shell, text.as_bytes(), |_| Err(String::new()));
        let value = value.unwrap_or_else(|error| panic!("{text}\n{error}"));
        let mut found = Vec::new();
        for (name, member) in value["v"].as_object().into_iter().flatten() {
            found.push(format!("v_{name}={}", member.as_str().unwrap()));
        }
        for (name, list) in value["l"].as_object().into_iter().flatten() {
            let texts: Vec<_> = list.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
            let texts = if texts.is_empty() { vec![""] } else { texts };
            found.extend(texts.iter().map(|text| format!("l_{name}={text}")));
        }
        let wanted: Vec<_> = answers.by_ref().take_while(|answer| answer != "end").collect();
        assert_eq!(found, wanted, "{text}");
    }
    std::fs::remove_dir_all(place).unwrap();
}
