//! What the sources themselves have to keep to.

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
