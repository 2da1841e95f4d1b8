//! The `command` of a runCommand step: words between commas. No shell, no quoting, no variables.

/// What the trimming of a word takes away.
const SPACE: [char; 6] = [' ', '\t', '\n', '\u{b}', '\u{c}', '\r'];

/// Splits at commas that no backslash escapes. Words that are empty vanish; one of blanks alone stays, empty. A
/// backslash stands for itself unless a comma follows, and cannot be escaped.
///
/// # Errors
/// Why it cannot be executed.
pub fn words(command: &str) -> Result<Vec<String>, &'static str> {
    let words = split(command);
    match words.first() {
        None => Err("empty"),
        Some(first) if first.is_empty() => Err("its first word is empty"),
        Some(first) if first.contains(SPACE) => {
            Err("its first word holds a blank: separate the words by commas, as in \"ls,-la\"")
        }
        // It would be taken for an option of sudo.
        Some(first) if first.starts_with('-') => Err("its first word begins with \"-\""),
        Some(_) => Ok(words),
    }
}

fn split(command: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut rest = command.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\\' if rest.peek() == Some(&',') => {
                rest.next();
                word.push(',');
            }
            ',' => take(&mut word, &mut words),
            _ => word.push(c),
        }
    }
    take(&mut word, &mut words);
    words
}

fn take(word: &mut String, words: &mut Vec<String>) {
    if !word.is_empty() {
        words.push(word.trim_matches(SPACE).to_owned());
        word.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn commas_separate_and_escaped_ones_stay() {
        for (command, expected) in [
            ("echo,Hello World!", vec!["echo", "Hello World!"]),
            (r"echo,Hello\, I am Device Client.", vec!["echo", "Hello, I am Device Client."]),
            (" mkdir , newDir\n", vec!["mkdir", "newDir"]),
            (",,echo,,a,", vec!["echo", "a"]),
            ("echo, ,b", vec!["echo", "", "b"]),
            (r"a\\,b", vec![r"a\,b"]),
            (r"grep,\d+,f", vec!["grep", r"\d+", "f"]),
            ("echo,$HOME,*", vec!["echo", "$HOME", "*"]),
        ] {
            assert_eq!(words(command).unwrap(), expected, "{command:?}");
        }
    }

    #[test]
    fn what_names_no_program_is_refused() {
        for (command, why) in [
            ("", "empty"),
            (",,,", "empty"),
            (" ,a", "first word is empty"),
            ("ls -la", "blank"),
            ("a\u{b}b,c", "blank"),
            ("-n,id", "begins with"),
        ] {
            let refused = words(command).unwrap_err();
            assert!(refused.contains(why), "{command:?}: {refused}");
        }
    }

    proptest! {
        #[test]
        fn no_word_holds_an_unescaped_comma_and_none_is_lost(command in r"[a-z ,\\]{0,40}") {
            let words = split(&command);
            let escaped = command.matches("\\,").count();
            let commas: usize = words.iter().map(|w| w.matches(',').count()).sum();
            prop_assert_eq!(commas, escaped);
            let letters = |s: &str| s.chars().filter(char::is_ascii_lowercase).collect::<String>();
            prop_assert_eq!(letters(&words.concat()), letters(&command));
        }
    }
}
