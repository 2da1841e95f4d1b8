//! Replays what fuzzing has collected of this crate's targets.

#[path = "../../../fuzz/replay.rs"]
mod replay;
#[path = "../../../fuzz/targets.rs"]
mod targets;

use std::path::Path;

#[test]
fn every_collected_input_is_taken_or_refused() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    replay::replay(&corpora, &targets::ALL);
}
