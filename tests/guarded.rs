//! Rules for the sources themselves.

use std::process::Command;

/// The lines of the library's sources that match, without comments.
fn lines_with(word: &str) -> Vec<String> {
    let output = Command::new("grep")
        .args(["-rnw", "--include=*.rs", word, concat!(env!("CARGO_MANIFEST_DIR"), "/src")])
        .output()
        .expect("grep");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|line| !line.split(':').nth(2).unwrap_or("").trim_start().starts_with("//"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn unsafe_lives_in_one_module() {
    for line in lines_with("unsafe") {
        assert!(line.contains("/src/kernel/abi"), "{line}");
    }
    assert!(!lines_with("unsafe").is_empty());
}

/// `ids` is the lowest layer: nothing in it can depend on higher layers.
#[test]
fn ids_import_nothing_of_the_crate() {
    let lines = lines_with("crate");
    let is_of_ids = |line: &&String| line.contains("/src/ids/") || line.contains("/src/ids.rs:");
    let upward: Vec<_> =
        lines.iter().filter(is_of_ids).filter(|line| !line.contains("pub(crate)")).collect();
    assert!(upward.is_empty(), "{upward:?}");
    // The module still exists, and imports are found in other modules.
    assert!(lines.iter().any(|line| line.contains("/src/ids/")) && lines.len() > 100);
}
