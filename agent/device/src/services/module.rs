//! Definitions that are programs: JavaScript, run by the program `otandem-js` in a process of its own.
//!
//! It is installed beside the agent, or not: most definitions are literals and need no engine. It gets no argument, no
//! environment and no file; what it may use up is bounded by itself and, should that fail, here.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use otandem_core::formats::ReadToml;
use otandem_core::services::definition::{self, Definition, DefinitionError};
use otandem_core::services::literal::LiteralError;
use otandem_core::shadow::Validate;
use serde_json::{Map, Value, json};

use crate::run::{self, End, RunError, Spec, Stop};

/// Where the program is.
pub const PROGRAM: &str = "/usr/libexec/otandem/otandem-js";
/// Longest time for one answer. The program stops a module after a second of processor time.
const TIME: Duration = Duration::from_secs(10);
/// Bytes of an answer: more than the program gives.
const MAX_ANSWER: usize = 1 << 20;

/// Why a module gives no definition, or a service no settings.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// Not what its name says, or no definition.
    #[error(transparent)]
    Definition(#[from] DefinitionError),
    /// The module must be run, and there is nothing that runs it.
    #[error("{why}; there is no {program}: install the package otandem-js, or write the definition as one literal", program = program.display())]
    NotInstalled {
        /// The program.
        program: PathBuf,
        /// Why the module must be run.
        why: LiteralError,
    },
    /// The module is broken, or refuses.
    #[error("{0}")]
    Refused(String),
    /// The program could not be run.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The program gave no answer.
    #[error("{program} gave no answer: {why}", program = program.display())]
    Broken {
        /// The program.
        program: PathBuf,
        /// How it ended.
        why: String,
    },
}

/// Runs modules.
#[derive(Debug, Clone)]
pub struct Engine {
    /// The program.
    pub program: PathBuf,
    /// Ends what runs.
    pub stop: Stop,
}

impl Engine {
    /// The installed one: at its place, or else beside the agent's own program, as in a build tree.
    #[must_use]
    pub fn installed(stop: Stop) -> Self {
        let installed = PathBuf::from(PROGRAM);
        let beside = std::env::current_exe().ok().map(|agent| agent.with_file_name("otandem-js"));
        let program = beside.filter(|beside| !installed.exists() && beside.exists()).unwrap_or(installed);
        Self { program, stop }
    }

    /// The service that the file `name` with the contents `text` defines. A module that is one literal is read, and any
    /// other is run. Blocks until the program has answered.
    ///
    /// # Errors
    /// See [`ModuleError`].
    pub fn definition(
        &self,
        name: &str,
        text: &[u8],
        read_toml: ReadToml,
    ) -> Result<Definition, ModuleError> {
        let why = match definition::read(name, text, read_toml) {
            Err(DefinitionError::Literal(why)) => why,
            read => return Ok(read?),
        };
        // It has been read as text.
        let module = String::from_utf8_lossy(text).into_owned();
        let mut answer = match self.ask(&json!({ "module": &module })) {
            Err(ModuleError::Run(RunError::NotFound { .. })) => {
                return Err(ModuleError::NotInstalled { program: self.program.clone(), why });
            }
            answer => answer?,
        };
        let mut definition = definition::from_value(&self.part(&mut answer, "definition")?)?;
        let validates = answer.get("validate") == Some(&Value::Bool(true));
        definition.validate = validates.then_some(module);
        Ok(definition)
    }

    /// `validate` of this module ([`Definition::validate`]), in a process of its own each time.
    #[must_use]
    pub fn validator(&self, module: &str) -> Validate {
        let (engine, module) = (self.clone(), module.to_owned());
        Box::new(move |config| {
            let mut call = Map::new();
            call.extend(config.map(|config| ("config".to_owned(), config.clone())));
            let answer = engine.ask(&json!({ "module": &module, "call": call }));
            let made = answer.and_then(|mut answer| engine.part(&mut answer, "config"));
            made.map(|made| Some(made).filter(|made| !made.is_null())).map_err(|e| e.to_string())
        })
    }

    /// What the program answers.
    fn ask(&self, request: &Value) -> Result<Map<String, Value>, ModuleError> {
        let mut spec = Spec::new([AsRef::<OsStr>::as_ref(&self.program)]);
        spec.env.clear();
        spec.stdin = Some(request.to_string().into_bytes());
        spec.time_limit = Some(TIME);
        spec.grace = Duration::ZERO;
        spec.output_tail = MAX_ANSWER;
        let outcome = run::run(spec, &self.stop)?;
        let ended = match outcome.end {
            End::Exited(0) => None,
            End::Exited(code) => Some(format!("exit code {code}")),
            End::Signaled(signal) => Some(format!("ended by signal {signal}")),
            End::TimedOut => Some(format!("not done within {} s, and ended", TIME.as_secs())),
            End::Stopped => Some("ended with the agent".into()),
        };
        if let Some(ended) = ended {
            let last = outcome.stderr_tail.lines().last().unwrap_or_default();
            return Err(self.broken(format!("{ended} {last}").trim_end()));
        }
        match serde_json::from_str(&outcome.stdout_tail) {
            Ok(Value::Object(answer)) => match answer.get("error") {
                None => Ok(answer),
                Some(why) => Err(ModuleError::Refused(why.as_str().unwrap_or("no reason given").to_owned())),
            },
            Ok(_) => Err(self.broken("it is no object")),
            Err(e) => Err(self.broken(&e.to_string())),
        }
    }

    fn part(&self, answer: &mut Map<String, Value>, part: &str) -> Result<Value, ModuleError> {
        answer.remove(part).ok_or_else(|| self.broken(&format!("no {part} in it")))
    }

    fn broken(&self, why: &str) -> ModuleError {
        ModuleError::Broken { program: self.program.clone(), why: why.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;
    use std::process::{Command, Stdio};

    const COMPUTED: &str = "module.exports = make()";

    fn no_toml(_: &str) -> Result<Value, String> {
        Err("no TOML here".into())
    }

    /// An engine that is this shell script, with its request in `$dir/request`.
    fn engine(dir: &tempfile::TempDir, script: &str) -> Engine {
        let program = dir.path().join("engine");
        let script = format!("#!/bin/sh\n/bin/cat > {}\n{script}\n", dir.path().join("request").display());
        // By another process: a program that any process has open for writing cannot be started, and every fork of this
        // one has all that is open here.
        let mut install = Command::new("install");
        install.args(["-m755", "/dev/stdin"]).arg(&program).stdin(Stdio::piped());
        let mut install = install.spawn().unwrap();
        install.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        assert!(install.wait().unwrap().success());
        Engine { program, stop: Stop::new().unwrap() }
    }

    fn read(engine: &Engine, text: &str) -> Result<Definition, String> {
        engine.definition("foo.js", text.as_bytes(), no_toml).map_err(|e| e.to_string())
    }

    fn answers(answer: &Value) -> String {
        format!("/bin/cat <<'END'\n{answer}\nEND")
    }

    fn least() -> Value {
        json!({"key": "foo", "outfile": "/c", "outformat": "JSON", "notifycmd": "n"})
    }

    #[test]
    fn a_literal_needs_no_engine_and_anything_else_says_what_to_install() {
        let engine = Engine { program: "/nonexistent/otandem-js".into(), stop: Stop::new().unwrap() };
        let definition = read(&engine, &format!("module.exports = {}", least())).unwrap();
        assert!(definition.key == "foo" && definition.validate.is_none());
        let why = read(&engine, "\nconst x = 1").err().unwrap();
        assert!(why.contains("line 2") && why.contains("install the package otandem-js"), "{why}");
        assert!(
            engine.definition("foo.json", b"{", no_toml).is_err_and(|e| !e.to_string().contains("install"))
        );
    }

    #[test]
    fn a_module_that_computes_gives_its_definition_and_its_validator() {
        let dir = tempfile::tempdir().unwrap();
        let request =
            || serde_json::from_slice::<Value>(&fs::read(dir.path().join("request")).unwrap()).unwrap();
        let defines = answers(&json!({"definition": least(), "validate": true}));
        let program = engine(&dir, &defines);
        let definition = read(&program, COMPUTED).unwrap();
        assert_eq!((definition.key.as_str(), request()), ("foo", json!({ "module": COMPUTED })));
        assert_eq!(definition.validate.as_deref(), Some(COMPUTED));
        let mut validate = program.validator(COMPUTED);
        engine(&dir, &answers(&json!({"config": {"a": 1}})));
        assert_eq!(validate(Some(&json!({"b": 2}))), Ok(Some(json!({"a": 1}))));
        assert_eq!(request(), json!({ "module": COMPUTED, "call": {"config": {"b": 2}} }));
        engine(&dir, &answers(&json!({"config": null})));
        assert_eq!(validate(None), Ok(None));
        assert_eq!(request(), json!({ "module": COMPUTED, "call": {} }));
        engine(&dir, &answers(&json!({"error": "line 3: no"})));
        assert_eq!(validate(None), Err("line 3: no".into()));
        let defines = answers(&json!({"definition": least(), "validate": false}));
        assert_eq!(read(&engine(&dir, &defines), COMPUTED).unwrap().validate, None);
        let incomplete = answers(&json!({"definition": {"key": "foo"}, "validate": false}));
        assert!(read(&engine(&dir, &incomplete), COMPUTED).err().unwrap().contains("outfile is missing"));
    }

    #[test]
    fn an_engine_that_gives_no_answer_is_told_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        for (script, said) in [
            ("echo sad >&2; exit 3", "exit code 3 sad"),
            ("kill -24 $$", "signal 24"),
            ("", "EOF"),
            ("echo '[]'", "no object"),
            ("echo '{}'", "no definition"),
            ("echo '{\"definition\": {}} {}'", "trailing"),
            ("/usr/bin/printf '\\377{}'", "expected value"),
        ] {
            let why = read(&engine(&dir, script), COMPUTED).err().unwrap();
            assert!(why.contains("engine gave no answer: ") && why.contains(said), "{script}: {why}");
        }
    }

    #[test]
    fn an_engine_that_never_ends_ends_with_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let engine = engine(&dir, "exec /bin/sleep 1000");
        engine.stop.stop();
        assert!(read(&engine, COMPUTED).err().unwrap().contains("ended with the agent"));
    }
}
