//! Replays what fuzzing has collected, on any compiler. `fuzz/run` collects more.

#[path = "../../fuzz/boot_targets.rs"]
mod targets;

use std::path::Path;

#[test]
fn every_collected_input_is_taken_or_refused() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    for (name, target) in targets::ALL {
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
