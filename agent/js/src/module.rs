//! A module as Node would load it, with nothing around it: `module`, `exports` and the language.

use nix::time::{ClockId, clock_gettime};
use rquickjs::context::{EvalOptions, intrinsic};
use rquickjs::function::This;
use rquickjs::{Coerced, Context, Ctx, Error, Exception, Function, Object, Runtime, Value as Js};
use serde_json::{Value, json};

use crate::json::{Reader, shown};

/// Bytes of memory of the engine.
const MEMORY: usize = 16 << 20;
/// Bytes of its stack.
const STACK: usize = 256 << 10;
/// Seconds of processor time of this process.
const TIME: i64 = 1;
/// Of the module in the traces of the engine.
const NAME: &str = "definition";

/// The language and its data types. Not there: proxies, which are a way to be no plain value.
type Builtins = (
    intrinsic::Date,
    intrinsic::Eval,
    intrinsic::RegExpCompiler,
    intrinsic::RegExp,
    intrinsic::Json,
    intrinsic::MapSet,
    intrinsic::TypedArrays,
    intrinsic::Promise,
);

/// The answer to `request`.
///
/// # Errors
/// One line: why there is none.
pub(crate) fn answer(request: &Value) -> Result<Value, String> {
    let text = request["module"].as_str().ok_or("the request has no module")?;
    let no_engine = |e: Error| format!("no engine: {e}");
    let runtime = Runtime::new().map_err(no_engine)?;
    runtime.set_memory_limit(MEMORY);
    runtime.set_max_stack_size(STACK);
    runtime.set_interrupt_handler(Some(Box::new(time_is_up)));
    let context = Context::custom::<Builtins>(&runtime).map_err(no_engine)?;
    context.with(|ctx| {
        let exported = exported(&ctx, text)?;
        match request.get("call") {
            None => definition(&ctx, &exported),
            Some(call) => validated(&ctx, &exported, call.get("config")),
        }
    })
}

fn time_is_up() -> bool {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).is_ok_and(|used| used.tv_sec() >= TIME)
}

/// What the module exports.
fn exported<'js>(ctx: &Ctx<'js>, text: &str) -> Result<Object<'js>, String> {
    let fail = |e: Error| reason(ctx, &e);
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let shebang = if text.starts_with("#!") { "//" } else { "" };
    // On the module's first line, so that the lines of what is wrong are those of the file.
    let source = format!("(function (exports, module) {{{shebang}{text}\n}})");
    let mut options = EvalOptions::default();
    options.strict = false;
    options.filename = Some(NAME.into());
    let body: Function<'js> = ctx.eval_with_options(source, options).map_err(fail)?;
    let exports = Object::new(ctx.clone()).map_err(fail)?;
    let module = Object::new(ctx.clone()).map_err(fail)?;
    module.set("exports", exports.clone()).map_err(fail)?;
    let _: Js<'js> = body.call((This(exports.clone()), exports, module.clone())).map_err(fail)?;
    let exported: Js<'js> = module.get("exports").map_err(fail)?;
    let object = (!exported.is_array() && !exported.is_function()).then(|| exported.into_object());
    object.flatten().ok_or_else(|| "module.exports is no object".into())
}

fn definition<'js>(ctx: &Ctx<'js>, exported: &Object<'js>) -> Result<Value, String> {
    let validate: Js<'js> = exported.get("validate").map_err(|e| reason(ctx, &e))?;
    let validates = validate.is_function();
    let members =
        Reader::new(ctx, "module.exports")?.members(exported, validates.then_some("validate"), 0)?;
    Ok(json!({ "definition": members, "validate": validates }))
}

/// What `validate` makes of `config`.
fn validated<'js>(ctx: &Ctx<'js>, exported: &Object<'js>, config: Option<&Value>) -> Result<Value, String> {
    let fail = |e: Error| reason(ctx, &e);
    let validate: Js<'js> = exported.get("validate").map_err(fail)?;
    let validate = validate.into_function().ok_or("validate is no function")?;
    let config = match config {
        None => Js::new_undefined(ctx.clone()),
        Some(config) => ctx.json_parse(config.to_string()).map_err(fail)?,
    };
    let made: Js<'js> = validate.call((This(exported.clone()), config)).map_err(fail)?;
    let made = Reader::new(ctx, "what validate returns")?.value(made, 0)?;
    Ok(json!({ "config": made }))
}

/// What went wrong, in words: of what the module threw, what it says, with the line if there is one.
pub(crate) fn reason(ctx: &Ctx<'_>, error: &Error) -> String {
    if time_is_up() {
        return format!("takes more than {TIME} s of processor time");
    }
    if !matches!(error, Error::Exception) {
        return shown(&error.to_string());
    }
    let thrown = ctx.catch();
    let text = match thrown.as_object() {
        Some(object) => {
            object.get::<_, Option<Coerced<String>>>("message").ok().flatten().map(|Coerced(text)| text)
        }
        None => thrown.get::<Coerced<String>>().ok().map(|Coerced(text)| text),
    };
    let text = text.filter(|text| !text.is_empty()).unwrap_or_else(|| "an error without a message".into());
    // An engine without room for an error throws null.
    if text == "out of memory" || thrown.is_null() {
        return format!("needs more than {} MiB of memory, or throws null", MEMORY >> 20);
    }
    let line = thrown.into_object().and_then(Exception::from_object).and_then(|exception| line(&exception));
    line.map_or_else(|| shown(&text), |line| format!("line {line}: {}", shown(&text)))
}

/// Where in the module an exception was made.
fn line(exception: &Exception<'_>) -> Option<u32> {
    let stack = exception.stack()?;
    let (_, behind) = stack.split_once(&format!("{NAME}:"))?;
    behind.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}
