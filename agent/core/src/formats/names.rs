//! Values as flat names and back: nested keys joined by `_`, and which names may be assigned.

use serde_json::{Map, Value};

use super::scalar;
use super::{ArrayStyle, Format, FormatError, MAX_TEXT, Step, Way};

/// Names and what they are assigned.
pub(super) type Assignments = Map<String, Value>;

/// End of the name that holds how many elements a list has. Its `__` reads as an empty key, so it is not taken for a
/// member `count`.
const COUNT: &str = "__count";

/// Most parts of a name, and so the deepest nesting that is read from one.
const MAX_PARTS: usize = 64;

/// Names by which a shell, the dynamic loader, libc or the interpreter of a script language decides what code runs or
/// how a script is read. A setting of a service is none of them.
const CHOOSES_CODE: &[&str] = &[
    "BASHOPTS",
    "CDPATH",
    "CHILD_MAX",
    "ENV",
    "EXECIGNORE",
    "FCEDIT",
    "FIGNORE",
    "FPATH",
    "FUNCNEST",
    "GCONV_PATH",
    "GETCONF_DIR",
    "GLIBC_TUNABLES",
    "GLOBIGNORE",
    "HOME",
    "HOSTALIASES",
    "IFS",
    "INPUTRC",
    "JAVA_TOOL_OPTIONS",
    "LOCALDOMAIN",
    "LOCPATH",
    "LUA_CPATH",
    "LUA_INIT",
    "LUA_PATH",
    "MALLOC_TRACE",
    "NIS_PATH",
    "NLSPATH",
    "NODE_OPTIONS",
    "NODE_PATH",
    "OLDPWD",
    "PATH",
    "PERL5DB",
    "PERL5LIB",
    "PERL5OPT",
    "PERLLIB",
    "POSIXLY_CORRECT",
    "PROMPT_COMMAND",
    "PS0",
    "PS1",
    "PS2",
    "PS3",
    "PS4",
    "PWD",
    "PYTHONHOME",
    "PYTHONPATH",
    "PYTHONSTARTUP",
    "RESOLV_HOST_CONF",
    "RES_OPTIONS",
    "RUBYLIB",
    "RUBYOPT",
    "SHELL",
    "SHELLOPTS",
    "TMOUT",
    "ZDOTDIR",
];
/// The same by how they begin.
const CHOOSES_CODE_PREFIXES: &[&str] = &["BASH_", "LD_"];
/// Names that a shell owns: assigning them is an error, or they do not keep what they are given.
const OWNED_BY_SHELLS: &[&str] = &[
    "BASH",
    "BASHPID",
    "COLUMNS",
    "COMP_WORDBREAKS",
    "DIRSTACK",
    "EPOCHREALTIME",
    "EPOCHSECONDS",
    "EUID",
    "FUNCNAME",
    "GROUPS",
    "HISTCMD",
    "LINENO",
    "LINES",
    "OPTIND",
    "PIPESTATUS",
    "PPID",
    "RANDOM",
    "SECONDS",
    "SRANDOM",
    "UID",
    "_",
];

/// Whether a shell takes it as the name of a variable.
pub(super) fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Why `name` is not assigned in `format`.
fn refused(format: Format, name: &str) -> Option<String> {
    if !is_name(name) {
        return Some(format!("{name:?} is no name of a variable; use letters, digits and _ in its keys"));
    }
    if let Some(why) = too_many_parts(name) {
        return Some(why);
    }
    let chooses = CHOOSES_CODE.contains(&name) || CHOOSES_CODE_PREFIXES.iter().any(|p| name.starts_with(p));
    if chooses {
        return Some(format!("{name} would change which programs run, or how; use other keys"));
    }
    let owned = format == Format::Shell && OWNED_BY_SHELLS.contains(&name);
    owned.then(|| format!("{name} is a shell's own variable; use other keys"))
}

fn too_many_parts(name: &str) -> Option<String> {
    let too_many = name.matches('_').count() >= MAX_PARTS;
    too_many.then(|| format!("a name has more than {MAX_PARTS} parts; use fewer levels and fewer _"))
}

/// The assignments that hold `value`, which must be an object: under `name=`, so that they have the order of sorted lines,
/// strings and lists of strings. Null members and empty objects are left out.
pub(super) fn flatten(format: Format, value: &Value, arrays: ArrayStyle) -> Result<Assignments, FormatError> {
    let mut way = Way::new(format);
    let Value::Object(members) = value else {
        return Err(way.refusal("only an object has names for its values"));
    };
    let mut flat = Flat { format, arrays, name: String::new(), total: 0, assigned: Map::new() };
    flat.members(members, &mut way)?;
    Ok(flat.assigned)
}

struct Flat {
    format: Format,
    arrays: ArrayStyle,
    name: String,
    /// Bytes of all names and values: long keys around many values must not grow without limit.
    total: usize,
    assigned: Assignments,
}

impl Flat {
    fn members<'a>(&mut self, members: &'a Map<String, Value>, way: &mut Way<'a>) -> Result<(), FormatError> {
        for (key, member) in members {
            let before = self.name.len();
            if !way.steps.is_empty() {
                self.name.push('_');
            }
            self.name.push_str(key);
            way.enter(Step::Key(key))?;
            self.value(member, way)?;
            way.leave();
            self.name.truncate(before);
        }
        Ok(())
    }

    fn value<'a>(&mut self, value: &'a Value, way: &mut Way<'a>) -> Result<(), FormatError> {
        match value {
            Value::Null => Ok(()),
            Value::Object(members) => self.members(members, way),
            Value::Array(elements) => self.list(elements, way),
            _ => {
                let text = text(value, way)?;
                self.assign("", text.into(), way)
            }
        }
    }

    fn list<'a>(&mut self, elements: &'a [Value], way: &mut Way<'a>) -> Result<(), FormatError> {
        let mut texts = Vec::with_capacity(elements.len());
        for (at, element) in elements.iter().enumerate() {
            way.enter(Step::Index(at))?;
            texts.push(Value::from(text(element, way)?));
            way.leave();
        }
        if self.arrays == ArrayStyle::Bash {
            return self.assign("", Value::Array(texts), way);
        }
        self.assign(COUNT, texts.len().to_string().into(), way)?;
        for (at, text) in texts.into_iter().enumerate() {
            self.assign(&format!("_{at}"), text, way)?;
        }
        Ok(())
    }

    /// Assigns to the name of this place and what is added to it.
    fn assign(&mut self, suffix: &str, assigned: Value, way: &Way<'_>) -> Result<(), FormatError> {
        let mut name = self.name.clone() + suffix;
        if let Some(why) = refused(self.format, &name) {
            return Err(way.refusal(why));
        }
        name.push('=');
        self.total += name.len();
        self.total += match &assigned {
            Value::Array(texts) => texts.iter().map(|text| text.as_str().map_or(0, str::len)).sum(),
            text => text.as_str().map_or(0, str::len),
        };
        if self.total > MAX_TEXT {
            return Err(FormatError::TooLarge(self.format));
        }
        if self.assigned.contains_key(&name) {
            name.pop();
            return Err(
                way.refusal(format!("{name} is already the name of another value; rename one of the keys"))
            );
        }
        self.assigned.insert(name, assigned);
        Ok(())
    }
}

/// A scalar, if a variable can hold it.
fn text(value: &Value, way: &Way<'_>) -> Result<String, FormatError> {
    let Some(text) = scalar::text(value) else {
        return Err(way.refusal("a list may hold strings, numbers and booleans only"));
    };
    if text.contains('\0') {
        return Err(way.refusal("no variable holds a zero byte"));
    }
    if way.format == Format::Dotenv && text.contains(['\n', '\r']) {
        return Err(way.refusal("a line break would begin another variable; use SHELL or JSON"));
    }
    Ok(text)
}

/// The object whose assignments these are: names are split at `_`, except where what stands before it has a value itself.
/// A null is only there where nothing else is.
///
/// # Errors
/// A name with more than [`MAX_PARTS`] parts.
pub(super) fn nest(flat: &Assignments) -> Result<Value, String> {
    let mut root = Map::new();
    for (name, value) in flat {
        if !value.is_null() {
            insert(&mut root, name, value, flat)?;
        }
    }
    // Backwards: a name comes after the longer ones that begin with it.
    for (name, value) in flat.iter().rev() {
        if value.is_null() {
            insert(&mut root, name, value, flat)?;
        }
    }
    let mut root = Value::Object(root);
    lists(&mut root, false);
    Ok(root)
}

fn insert(
    root: &mut Map<String, Value>,
    name: &str,
    value: &Value,
    flat: &Assignments,
) -> Result<(), String> {
    if let Some(why) = too_many_parts(name) {
        return Err(why);
    }
    let mut object = root;
    let mut start = 0;
    for (at, _) in name.match_indices('_') {
        if flat.get(&name[..at]).is_some_and(|value| !value.is_null()) {
            continue;
        }
        let inner = object.entry(&name[start..at]).or_insert_with(|| Value::Object(Map::new()));
        start = at + 1;
        match inner {
            Value::Object(members) => object = members,
            // Only what has no value becomes an object, and nulls come last.
            _ => return Err(format!("{name}: its parts clash with another name")),
        }
    }
    object.entry(&name[start..]).or_insert_with(|| value.clone());
    Ok(())
}

/// Turns `{"0": .., "1": .., "": {"count": 2}}` back into the list that was written so; only members are lists.
fn lists(value: &mut Value, is_member: bool) {
    let Value::Object(members) = value else { return };
    match elements(members) {
        Some(elements) if is_member => *value = Value::Array(elements),
        _ => members.values_mut().for_each(|member| lists(member, true)),
    }
}

/// Whether there is no value in it.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Object(members) => members.values().all(is_nothing),
        other => other.is_null(),
    }
}

fn elements(members: &Map<String, Value>) -> Option<Vec<Value>> {
    let Value::Object(about) = members.get("")? else { return None };
    let count = usize::try_from(about.get("count")?.as_u64()?).ok()?;
    // What holds nothing is not written, and does not make it an object.
    if about.len() != 1 || members.values().filter(|member| !is_nothing(member)).count() != count + 1 {
        return None;
    }
    let mut elements = Vec::with_capacity(count);
    for at in 0..count {
        elements
            .push(members.get(&at.to_string()).filter(|element| scalar::text(element).is_some())?.clone());
    }
    Some(elements)
}
