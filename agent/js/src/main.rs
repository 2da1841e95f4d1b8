//! Runs the definition of a service that is a program: one request on standard input, one answer on standard output.
//!
//! Definitions of chariotd are CommonJS modules. Those that are one literal are read by the agent itself; the others come
//! here, into a process of their own that ends after one answer, so that the agent neither holds an engine nor trusts one.
//!
//! The request is one JSON value, `{"module": TEXT}` or `{"module": TEXT, "call": {"config": VALUE}}`; the answer is one line
//! of JSON: `{"definition": {..}, "validate": BOOL}`, `{"config": VALUE or null}`, or `{"error": REASON}`. The exit code is 0
//! wherever there is an answer. [`confine`] is done before the first byte of the module runs; [`module`] runs it.
#![deny(clippy::cast_possible_truncation)]
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

mod confine;
mod json;
mod module;

use std::io::{self, Read, Write};
use std::process::ExitCode;

use serde_json::{Value, json};

/// Bytes of a request: a module and a configuration of the largest size that the agent takes, with their escapes.
const MAX_REQUEST: u64 = 16 << 20;
/// Bytes of an answer. The agent keeps no more of what a program says.
const MAX_ANSWER: usize = 1 << 19;

fn main() -> ExitCode {
    let answer = request().and_then(|request| module::answer(&request));
    let line = |answer: Value| format!("{answer}\n");
    let mut text = line(answer.unwrap_or_else(|why| json!({ "error": why })));
    if text.len() > MAX_ANSWER {
        text = line(json!({ "error": format!("what it gives back has more than {MAX_ANSWER} bytes") }));
    }
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// What is asked for; from here on the process can do nothing but think and answer.
fn request() -> Result<Value, String> {
    let mut bytes = Vec::new();
    let read = io::stdin().take(MAX_REQUEST + 1).read_to_end(&mut bytes);
    read.map_err(|e| format!("cannot read the request: {e}"))?;
    if bytes.len() as u64 > MAX_REQUEST {
        return Err(format!("the request has more than {MAX_REQUEST} bytes"));
    }
    let request = serde_json::from_slice(&bytes).map_err(|e| format!("the request is not JSON: {e}"))?;
    confine::confine()?;
    Ok(request)
}
