//! Values of the engine as JSON. Nothing of the module decides how: there is no `toJSON` here, and what JSON cannot hold is
//! refused with its path.

use rquickjs::object::Filter;
use rquickjs::{Ctx, Object, Type, Value as Js};
use serde_json::{Map, Number, Value};

use crate::module::reason;

/// Deepest nesting.
const MAX_DEPTH: usize = 32;
/// Bytes of all keys and strings, with a few for each value.
const MAX_BYTES: usize = 1 << 19;
/// What a value counts for beside its text.
const EACH: usize = 8;
/// Integers that a number of JavaScript holds exactly.
const MAX_INTEGER: f64 = 9_007_199_254_740_992.0;

/// Reads one value, within bounds that count for all of it.
pub(crate) struct Reader<'js> {
    ctx: Ctx<'js>,
    /// Of every object that is written as `{}`.
    plain: Option<Object<'js>>,
    path: String,
    room: usize,
}

impl<'js> Reader<'js> {
    /// `path` is what the value is called where it is refused.
    pub(crate) fn new(ctx: &Ctx<'js>, path: &str) -> Result<Self, String> {
        let plain = Object::new(ctx.clone()).map_err(|e| reason(ctx, &e))?.get_prototype();
        Ok(Self { ctx: ctx.clone(), plain, path: path.to_owned(), room: MAX_BYTES })
    }

    /// `None`: it is undefined.
    pub(crate) fn value(&mut self, value: Js<'js>, depth: usize) -> Result<Option<Value>, String> {
        self.take(EACH)?;
        if depth > MAX_DEPTH {
            return Err(self.refused(&format!("nested deeper than {MAX_DEPTH}")));
        }
        Ok(Some(match value.type_of() {
            Type::Undefined => return Ok(None),
            Type::Null => Value::Null,
            Type::Bool => Value::Bool(value.as_bool().unwrap_or_default()),
            Type::Int | Type::Float => self.number(value.as_number().unwrap_or(f64::NAN))?,
            Type::String => Value::String(self.string(&value)?),
            Type::Array => self.list(value, depth)?,
            Type::Function | Type::Constructor => {
                return Err(self.refused("a function; only validate may be one"));
            }
            _ => match value.into_object() {
                Some(object) if object.get_prototype() == self.plain || object.get_prototype().is_none() => {
                    Value::Object(self.members(&object, None, depth)?)
                }
                _ => return Err(self.refused("no plain object, and nothing else that JSON can hold")),
            },
        }))
    }

    /// The members of `object`, whatever it is an instance of, but for the one of this name.
    pub(crate) fn members(
        &mut self,
        object: &Object<'js>,
        but: Option<&str>,
        depth: usize,
    ) -> Result<Map<String, Value>, String> {
        let mut members = Map::new();
        for key in object.own_keys::<String>(Filter::new().string().enum_only()) {
            let key = key.map_err(|e| self.failed(&e))?;
            if Some(key.as_str()) == but {
                continue;
            }
            self.take(key.len())?;
            let member = self.inside(&format!(".{}", shown(&key)), object.get(&key), depth)?;
            members.extend(member.map(|member| (key, member)));
        }
        Ok(members)
    }

    fn list(&mut self, value: Js<'js>, depth: usize) -> Result<Value, String> {
        let mut elements = Vec::new();
        let Some(list) = value.into_array() else { return Ok(Value::Null) };
        for at in 0..list.len() {
            elements.push(self.inside(&format!("[{at}]"), list.get(at), depth)?.unwrap_or_default());
        }
        Ok(Value::Array(elements))
    }

    fn inside(
        &mut self,
        step: &str,
        value: rquickjs::Result<Js<'js>>,
        depth: usize,
    ) -> Result<Option<Value>, String> {
        let length = self.path.len();
        self.path.push_str(step);
        let value = self.value(value.map_err(|e| self.failed(&e))?, depth + 1)?;
        self.path.truncate(length);
        Ok(value)
    }

    fn string(&mut self, value: &Js<'js>) -> Result<String, String> {
        let Some(string) = value.as_string() else { return Ok(String::new()) };
        let text = string.to_string().map_err(|_| self.refused("a string with half a character in it"))?;
        self.take(text.len())?;
        Ok(text)
    }

    fn number(&self, number: f64) -> Result<Value, String> {
        if number.fract() == 0.0 && number.abs() <= MAX_INTEGER {
            #[allow(clippy::cast_possible_truncation)] // a whole number of 53 bits
            return Ok(Value::from(number as i64));
        }
        let number = Number::from_f64(number);
        number.map(Value::Number).ok_or_else(|| self.refused("no number that JSON can hold"))
    }

    fn take(&mut self, bytes: usize) -> Result<(), String> {
        let room = self.room.checked_sub(bytes);
        self.room =
            room.ok_or_else(|| self.refused(&format!("with it, it has more than {MAX_BYTES} bytes")))?;
        Ok(())
    }

    fn refused(&self, why: &str) -> String {
        format!("{}: {why}", shown(&self.path))
    }

    /// Of a getter, or of the engine.
    fn failed(&self, error: &rquickjs::Error) -> String {
        format!("{}: {}", shown(&self.path), reason(&self.ctx, error))
    }
}

/// Fit for a line of a log.
pub(crate) fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
}
