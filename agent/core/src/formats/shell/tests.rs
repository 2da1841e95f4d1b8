use super::*;
use serde_json::json;

fn read(text: &str) -> Value {
    parse(text).unwrap_or_else(|error| panic!("{text:?}: {error}"))
}

fn printed(value: &Value) -> String {
    print(value, ArrayStyle::Bash).unwrap()
}

fn refused(value: &Value) -> String {
    match print(value, ArrayStyle::Bash).unwrap_err() {
        FormatError::NoPlace { path, .. } => path,
        other => panic!("{other}"),
    }
}

/// The example of chariotd's documentation.
fn example() -> Value {
    json!({
        "a": 1, "b": "str", "c": "with spaces", "d": "with single ' quote", "e": "with double \" quote", "f": true,
        "g": false, "h": -64.2, "i": [1, 2, 3], "j": ["x ", "y ", " z"], "k": [], "l": "",
        "nested": {"x": {"y": {"z1": [true], "z2": "something else"}, "yy": 42}},
    })
}

const EXAMPLE: &str = r#"a='1'
b='str'
c='with spaces'
d='with single \' quote'
e='with double " quote'
f='true'
g='false'
h='-64.2'
i=('1' '2' '3')
j=('x ' 'y ' ' z')
k=()
l=''
nested_x_y_z1=('true')
nested_x_y_z2='something else'
nested_x_yy='42'
"#;

#[test]
fn the_text_is_that_of_chariotd_with_quotes_that_a_shell_takes() {
    let text = EXAMPLE.replace(r"single \' quote", r"single '\'' quote");
    assert_eq!(printed(&example()), text);
    assert_eq!(read(&text), example());
}

#[test]
fn the_text_of_chariotd_is_read() {
    assert_eq!(read(EXAMPLE), example());
    for (text, value) in [
        (r"a='\''", json!({"a": "'"})),
        (r"a='x\'\''", json!({"a": "x''"})),
        ("a='it\\'s'\nb='a #b'\nc='it\\'s'\n", json!({"a": "it's", "b": "a #b", "c": "it's"})),
        ("a='dogs\\' # food'\n", json!({"a": "dogs' # food"})),
        ("a='one\n'\nb='two \\'\nc=\\'x\\''\n", json!({"a": "one\n", "b": "two '\nc='x'"})),
        ("a=('it\\'s' 'x\\'' '\\' \\'')\nb=()\n", json!({"a": ["it's", "x'", "' '"], "b": []})),
        ("a='C:\\'\nb='it\\'s'\n", json!({"a": "C:\\", "b": "it's"})),
        ("a='x\ny'\n", json!({"a": "x\ny"})),
        ("a='e\n\nb=\\'\nc=(x'\nb=''\n", json!({"a": "e\n\nb='\nc=(x", "b": ""})),
    ] {
        assert_eq!(read(text), value, "{text}");
    }
}

#[test]
fn hand_written_text_is_read() {
    for (text, value) in [
        ("", json!({})),
        ("\n", json!({})),
        ("# nothing\n\n  # more", json!({})),
        ("\u{feff}a=1\r\nb='x y' # why\r\n", json!({"a": 1, "b": "x y"})),
        ("export a=word\n\texport\tb=\"x\"; c='y';d=z\nexport a b", json!({})),
        (
            "export a=word\n\texport\tb=\"x\"; c='y';d=z\nexport a",
            json!({"a": "word", "b": "x", "c": "y", "d": "z"}),
        ),
        (
            "a=\na_b='1'\na_c=\nd=\nd_e=\nf_g=",
            json!({"a": {"b": 1, "c": null}, "d": {"e": null}, "f": {"g": null}}),
        ),
        ("a=\nb=\"\"\nc=''", json!({"a": null, "b": null, "c": ""})),
        ("a=\"it's \\\"5\\$\\\" \\x \\\\\"", json!({"a": "it's \"5$\" \\x \\"})),
        ("a=\"it\\'s\"", json!({"a": "it's"})),
        ("# c\na='it\\'s'", json!({"a": "it's"})),
        ("# c\na='it'\\''s' # too", json!({"a": "it's"})),
        (
            "# c\na='C:\\dir\\'\nb='D:\\' # d\nc='E:\\';d='x'",
            json!({"a": "C:\\dir\\", "b": "D:\\", "c": "E:\\", "d": "x"}),
        ),
        ("a='x''y'\"z\"w", json!({"a": "xyzw"})),
        ("a=one\\\ntwo\nb=x\\ y\\'", json!({"a": "onetwo", "b": "x y'"})),
        ("a=\"two\nlines\" # x\nb='two\nlines'", json!({"a": "two\nlines", "b": "two\nlines"})),
        (
            "a=( 1 \"two\" three # four\n '' \"\"\n'it\\'s' 'C:\\' 'D:\\')",
            json!({"a": [1, "two", "three", "", "", "it's", "C:\\", "D:\\"]}),
        ),
        (
            "a='(1)'\nb=$(reboot)\nc=`reboot`\nd=$HOME\ne=a&b#c",
            json!({"a": "(1)", "b": "$(reboot)", "c": "`reboot`", "d": "$HOME", "e": "a&b#c"}),
        ),
        ("a=1\na=2\n", json!({"a": 2})),
        (
            "a='007'\nb=1.50\nc=true\nd='false'\ne=0x1F\nf='null'",
            json!({"a": "007", "b": 1.5, "c": true, "d": false, "e": "0x1F", "f": "null"}),
        ),
    ] {
        match parse(text) {
            Err(FormatError::Syntax { line, .. }) if text.ends_with("export a b") => assert_eq!(line, 3),
            read => assert_eq!(read, Ok(value), "{text}"),
        }
    }
}

#[test]
fn what_is_no_assignment_is_refused_with_its_line() {
    for (text, line) in [
        ("reboot", 1),
        ("a=1\n. /etc/profile\n", 2),
        ("a=1\n\nb = 2", 3),
        ("a=1 reboot", 1),
        ("a=hello world", 1),
        ("a=1; reboot", 1),
        ("=1", 1),
        ("1a=1", 1),
        ("a-b=1", 1),
        ("\n\na='1\n\n", 3),
        ("a=\"1\n\n", 1),
        ("a=(1\n2\n", 1),
        ("a=([0]='x')", 1),
        ("a=(1;2)", 1),
        ("a+=1", 1),
        ("a[0]=1", 1),
    ] {
        match parse(text) {
            Err(FormatError::Syntax { line: found, .. }) => assert_eq!(found, line, "{text}"),
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[test]
fn names_are_split_where_nothing_is_lost() {
    for (text, value) in [
        ("a_b='1'\na_c_d='2'", json!({"a": {"b": 1, "c": {"d": 2}}})),
        ("a='1'\na_b='2'\na_c_d='3'", json!({"a": 1, "a_b": 2, "a_c": {"d": 3}})),
        ("a_b_c='1'\na='2'", json!({"a": 2, "a_b": {"c": 1}})),
        ("_x='1'\ny_='2'\nz__w='3'", json!({"": {"x": 1}, "y": {"": 2}, "z": {"": {"w": 3}}})),
        ("l_0='a'\nl_1='2'\nl__count='2'\nm__count='0'", json!({"l": ["a", 2], "m": []})),
        ("l_0='a'\nl__count='2'", json!({"l": {"0": "a", "": {"count": 2}}})),
        ("l_0=\nl_l_1=\nl__count='0'", json!({"l": []})),
        ("x_count='0'", json!({"x": {"count": 0}})),
    ] {
        let read = read(text);
        assert_eq!(read, value);
        // However it was split: as text it is the same.
        let style = ArrayStyle::Indexed;
        assert_eq!(parse(&print(&read, style).unwrap()), Ok(read));
    }
    assert!(parse(&format!("a{}=1", "_b".repeat(64))).is_err());
    let deepest = parse(&format!("a{}=1", "_b".repeat(63))).unwrap();
    assert!(print(&deepest, ArrayStyle::Bash).is_ok());
    assert!(print(&json!({ "a": deepest }), ArrayStyle::Bash).is_err(), "could not be read back");
}

#[test]
fn lines_are_sorted_as_wholes_and_absent_values_are_left_out() {
    let value = json!({"a": 1, "a1": 2, "a_b": 3, "A": 4, "n": null, "e": {}, "f": {"g": {"h": null}}});
    assert_eq!(printed(&value), "A='4'\na1='2'\na='1'\na_b='3'\n");
    assert_eq!(printed(&json!({})), "\n");
    assert_eq!(read("\n"), json!({}));
}

#[test]
fn indexed_lists_are_plain_variables() {
    let value = json!({"l": ["x", "it's"], "m": [], "n": {"o": [1]}});
    let text = print(&value, ArrayStyle::Indexed).unwrap();
    assert_eq!(text, "l_0='x'\nl_1='it'\\''s'\nl__count='2'\nm__count='0'\nn_o_0='1'\nn_o__count='1'\n");
    assert_eq!(read(&text), value);
}

#[test]
fn what_no_shell_holds_is_refused_with_its_place() {
    for (value, path) in [
        (json!([1]), "$"),
        (json!("a"), "$"),
        (json!({"a-b": 1}), "$[\"a-b\"]"),
        (json!({"": 1}), "$[\"\"]"),
        (json!({"1": 1}), "$[\"1\"]"),
        (json!({"a": {"b c": 1}}), "$.a[\"b c\"]"),
        (json!({"x;reboot": 1}), "$[\"x;reboot\"]"),
        (json!({"é": 1}), "$[\"é\"]"),
        (json!({"a": [1, [2]]}), "$.a[1]"),
        (json!({"a": [{"b": 1}]}), "$.a[0]"),
        (json!({"a": [null]}), "$.a[0]"),
        (json!({"a": "x\u{0}"}), "$.a"),
        (json!({"a": {"b": 1}, "a_b": 2}), "$.a_b"),
        (json!({"PATH": "/tmp"}), "$.PATH"),
        (json!({"PS4": "$(reboot)"}), "$.PS4"),
        (json!({"LD": {"PRELOAD": "/tmp/x.so"}}), "$.LD.PRELOAD"),
        (json!({"BASH": {"ENV": "/tmp/x"}}), "$.BASH.ENV"),
        (json!({"UID": 0}), "$.UID"),
        (json!({"": {"": "x"}}), "$[\"\"][\"\"]"),
    ] {
        assert_eq!(refused(&value), path, "{value}");
    }
    let twice = json!({"l": ["a"], "l_0": 1});
    assert!(print(&twice, ArrayStyle::Bash).is_ok());
    assert!(print(&twice, ArrayStyle::Indexed).is_err());
}

#[test]
fn long_keys_around_many_values_end_at_the_limit() {
    let many: serde_json::Map<_, _> = (0..10_000).map(|at| (format!("k{at}"), json!(1))).collect();
    let value = json!({ "k".repeat(100_000): many });
    assert_eq!(print(&value, ArrayStyle::Bash), Err(FormatError::TooLarge(Format::Shell)));
}
