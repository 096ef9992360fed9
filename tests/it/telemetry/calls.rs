//! The library's calls of tracing, read from its sources.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Every call of a macro of `tracing` in the library: which macro, its name or text, and its fields.
pub(super) fn calls() -> Vec<(String, String, BTreeSet<String>)> {
    let mut files = Vec::new();
    walk(
        &PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src")),
        &mut files,
    );
    let mut calls = Vec::new();
    for file in files {
        let source = fs::read_to_string(&file).unwrap();
        for call in source.split("tracing::").skip(1) {
            let Some((level, rest)) = call.split_once("!(") else {
                continue;
            };
            if level.chars().all(|it| it.is_ascii_lowercase() || it == '_') && level != "enabled" {
                calls.push(read(level, rest));
            }
        }
    }
    assert!(calls.len() > 40, "only {} were found", calls.len());
    calls
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, files);
        } else if path.extension().is_some_and(|it| it == "rs") {
            files.push(path);
        }
    }
}

/// One call, from the text after its opening bracket.
fn read(level: &str, text: &str) -> (String, String, BTreeSet<String>) {
    let (mut depth, mut in_text, mut escaped) = (1, false, false);
    let mut arguments = vec![String::new()];
    for it in text.chars() {
        match it {
            '"' if !escaped => in_text = !in_text,
            '(' | '[' | '{' if !in_text => depth += 1,
            ')' | ']' | '}' if !in_text => depth -= 1,
            _ => {}
        }
        escaped = it == '\\' && !escaped;
        if depth == 0 {
            break;
        }
        if it == ',' && depth == 1 && !in_text {
            arguments.push(String::new());
        } else if let Some(argument) = arguments.last_mut() {
            argument.push(it);
        }
    }
    let (mut name, mut fields) = (String::new(), BTreeSet::new());
    for argument in arguments
        .iter()
        .map(|it| it.trim())
        .filter(|it| !it.is_empty())
    {
        if let Some(text) = argument.strip_prefix('"') {
            text.trim_end_matches('"').clone_into(&mut name);
        } else if !argument.starts_with("parent:") {
            let field = argument.split('=').next().unwrap_or_default();
            fields.insert(field.trim().trim_matches(['?', '%']).to_owned());
        }
    }
    (level.to_owned(), name, fields)
}
