//! A module names only modules of its own row and of rows above it.

use std::{collections::HashMap, fs, path::Path};

/// Lowest row first. A module in a folder belongs to the folder's row.
const ROWS: &[(&str, &[&str])] = &[
    (
        "words",
        &[
            "chain",
            "secret",
            "tenant",
            "current_tenant",
            "plan",
            "endpoint",
            "record",
            "config",
            "resolve",
            "error",
        ],
    ),
    (
        "mechanisms",
        &[
            "retry",
            "flights",
            "breaker",
            "admission",
            "life",
            "supervise",
            "flow",
            "waiting",
            "budget",
            "open_files",
            "hint",
            "stats",
            "meters",
            "top",
            "trail",
            "trust",
            "seal",
        ],
    ),
    ("neon", &["neon"]),
    (
        "dial",
        &[
            "tls",
            "stream",
            "watch",
            "statements",
            "session_state",
            "tap",
            "drive",
            "dial",
            "verdict",
        ],
    ),
    (
        "tenancy",
        &[
            "lookup",
            "records",
            "catalog",
            "control_plane",
            "provision",
            "source",
        ],
    ),
    (
        "pools",
        &[
            "refusals", "shared", "reset", "lease", "opening", "wake", "pool", "index", "pools",
            "sweep", "follow",
        ],
    ),
    (
        "face",
        &[
            "cached_statements",
            "client",
            "closing",
            "explain",
            "observing",
            "handle",
            "cancel",
            "transaction",
            "direct",
            "router",
            "fleet",
            "warm",
            "preload",
            "verbs",
            "builder",
        ],
    ),
    (
        "edge",
        &[
            "manual",
            "identify",
            "problem",
            "extract",
            "warm_layer",
            "settings",
        ],
    ),
];

/// Uses the words only, never the router.
const EMULATOR: &str = "emulator";

#[test]
fn modules_look_down_only() {
    let rank: HashMap<&str, usize> = ROWS
        .iter()
        .enumerate()
        .flat_map(|(rank, (_, modules))| modules.iter().map(move |module| (*module, rank)))
        .collect();
    let mut wrong = Vec::new();
    let mut seen = Vec::new();
    for (module, code) in modules() {
        let own = if module == EMULATOR {
            0
        } else {
            *rank.get(module.as_str()).expect(&module)
        };
        for named in names_in(&code) {
            let Some(&other) = rank.get(named.as_str()) else {
                assert!(
                    named == EMULATOR || !code.contains(&format!("crate::{named}::")),
                    "{named} has no row"
                );
                wrong.extend(
                    (named == EMULATOR && module != EMULATOR)
                        .then(|| format!("{module} -> {named}")),
                );
                continue;
            };
            seen.push((module.clone(), named.clone()));
            if other > own {
                wrong.push(format!("{module} -> {named}"));
            }
        }
    }
    assert!(
        seen.contains(&("router".into(), "pools".into())),
        "the test reads nothing: {seen:?}"
    );
    assert_eq!(wrong, Vec::<String>::new(), "upward");
}

/// Every module of the crate with its code, tests left out.
fn modules() -> Vec<(String, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut folders = vec![src.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(&src).unwrap().with_extension("");
            let module = name
                .components()
                .next()
                .unwrap()
                .as_os_str()
                .to_str()
                .unwrap()
                .to_owned();
            if module != "lib" && path.extension().is_some_and(|extension| extension == "rs") {
                let code = fs::read_to_string(&path).unwrap();
                let code = code.split("#[cfg(test)]").next().unwrap_or_default();
                let code = code
                    .lines()
                    .filter(|line| !line.trim_start().starts_with("//"));
                found.push((module, code.collect::<Vec<_>>().join("\n")));
            }
        }
    }
    found
}

/// The modules named by `crate::…` and by `use crate::{…}`.
fn names_in(code: &str) -> Vec<String> {
    let mut names = Vec::new();
    for after in code.split("crate::").skip(1) {
        if let Some(list) = after.strip_prefix('{') {
            let (mut depth, mut word) = (1, String::new());
            for c in list.chars() {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    _ => {}
                }
                if depth == 1 && (c.is_alphanumeric() || c == '_') {
                    word.push(c);
                } else if depth == 0 || c == ',' {
                    names.extend((!word.is_empty()).then(|| std::mem::take(&mut word)));
                } else if c == ':' {
                    // The first word of a path is the module; the rest is passed over up to the next comma.
                    names.extend((!word.is_empty()).then(|| std::mem::take(&mut word)));
                }
                if depth == 0 {
                    break;
                }
            }
        } else {
            names.push(
                after
                    .chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect(),
            );
        }
    }
    names.retain(|name: &String| name.chars().all(|c| c.is_lowercase() || c == '_'));
    names
}
