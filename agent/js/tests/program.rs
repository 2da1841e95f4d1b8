//! The program, as the agent starts it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

fn start(request: &[u8]) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_otandem-js"))
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // One that refuses the request as too large does not read all of it.
    let _ = child.stdin.take().unwrap().write_all(request);
    child
}

/// The answer to these bytes: always one line.
fn answer_to(request: &[u8]) -> Value {
    let out = start(request).wait_with_output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success(), "{} {text} {}", out.status, String::from_utf8_lossy(&out.stderr));
    assert_eq!(text.lines().count(), 1, "{text}");
    serde_json::from_str(&text).unwrap()
}

fn asked(request: &Value) -> Value {
    answer_to(request.to_string().as_bytes())
}

fn defined(module: &str) -> Value {
    asked(&json!({ "module": module }))
}

fn error(answer: &Value) -> &str {
    answer["error"].as_str().unwrap_or_else(|| panic!("{answer}"))
}

/// What this body of `validate(cfg)` makes of `config`.
fn validated(body: &str, config: &Value) -> Value {
    let module = format!("module.exports = {{ key: 'k', validate(cfg) {{ {body} }} }}");
    asked(&json!({ "module": module, "call": { "config": config } }))
}

#[test]
fn a_module_that_computes_its_definition_is_read() {
    let module = "\u{feff}'use strict';\nconst name = ['f', 'oo'].join('');\nfunction path(n) { return `/config/${n}.rc`; }\n\
        module.exports = { key: name, outfile: path(name), n: 2 * 21, r: 0.5, none: undefined, nil: null, minus: -0,\n\
        list: [1, , 'x'], get computed() { return { deep: [true] }; }, validate: cfg => cfg };";
    assert_eq!(
        defined(module),
        json!({ "validate": true, "definition": { "key": "foo", "outfile": "/config/foo.rc", "n": 42, "r": 0.5,
            "nil": null, "minus": 0, "list": [1, null, "x"], "computed": {"deep": [true]} } })
    );
    for module in [
        "exports.key = 'foo'",
        "this.key = 'foo'",
        "#!/usr/bin/node\nmodule.exports.key = 'foo'; return;",
        "class S { constructor() { this.key = 'foo'; } }\nmodule.exports = new S() // and so on",
        "module.exports = Object.freeze({ key: 'foo' })",
    ] {
        assert_eq!(defined(module), json!({ "validate": false, "definition": { "key": "foo" } }), "{module}");
    }
}

#[test]
fn validate_changes_refuses_and_removes() {
    let config = json!({"port": "80", "__proto__": {"x": 1}, "big": 9007199254740991_u64});
    let mut changed = config.clone();
    changed["port"] = json!(80);
    assert_eq!(validated("cfg.port = Number(cfg.port); return cfg;", &config), json!({ "config": changed }));
    assert_eq!(
        error(&validated(
            "if (cfg.port < 1024)\n throw new Error('port is\\nreserved'); return cfg;",
            &config
        )),
        "line 2: port is reserved"
    );
    for nothing in ["", "return null", "return undefined"] {
        assert_eq!(validated(nothing, &config), json!({ "config": null }));
    }
    assert_eq!(validated("return this.key", &config), json!({ "config": "k" }));
    let module = "module.exports = { validate: cfg => cfg === undefined ? { made: true } : cfg }";
    assert_eq!(asked(&json!({ "module": module, "call": {} })), json!({ "config": {"made": true} }));
    assert_eq!(asked(&json!({ "module": module, "call": {"config": null} })), json!({ "config": null }));
    for (thrown, said) in [
        ("'plain'", "plain"),
        ("7", "7"),
        ("null", "needs more than 16 MiB of memory, or throws null"),
        ("{ message: 'm' }", "m"),
        ("{}", "an error without a message"),
        ("Object.create(null)", "an error without a message"),
        ("{ get message() { throw 1 } }", "an error without a message"),
        ("Symbol('s')", "an error without a message"),
    ] {
        assert_eq!(error(&validated(&format!("throw {thrown}"), &config)), said, "{thrown}");
    }
    assert_eq!(error(&asked(&json!({ "module": "exports.a = 1", "call": {} }))), "validate is no function");
}

#[test]
fn what_is_no_definition_is_refused_with_its_place() {
    for (module, said) in [
        (
            "module.exports = { key: 'x',\n notify() {} }",
            "module.exports.notify: a function; only validate may be one",
        ),
        ("module.exports = { a: { validate() {} } }", "module.exports.a.validate: a function"),
        ("module.exports = () => 1", "module.exports is no object"),
        ("module.exports = [1]", "module.exports is no object"),
        ("module.exports = null", "module.exports is no object"),
        ("let a;\nlet a;", "line 2: "),
        ("\n\nrequire('fs')", "line 3: require is not defined"),
        ("process.exit(1)", "process is not defined"),
        ("setTimeout(() => 1, 1)", "setTimeout is not defined"),
        ("new Proxy({}, {})", "Proxy is not defined"),
        ("import('fs')", "module.exports"),
        ("module.exports = { a: [0, NaN] }", "module.exports.a[1]: no number"),
        ("module.exports = { a: 1n }", "module.exports.a: no plain object"),
        ("module.exports = { a: Symbol() }", "module.exports.a: no plain object"),
        ("module.exports = { a: new Date() }", "module.exports.a: no plain object"),
        ("module.exports = { a: new Map() }", "module.exports.a: no plain object"),
        ("module.exports = { a: Promise.resolve(1) }", "module.exports.a: no plain object"),
        ("module.exports = { a: (async () => 1)() }", "module.exports.a: no plain object"),
        ("module.exports = { a: '\\ud800' }", "module.exports.a: a string with half a character"),
        ("module.exports = { get a() { throw new Error('gotten') } }", "module.exports.a: line 1: gotten"),
        ("const a = {}; a.a = a; module.exports = a", "nested deeper than 32"),
        ("\0", ""),
    ] {
        let answer = defined(module);
        if said == "module.exports" {
            // A promise that nobody waits for.
            assert!(
                answer == json!({"definition": {}, "validate": false}) || answer["error"].is_string(),
                "{answer}"
            );
        } else {
            assert!(error(&answer).contains(said), "{module}: {answer}");
        }
    }
}

#[test]
fn a_module_that_takes_everything_gets_an_answer_and_no_more() {
    for (module, said) in [
        ("for (;;);", "takes more than 1 s of processor time"),
        ("module.exports = { get a() { for (;;); } }", "takes more than 1 s"),
        ("try { for (;;); } finally { for (;;); }", "takes more than 1 s"),
        ("/^(a+)+$/.test('a'.repeat(40) + 'b')", "takes more than 1 s"),
        ("let a = []; for (;;) a.push(new Array(1000).fill(a));", "needs more than 16 MiB"),
        ("let a = 'x'; for (;;) a += a;", "string too long"),
        ("module.exports = { a: new Uint8Array(1 << 30) }", "needs more than 16 MiB"),
        ("const f = () => f() + 1; f();", "call stack"),
        ("const a = []; a[0] = a; JSON.stringify(a.flat(Infinity))", "call stack"),
        (
            "let a = 'x'; while (a.length < 600000) a += a; module.exports = { a }",
            "module.exports.a: with it, it has more than",
        ),
        ("let a = '\\0'; while (a.length < 200000) a += a; module.exports = { a }", "more than 524288 bytes"),
        ("module.exports = { a: new Array(1e9) }", "module.exports.a["),
        (
            "const b = d => d ? { l: b(d - 1), r: b(d - 1) } : 1; const x = { a: 1 };\n\
          let t = x; for (let i = 0; i < 25; i++) t = { l: t, r: t }; module.exports = t",
            "it has more than",
        ),
    ] {
        let answer = defined(module);
        assert!(error(&answer).contains(said), "{module}: {answer}");
        assert!(error(&answer).len() < 1000);
    }
}

#[test]
fn what_a_module_does_to_the_language_does_nothing_to_the_answer() {
    let tricks = "Object.prototype.polluted = 1; Array.prototype.toJSON = () => 'no'; String.prototype.toJSON = () => 'no';\n\
        Object.prototype.toJSON = () => 'no'; JSON.stringify = () => 'no'; Object.keys = () => []; \n\
        Array.prototype[Symbol.iterator] = null; Function.prototype.call = null;\n\
        Object.defineProperty(Array.prototype, 0, { get() { return 'no' }, set() {} });\n\
        delete Object.prototype.toJSON; globalThis.Object = null;\n";
    let answer = defined(&format!("{tricks} module.exports = {{ a: [1, 's'], b: {{ c: 2 }} }}"));
    // What is enumerable in a prototype is not the object's own.
    assert_eq!(answer, json!({"validate": false, "definition": {"a": [1, "s"], "b": {"c": 2}}}));
    // Out of the function that it is put into, it is still in the engine.
    let answer = defined("}); (function () { return 7 }); (function (e, m) { m.exports = { a: 1 };");
    assert_eq!(answer, json!({"validate": false, "definition": {"a": 1}}));
    assert!(defined("}); 7; ({").get("error").is_some());
}

#[test]
fn bytes_that_are_no_request_are_told_from_one() {
    for bytes in [&b""[..], b"{", b"\xff\xfe", b"[]", b"{\"module\": 7}", b"null"] {
        error(&answer_to(bytes));
    }
    assert!(error(&answer_to(&vec![b' '; (16 << 20) + 1])).contains("bytes"));
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    error(&answer_to(deep.as_bytes()));
}

/// Reads `/proc` of a module that runs, while it runs.
#[test]
fn while_a_module_runs_the_process_can_open_nothing_and_start_nothing() {
    let mut child = start(json!({ "module": "for (;;);" }).to_string().as_bytes());
    let proc = |file: &str| {
        let lines = std::fs::File::open(format!("/proc/{}/{file}", child.id())).map(BufReader::new);
        lines.map(|lines| lines.lines().map_while(Result::ok).collect::<Vec<_>>()).unwrap_or_default()
    };
    let limits = loop {
        let limits = proc("limits");
        // The last one that is set.
        let files = limits.iter().find(|line| line.starts_with("Max open files"));
        assert!(files.is_some(), "it ended before it was confined");
        if files.is_some_and(|files| files.split_whitespace().nth(3) == Some("0")) {
            break limits;
        }
    };
    for (name, at, value) in [
        ("Max processes", 2, "0"),
        ("Max file size", 3, "0"),
        ("Max core file size", 4, "0"),
        ("Max cpu time", 3, "2"),
    ] {
        let line = limits.iter().find(|line| line.starts_with(name)).unwrap();
        assert_eq!(line.split_whitespace().nth(at), Some(value), "{line}");
    }
    let status = proc("status");
    let of = |name: &str| {
        status.iter().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned()
    };
    assert_eq!(of("NoNewPrivs:"), "1");
    assert!(!of("Uid:").split_whitespace().any(|id| id == "0"), "{status:?}");
    assert_eq!(of("CapEff:").trim_start_matches('0'), "");
    child.kill().unwrap();
    child.wait().unwrap();
}
