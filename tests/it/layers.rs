//! A folder of `src` names only folders on floors below its own.
//!
//! So there is no circle between folders, and none between files of different folders.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The folders, lowest floor first. Those of one row do not name each other.
const FLOORS: &[&[&str]] = &[
    &["model"],
    &["sync"],
    &["limits"],
    &["telemetry"],
    &["connection"],
    &["schema"],
    &["neon"],
    &["catalog"],
    &["control_plane"],
    &["provision"],
    &["pool"],
    &["client"],
    &["router"],
    &["fleet", "web"],
    &["manual"],
];
/// Stands apart from the floors: it names the lowest floor only, and no folder names it.
const EMULATOR: &str = "emulator";

#[test]
fn folders_name_lower_floors_only() {
    let files = files();
    assert!(files.len() > 150, "{} files were found", files.len());
    let mut wrong = Vec::new();
    let mut edges = 0;
    for file in &files {
        let code = code_of(file);
        for name in names_in(&code) {
            edges += 1;
            wrong.extend(check(file, &name).err());
        }
        if leaves_its_folder(file, &code) {
            wrong.push(format!(
                "{}: super:: leads out of the folder",
                file.display()
            ));
        }
    }
    assert!(edges > 300, "{edges} names were read");
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn each_kind_of_breach_is_found() {
    let file = Path::new("pool/connect.rs");
    for (name, breach) in [
        ("router", "upward"),
        ("emulator", "upward"),
        ("Error", "through the crate root"),
        ("utils", "no floor"),
    ] {
        let found = check(file, name).unwrap_err();
        assert!(found.contains(breach), "{found}");
    }
    check(file, "connection").unwrap();
    check(file, "pool").unwrap();
    check(Path::new("fleet/report.rs"), "web").unwrap_err();
    check(Path::new("emulator/world.rs"), "sync").unwrap_err();
    check(Path::new("emulator/world.rs"), "model").unwrap();
    assert!(leaves_its_folder(file, "use super::super::router;"));
    assert!(!leaves_its_folder(file, "use super::state;"));
    assert!(leaves_its_folder(
        Path::new("pool.rs"),
        "use super::router;"
    ));
    let nested = "use crate::{model::{error::Error, tenant::TenantId}, router};";
    assert_eq!(names_in(nested), ["model", "router"]);
}

/// Checks whether the file may name `name`, which follows `crate::`.
fn check(file: &Path, name: &str) -> Result<(), String> {
    let folder = folder_of(file);
    let says = |breach: &str| Err(format!("{}: crate::{name}, {breach}", file.display()));
    if name.starts_with(char::is_uppercase) {
        return says("through the crate root: name the folder");
    }
    if name == folder {
        return Ok(());
    }
    let floor = |name: &str| FLOORS.iter().position(|row| row.contains(&name));
    let is_below = match (floor(&folder), floor(name)) {
        _ if folder == EMULATOR => Some(name == "model"),
        _ if name == EMULATOR => Some(false),
        (Some(own), Some(other)) => Some(other < own),
        _ => None,
    };
    match is_below {
        Some(true) => Ok(()),
        Some(false) => says("upward"),
        None => says("which has no floor"),
    }
}

/// Returns whether a path of `super::` in `code` leads to the crate's root.
fn leaves_its_folder(file: &Path, code: &str) -> bool {
    let depth = file.components().count();
    code.contains(&"super::".repeat(depth))
}

/// Returns the folder of a file, by its path within `src`: `pool` for `pool.rs` and for `pool/state.rs`.
fn folder_of(file: &Path) -> String {
    let first = file.iter().next().unwrap_or_default();
    Path::new(first).with_extension("").display().to_string()
}

/// Returns every file of the crate but its root, by its path within `src`.
fn files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![src()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|it| it == "rs") && !path.ends_with("lib.rs") {
                files.push(path.strip_prefix(src()).unwrap().to_owned());
            }
        }
    }
    files
}

/// Returns the code of a file without its comments and its unit tests.
fn code_of(file: &Path) -> String {
    let code = fs::read_to_string(src().join(file)).unwrap();
    let code = code.split("#[cfg(test)]\nmod tests").next().unwrap();
    let code = code
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    code.collect::<Vec<_>>().join("\n")
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Returns the names that follow `crate::`, also in `use crate::{…}`.
fn names_in(code: &str) -> Vec<String> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let first_word = |path: &str| path.chars().take_while(|c| is_word(*c)).collect::<String>();
    let mut names = Vec::new();
    for after in code.split("crate::").skip(1) {
        let Some(list) = after.strip_prefix('{') else {
            names.push(first_word(after));
            continue;
        };
        let (mut depth, mut begins) = (1, true);
        for (at, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 1 => break,
                '}' => depth -= 1,
                ',' if depth == 1 => begins = true,
                c if begins && is_word(c) => {
                    names.push(first_word(&list[at..]));
                    begins = false;
                }
                _ => {}
            }
        }
    }
    names
}
