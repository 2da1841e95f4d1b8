//! Replays what fuzzing has collected, on any compiler. `fuzz/run` collects more.

use std::path::Path;

/// Runs each target on each input of its corpus; `corpora` is the folder of all of them.
pub fn replay(corpora: &Path, targets: &[(&str, impl Fn(&[u8]))]) {
    for (name, target) in targets {
        let inputs: Vec<_> =
            std::fs::read_dir(corpora.join(name)).unwrap().map(|e| e.unwrap().path()).collect();
        assert!(!inputs.is_empty(), "fuzz/corpus/{name} has no input");
        for input in inputs {
            let data = std::fs::read(&input).unwrap();
            println!("{}", input.display());
            target(&data);
        }
    }
}
