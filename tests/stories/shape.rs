//! The tree is as ARCHITECTURE.md says.

#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn modules(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        // Tests and contract suites belong to the module they stand beside.
        let beside = ["tests", "contract", "lib", "main", "tegata-bench"].contains(&name.as_str());
        match path.extension() {
            None if path.is_dir() && !beside => modules(&path, found),
            Some(extension) if extension == "rs" && !beside => found.push(path),
            Some(_) | None => {}
        }
    }
}

#[test]
fn every_module_is_named_in_the_architecture() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let chapters = [
        ("proto/src", "### `proto`"),
        ("broker/domain/src", "### `broker/domain`"),
        ("broker/edge/src", "### `broker/edge`"),
        ("broker/gateway/src", "### `broker/gateway`"),
        ("broker/src", "### `broker` "),
        ("agent/src", "### `agent`"),
        ("tests/src", "### `tests`"),
        ("tests/parts/src", "### `tests`"),
    ];
    let mut missing = Vec::new();
    for (folder, heading) in chapters {
        let (_, after) = text.split_once(heading).unwrap_or_else(|| panic!("no chapter {heading}"));
        let chapter = after.split("\n##").next().unwrap();
        let mut found = Vec::new();
        modules(&root().join(folder), &mut found);
        assert!(!found.is_empty(), "{folder} has modules");
        missing.extend(found.into_iter().filter(|path| {
            let name = path.file_stem().unwrap().to_string_lossy();
            !chapter.contains(&format!("`{name}`"))
        }));
    }
    assert!(missing.is_empty(), "not named in ARCHITECTURE.md: {missing:?}");
}

#[test]
fn the_top_level_holds_nothing_else() {
    let allowed = ["agent", "broker", "deploy", "proto", "target", "tests"];
    for entry in fs::read_dir(root()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let known = name.starts_with('.') || allowed.contains(&name.as_str());
        assert!(known || !path.is_dir(), "{name} is no folder of this project");
    }
}
