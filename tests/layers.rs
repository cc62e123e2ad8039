//! Imports point down: no module imports one that imports it, directly or indirectly. Holds for the library, its C
//! interface, the guard, the lab and the build tooling.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The sources of one package.
struct Tree {
    /// Its directory, beneath the root of the workspace.
    directory: &'static str,
    /// Its top modules from the lowest layer to the highest, if it has layers. Each may import modules of its own
    /// layer and of the layers below. Empty: only rings are forbidden.
    layers: &'static [&'static [&'static str]],
    /// Whether a part may import from its module's own file, such as `a::b` an item of `a`.
    parts_import_whole: bool,
    /// Modules whose parts are one unit in several files: rings among these parts are allowed.
    rooms: &'static [&'static str],
    /// Imports that may point up: a module, and its import.
    exceptions: &'static [(&'static str, &'static str)],
}

const TREES: [Tree; 5] = [
    LIBRARY,
    Tree {
        directory: "capi/src",
        layers: &[],
        parts_import_whole: false,
        rooms: &[],
        exceptions: &[],
    },
    Tree {
        directory: "guard/src",
        layers: &[],
        parts_import_whole: false,
        rooms: &[],
        exceptions: &[],
    },
    Tree {
        directory: "lab/src",
        layers: &[],
        parts_import_whole: false,
        rooms: &[],
        exceptions: &[],
    },
    Tree {
        directory: "xtask/src",
        layers: &[],
        parts_import_whole: false,
        rooms: &[],
        exceptions: &[],
    },
];

const LIBRARY: Tree = Tree {
    directory: "src",
    layers: &[
        &["ids"],
        &["kernel"],
        &["identity", "evidence", "errno"],
        &["error"],
        &["check"],
        &["sysfs", "netlink", "uevents"],
        &["host", "listing"],
        &["record"],
        &["pin"],
        &["index", "provider", "verbs"],
        &["device"],
        &["open", "parent"],
        &["context"],
        &["ports"],
        &["registry"],
        &["watch", "ibverbs", "expectation"],
        &["probe", "serialized", "fuzzing", "manual"],
    ],
    // The vocabulary of the seam is in its own file, and the simulator behind the seam needs it.
    parts_import_whole: true,
    // Its files are parts of one type, the simulated world.
    rooms: &["kernel::sim"],
    // The replaced rule, which exists only in the builds that search for it.
    exceptions: &[("open::proof", "open::old_rule")],
};

#[test]
fn imports_point_down() {
    for tree in &TREES {
        let found = violations(&sources(tree.directory), tree);
        assert!(found.is_empty(), "{}:\n{}", tree.directory, found.join("\n"));
    }
}

/// A module by its path from the root of its package. The root's path is empty.
type Module = Vec<String>;

/// All violations in a tree, one per line.
fn violations(sources: &BTreeMap<Module, String>, tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    // The imports between the children of each module, each with an example.
    let mut between: BTreeMap<Module, BTreeMap<(String, String), String>> = BTreeMap::new();
    for (module, text) in sources {
        for path in paths(module, text) {
            let Some(target) = resolve(sources, &path) else { continue };
            let (from, to) = (module.join("::"), target.join("::"));
            if tree.exceptions.contains(&(from.as_str(), to.as_str())) {
                continue;
            }
            let shared = module.iter().zip(&target).take_while(|(a, b)| a == b).count();
            match (module.get(shared), target.get(shared)) {
                // Itself, or a module beneath it.
                (None, _) => {}
                // The root of a package declares modules and contains little else.
                (Some(_), None) if target.is_empty() || tree.parts_import_whole => {}
                (Some(_), None) => found.push(format!(
                    "{from} imports {}, of the module that it is a part of",
                    path.join("::")
                )),
                (Some(one), Some(other)) => {
                    let edges = between.entry(module[..shared].to_vec()).or_default();
                    let example = format!("{from} imports {}", path.join("::"));
                    edges.entry((one.clone(), other.clone())).or_insert(example);
                }
            }
        }
    }
    for (module, edges) in &between {
        if !tree.rooms.contains(&module.join("::").as_str()) {
            found.extend(rings(edges));
        }
    }
    if !tree.layers.is_empty() {
        found.extend(upwards(between.get(&Module::new()), tree.layers));
    }
    found
}

/// Each ring of modules, with the imports that make it.
fn rings(edges: &BTreeMap<(String, String), String>) -> Vec<String> {
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    for start in edges.keys().map(|(from, _)| from) {
        // The shortest path from a module back to itself.
        let mut ways: Vec<Vec<&String>> = vec![vec![start]];
        let mut visited = BTreeSet::new();
        let mut ring = None;
        while ring.is_none() && !ways.is_empty() {
            let mut longer = Vec::new();
            for way in &ways {
                let last = way[way.len() - 1];
                for (_, next) in edges.keys().filter(|(from, _)| from == last) {
                    if next == start {
                        ring = Some(way.clone());
                    } else if visited.insert(next) {
                        longer.push([&way[..], &[next]].concat());
                    }
                }
            }
            ways = longer;
        }
        let Some(ring) = ring else { continue };
        if !seen.insert(ring.iter().copied().collect::<BTreeSet<_>>()) {
            continue;
        }
        let next = ring.iter().cycle().skip(1);
        let imports = ring.iter().zip(next).map(|(from, to)| {
            let example = edges.get(&((*from).clone(), (*to).clone()));
            format!("\n    {}", example.map_or("", String::as_str))
        });
        found.push(format!("ring of {}:{}", ring.len(), imports.collect::<String>()));
    }
    found
}

/// Imports of a higher layer, and modules that are in no layer.
fn upwards(edges: Option<&BTreeMap<(String, String), String>>, layers: &[&[&str]]) -> Vec<String> {
    let layer = |module: &str| layers.iter().position(|layer| layer.contains(&module));
    let mut found = Vec::new();
    for ((from, to), example) in edges.into_iter().flatten() {
        match (layer(from), layer(to)) {
            (Some(from), Some(to)) if from >= to => {}
            (Some(_), Some(_)) => found.push(format!("{example}, of a layer above")),
            (None, _) => found.push(format!("{from} is in no layer")),
            (_, None) => found.push(format!("{to} is in no layer")),
        }
    }
    found
}

/// The module that a path leads to or into: its longest prefix that is a module.
fn resolve(sources: &BTreeMap<Module, String>, path: &[String]) -> Option<Module> {
    (0..=path.len())
        .rev()
        .map(|length| &path[..length])
        .find_map(|part| sources.contains_key(part).then(|| part.to_vec()))
}

/// All paths in a module's text that begin with `crate`, `super` or `self`, from the root of the package.
fn paths(module: &Module, text: &str) -> Vec<Vec<String>> {
    let tokens = tokens(text);
    let mut found = Vec::new();
    // Modules within the file, with the brace depth of each.
    let mut within: Vec<usize> = Vec::new();
    let mut depth = 0;
    let mut at = 0;
    while at < tokens.len() {
        match tokens[at].as_str() {
            "mod" if tokens.get(at + 2).is_some_and(|token| token == "{") => within.push(depth + 1),
            "{" => depth += 1,
            "}" => {
                if within.last() == Some(&depth) {
                    within.pop();
                }
                depth -= 1;
            }
            "crate" | "super" | "self"
                if tokens.get(at + 1).is_some_and(|token| token == "::")
                    && (at == 0 || (tokens[at - 1] != "::" && tokens[at - 1] != "in")) =>
            {
                let mut base = Vec::new();
                base.extend(module.iter().cloned());
                // As many names as there are enclosing modules, for `super` to remove.
                base.extend(within.iter().map(|_| WITHIN.to_owned()));
                let mut ends = Vec::new();
                follow(&tokens, at, base, &mut ends);
                found.extend(ends);
                // The imports within the braces of a `use` have just been followed.
                at += 1;
            }
            _ => {}
        }
        at += 1;
    }
    for path in &mut found {
        path.retain(|name| name != WITHIN);
    }
    found
}

/// Stands for a module within a file, which is part of the file.
const WITHIN: &str = "{}";

/// Follows a path from a token on, including its braces. Returns where it leads, and the token after it.
fn follow(
    tokens: &[String],
    mut at: usize,
    mut path: Vec<String>,
    ends: &mut Vec<Vec<String>>,
) -> usize {
    loop {
        match tokens.get(at).map_or("", String::as_str) {
            "{" => {
                at += 1;
                while tokens.get(at).is_some_and(|token| token != "}") {
                    at = follow(tokens, at, path.clone(), ends);
                    if tokens.get(at).is_some_and(|token| token == ",") {
                        at += 1;
                    }
                }
                return at + 1;
            }
            "crate" => path.clear(),
            "super" => drop(path.pop()),
            "self" | "*" => {}
            name => path.push(name.to_owned()),
        }
        at += 1;
        if tokens.get(at).is_some_and(|token| token == "as") {
            at += 2;
        }
        if tokens.get(at).is_none_or(|token| token != "::") {
            ends.push(path);
            return at;
        }
        at += 1;
    }
}

/// Names, `::` and single characters, without comments and quoted text.
fn tokens(text: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let is_name = |c: char| c.is_alphanumeric() || c == '_';
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(length) = quoted(rest) {
            length
        } else if rest.starts_with("::") {
            tokens.push("::".to_owned());
            2
        } else if is_name(first) {
            let length = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
            tokens.push(rest[..length].to_owned());
            length
        } else {
            if !first.is_whitespace() {
                tokens.push(first.to_string());
            }
            first.len_utf8()
        };
        rest = &rest[length..];
    }
    tokens
}

/// The length of the quoted text or character at the beginning of `text`.
fn quoted(text: &str) -> Option<usize> {
    let raw = text.trim_start_matches('b').trim_start_matches('c');
    if text.len() - raw.len() <= 1
        && let Some(raw) = raw.strip_prefix('r')
    {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            let begin = text.len() - raw.len() + hashes + 1;
            return Some(text[begin..].find(&end).map_or(text.len(), |at| begin + at + end.len()));
        }
    }
    if let Some(inner) = text.strip_prefix('"') {
        let mut escaped = false;
        for (at, c) in inner.char_indices() {
            match c {
                '"' if !escaped => return Some(at + 2),
                _ => escaped = c == '\\' && !escaped,
            }
        }
        return Some(text.len());
    }
    // A character, not a lifetime.
    let inner = text.strip_prefix('\'')?;
    if let Some(escape) = inner.strip_prefix('\\') {
        let from = 1.min(escape.len());
        return Some(escape[from..].find('\'').map_or(text.len(), |at| 2 + from + at + 1));
    }
    let first = inner.chars().next()?;
    inner[first.len_utf8()..].starts_with('\'').then(|| 2 + first.len_utf8())
}

/// The text of each module beneath a directory of the workspace.
#[expect(clippy::disallowed_methods, reason = "sources are read by their paths")]
fn sources(directory: &str) -> BTreeMap<Module, String> {
    fn add(directory: &Path, module: &Module, found: &mut BTreeMap<Module, String>) {
        let entries = std::fs::read_dir(directory).expect("the directory of the sources");
        for path in entries.map(|entry| entry.expect("an entry").path()) {
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            let module = match name.as_str() {
                "main" | "lib" | "mod" => module.clone(),
                _ => [&module[..], &[name]].concat(),
            };
            if path.is_dir() {
                add(&path, &module, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.insert(module, std::fs::read_to_string(&path).expect("a source file"));
            }
        }
    }
    let mut found = BTreeMap::new();
    add(&Path::new(env!("CARGO_MANIFEST_DIR")).join(directory), &Module::new(), &mut found);
    assert!(found.len() > 1, "no sources in {directory}");
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The violations in modules with these texts.
    fn found(modules: &[(&str, &str)], layers: &'static [&'static [&'static str]]) -> Vec<String> {
        let split = |path: &str| -> Module {
            path.split("::").filter(|name| !name.is_empty()).map(str::to_owned).collect()
        };
        let sources = modules.iter().map(|(path, text)| (split(path), (*text).to_owned()));
        let exceptions = &[("d::sim", "d")];
        violations(
            &sources.collect(),
            &Tree { directory: "", layers, parts_import_whole: false, rooms: &[], exceptions },
        )
    }

    #[test]
    fn a_ring_is_found_through_others_and_by_any_spelling() {
        let ring = [
            ("", "mod a; mod b; mod c;"),
            ("a", "use std::{fs, io};\nuse crate::{b::B, d as e};"),
            ("b", "pub mod inner;"),
            ("b::inner", "fn f() { super::super::c::run(); }"),
            ("c", "use super::{a::{self, Thing}};"),
            ("d", ""),
        ];
        let lines = found(&ring, &[]);
        assert_eq!(
            lines,
            ["ring of 3:\n    a imports b::B\n    b::inner imports c::run\n    c imports a"]
        );
        assert!(found(&ring[..4], &[]).is_empty());
    }

    #[test]
    fn a_part_does_not_import_the_whole() {
        let modules = [
            ("a", "mod b; mod c;"),
            ("a::b", "use super::Thing;"),
            ("a::c", "use crate::a::b;\nmod tests { use super::*; use super::super::b::X; }"),
            ("d::sim", "use super::Handle;"),
            ("d", "use self::sim::Sim;"),
        ];
        let lines = found(&modules, &[]);
        assert_eq!(lines, ["a::b imports a::Thing, of the module that it is a part of"]);
    }

    #[test]
    fn words_in_quotes_and_comments_import_nothing() {
        let quiet = r##"
            // use crate::b;
            /* use crate::b; */
            const A: &str = "use crate::b; \" crate::b";
            const B: &str = r#"crate::b " crate::b"#;
            const C: (char, char) = ('"', '\'');
            fn f<'a>(x: &'a str) -> &'a str { x }
            pub(in crate::b) fn g() {}
        "##;
        let modules = [("a", quiet), ("b", "use crate::a;")];
        assert!(found(&modules, &[]).is_empty());
        let loud = format!("{quiet} use crate::b;");
        assert_eq!(found(&[("a", &loud), ("b", "use crate::a;")], &[]).len(), 1);
    }

    #[test]
    fn layers_are_kept() {
        let modules = [("a", ""), ("b", "use crate::a;"), ("c", "use crate::b::X;")];
        assert!(found(&modules, &[&["a", "b"], &["c"]]).is_empty());
        assert_eq!(found(&modules, &[&["a", "c"], &["b"]]), ["c imports b::X, of a layer above"]);
        assert_eq!(found(&modules, &[&["a", "b"]]), ["c is in no layer"]);
    }
}
