//! Device shadows: how the parts that are settings of services are merged, compared and restricted, and [`Shadow`],
//! which keeps one shadow and the files of its services the same.

mod answers;
mod default;
mod document;
mod engine;
mod held;
pub mod merge;
mod name;
mod requests;
mod validator;

pub use document::MAX_DOCUMENT;
pub use engine::{Action, Shadow, Standing};
pub use name::{Answer, Name, is_shadow_name};
pub use validator::Validate;
