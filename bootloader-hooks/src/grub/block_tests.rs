use super::*;
use std::process::{Command, Output};

use proptest::prelude::*;

/// The real tool on a file with these bytes; `None` where it is not installed.
fn editenv(bytes: &[u8], args: &[&[u8]]) -> Option<(Output, Vec<u8>)> {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("grubenv");
    std::fs::write(&file, bytes).unwrap();
    let args = args.iter().map(|a| std::ffi::OsStr::from_bytes(a));
    match Command::new("grub-editenv").arg(&file).args(args).output() {
        Ok(output) => Some((output, std::fs::read(&file).unwrap())),
        Err(_) => {
            println!("skipped: grub-editenv is not installed (package grub-common)");
            None
        }
    }
}

/// What `grub-editenv list` prints for what we read.
fn listed(bytes: &[u8]) -> Vec<u8> {
    let lines =
        variables(bytes).into_iter().map(|v| [v.name, b"=".to_vec(), v.value, b"\n".to_vec()].concat());
    lines.collect::<Vec<_>>().concat()
}

fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

fn agrees_with_the_tool(bytes: &[u8], name: &[u8], value: &[u8]) {
    let Some((list, _)) = editenv(bytes, &[b"list"]) else { return };
    assert_eq!(list.status.success(), check(bytes).is_ok(), "{}", String::from_utf8_lossy(&list.stderr));
    assert_eq!(String::from_utf8_lossy(&list.stdout), String::from_utf8_lossy(&listed(bytes)));
    let set = [name, b"=", value].concat();
    let Some((tool, after)) = editenv(bytes, &[b"set", &set]) else { return };
    match save(bytes, name, value) {
        Some(ours) => {
            assert!(tool.status.success() && ours == after, "ours {}\ntool {}", text(&ours), text(&after))
        }
        None => assert!(!tool.status.success(), "the tool made {} of {}", text(&after), text(bytes)),
    }
}

fn block(text: &str) -> Vec<u8> {
    let mut block = [SIGNATURE, text.as_bytes()].concat();
    block.resize(SIZE.max(block.len()), b'#');
    block
}

#[test]
fn blocks_that_others_leave_are_read_and_changed_as_the_real_tool_does() {
    let full = format!("A=1\nX={}\n", "x".repeat(SIZE - SIGNATURE.len() - 7));
    let almost = format!("A=123\nX={}\n", "x".repeat(SIZE - SIGNATURE.len() - 10));
    for text in [
        "",
        "A=1\n",
        "A=\n",
        "A=1\nB=2\nA=3\n",
        "A=1",
        "A=\\1\nB=x\\\ny\\\\\n",
        "A=1\\",
        "# a comment with A=2\nA=1\n",
        "# a comment\\\nA=2\nB=3\n",
        "no equals sign\nA=1\n",
        "\nA=1\n",
        "A=1\n\0\0\0\n",
        "A=1\n#padding###\nB=2\nC\0D=3\0\n",
        "AA=1\n",
        &full,
        &almost,
    ] {
        for value in ["", "1", "23", "a\\b\nc"] {
            agrees_with_the_tool(&block(text), b"A", value.as_bytes());
        }
    }
    for file in [&b""[..], b"#", SIGNATURE, &block("A=1\n")[..26], &block("A=1\n")[..512], &[0; 1024]] {
        agrees_with_the_tool(file, b"A", b"1");
    }
    agrees_with_the_tool(&[block("A=1\n"), block("A=2\n")].concat(), b"A", b"3");
}

#[test]
fn a_block_that_the_real_tool_makes_is_read_and_one_of_ours_can_be_changed_by_it() {
    let Some((_, made)) = editenv(b"", &[b"create"]) else { return };
    assert_eq!(check(&made), Ok(()));
    assert_eq!((made.len(), variables(&made)), (SIZE, vec![]));
    let ours = encode(&[("ORDER".into(), b"A B".to_vec())], 60, b"menu=x\\\\y\nsaved=\n").unwrap();
    let Some((_, set)) = editenv(&ours, &[b"set", b"saved=7", b"ORDER=B A"]) else { return };
    let Some((_, unset)) = editenv(&set, &[b"unset", b"menu"]) else { return };
    assert_eq!(listed(&unset), b"ORDER=B A\nsaved=7\n");
}

#[test]
fn values_of_ours_never_move_what_others_wrote() {
    let foreign = b"x=1\ny=\\\n\n";
    let names = [("ORDER", 3), ("T", 1)];
    let make = |order: &str, trial: &str| {
        let ours = [("ORDER".to_owned(), order.into()), ("T".to_owned(), trial.into())];
        encode(&ours, region(names), foreign).unwrap()
    };
    let (one, other) = (make("A B", ""), make("B", "B"));
    let behind = region(names);
    assert_eq!(one[behind..], other[behind..]);
    assert!(one[behind..].starts_with(foreign));
    assert_eq!(listed(&other), b"ORDER=B\nT=B\nx=1\ny=\n\n");
}

#[test]
fn what_does_not_fit_is_refused_with_the_numbers() {
    let long = [("ORDER".to_owned(), vec![b'x'; 500])];
    assert!(matches!(encode(&long, 0, b""), Err(BlockError::Sector { needed }) if needed > 512));
    let refused = encode(&[], 100, &[b'x'; 925]);
    assert_eq!(refused, Err(BlockError::Room { foreign: 925, room: 924 }));
    assert_eq!(encode(&[], 100, &[b'x'; 924]).unwrap().len(), SIZE);
}

fn any_block() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        "(A|AB|B_TRY|ORDER)=[01 AB]{0,4}\n",
        "[A-C=#\n\\\\]{0,12}",
        "#{1,40}\n?",
        any::<[u8; 3]>().prop_map(|b| b.iter().map(|b| char::from(*b % 128)).collect()),
    ];
    let text = proptest::collection::vec(piece, 0..12).prop_map(|p| p.concat());
    (text, prop_oneof![Just(SIZE), 0_usize..300]).prop_map(|(text, size)| {
        let mut bytes = block(&text);
        bytes.truncate(size);
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_block_is_read_and_changed_as_the_real_tool_does(bytes in any_block(), value in "[01\\\\\n]{0,3}") {
        agrees_with_the_tool(&bytes, b"A", value.as_bytes());
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_codec_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1500), name: Vec<u8>, value: Vec<u8>) {
        let signed = [SIGNATURE, &bytes].concat();
        for bytes in [&bytes, &signed] {
            let _ = (variables(bytes), save(bytes, &name, &value));
        }
    }

    #[test]
    fn what_is_written_is_read_again(values in proptest::collection::vec("[^=\0]{0,9}", 0..6), foreign in "([a-z]{1,5}=[a-z]{0,9}\n){0,9}") {
        let named = |(i, value): (usize, &String)| (format!("V{i}"), value.clone().into_bytes());
        let ours: Vec<_> = values.iter().enumerate().map(named).collect();
        let block = encode(&ours, 0, foreign.as_bytes()).unwrap();
        let read = variables(&block);
        for (found, (name, value)) in read.iter().zip(&ours) {
            prop_assert_eq!((&found.name, &found.value), (&name.clone().into_bytes(), value));
        }
        let behind: Vec<u8> = read[ours.len()..].iter().flat_map(|v| block[v.place.clone()].to_vec()).collect();
        prop_assert_eq!(behind, foreign.into_bytes());
    }
}
