//! The program and the agent that starts it.

use otandem_core::services::definition::Definition;
use otandem_device::run::Stop;
use otandem_device::services::module::{Engine, ModuleError};
use serde_json::{Value, json};

const MODULE: &str = "const base = '/config/';
module.exports = {
  key: 'web', outfile: base + 'web.json', outformat: 'JSON', notifycmd: 'sv restart web',
  validate(cfg) {
    const port = Number((cfg || {}).port || 80);
    if (!(port > 0 && port < 65536)) throw new Error(`port ${cfg.port} is no port`);
    return cfg && { ...cfg, port };
  },
}";

fn no_toml(_: &str) -> Result<Value, String> {
    Err("no TOML here".into())
}

fn engine() -> Engine {
    Engine { program: env!("CARGO_BIN_EXE_otandem-js").into(), stop: Stop::new().unwrap() }
}

fn read(text: &str) -> Result<Definition, ModuleError> {
    engine().definition("web.js", text.as_bytes(), no_toml)
}

#[test]
fn the_example_of_the_manual_defines_and_validates() {
    let web = read(MODULE).unwrap();
    assert_eq!((web.key.as_str(), web.outfile.unwrap().path.to_str()), ("web", Some("/config/web.json")));
    let mut validate = engine().validator(&web.validate.unwrap());
    assert_eq!(validate(Some(&json!({"port": "8080", "x": [1]}))), Ok(Some(json!({"port": 8080, "x": [1]}))));
    assert_eq!(validate(Some(&json!({"port": "http"}))), Err("line 6: port http is no port".into()));
    assert_eq!(validate(None), Ok(None));
}

#[test]
fn a_module_that_is_no_definition_is_told_with_its_reason() {
    let refused = |text: &str| read(text).unwrap_err().to_string();
    assert_eq!(
        refused("\nmodule.exports = { key: require('os').hostname() }"),
        "line 2: require is not defined"
    );
    assert!(refused("module.exports = { key: 'a' + 'b' }").contains("outfile is missing"));
    assert!(refused("for (;;);").contains("takes more than 1 s"));
}
