//! What a kernel module says about itself: the modules that it needs.

use std::collections::BTreeSet;

/// Names after `depends=` in the module's `.modinfo`, with `-` as `_`; none if there is no such text.
pub(crate) fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value).into_owned();
    names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

/// `wanted` and all that they need with their content, in an order in which they can be loaded. What `load` does not
/// have is named in the error; a circle, which real modules do not have, ends by itself.
pub(crate) fn closure(
    wanted: &[&str],
    load: impl Fn(&str) -> Option<Vec<u8>>,
) -> Result<Vec<(String, Vec<u8>)>, String> {
    let mut order = Vec::new();
    let mut seen = BTreeSet::new();
    let mut stack: Vec<(String, Option<Vec<u8>>)> = Vec::new();
    stack.extend(wanted.iter().rev().map(|name| (name.replace('-', "_"), None)));
    while let Some((name, ready)) = stack.pop() {
        if let Some(module) = ready {
            order.push((name, module));
        } else if seen.insert(name.clone()) {
            let module = load(&name).ok_or_else(|| format!("no module {name}"))?;
            let needed = depends(&module);
            stack.push((name, Some(module)));
            stack.extend(needed.into_iter().map(|needed| (needed, None)));
        }
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn module(depends: &str) -> Vec<u8> {
        format!("ELF\0license=GPL\0depends={depends}\0name=x\0").into_bytes()
    }

    #[test]
    fn what_is_needed_is_loaded_first_and_once() {
        let all: std::collections::BTreeMap<_, _> =
            [("vfat", "fat"), ("fat", ""), ("net", "fail-over,fat"), ("fail_over", "")]
                .map(|(name, needs)| (name.to_owned(), module(needs)))
                .into();
        let load = |name: &str| all.get(name).cloned();
        let order: Vec<_> = closure(&["vfat", "net"], load).unwrap().into_iter().map(|m| m.0).collect();
        assert_eq!(order.len(), 4);
        let place = |name: &str| order.iter().position(|n| n == name).unwrap();
        assert!(place("fat") < place("vfat") && place("fail_over") < place("net"), "{order:?}");
        assert_eq!(closure(&["none"], load).unwrap_err(), "no module none");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, depends in "[a-z,-]{0,20}") {
            let _ = super::depends(&bytes);
            for name in super::depends(&module(&depends)) {
                prop_assert!(!name.is_empty() && !name.contains('-'));
            }
        }
    }
}
