//! What the manual says of the code is what is there.

use std::{fs, path::PathBuf};

const REQUEST: &str = include_str!("../../src/manual/request.md");
const TUNING: &str = include_str!("../../src/manual/tuning.md");

/// Each builder as the manual links it, and the files that have its settings.
const BUILDERS: [(&str, &[&str]); 4] = [
    ("RouterBuilder", &["builder.rs", "settings.rs"]),
    ("Provisioner", &["provision.rs"]),
    ("neon::NeonBuilder", &["neon/builder.rs"]),
    ("records::PostgresBuilder", &["records/postgres/builder.rs"]),
];

fn src(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("src")
        .join(file)
}

#[test]
fn every_setting_has_a_row_on_the_page_about_settings() {
    let first_cells: Vec<_> = TUNING
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" | ").next())
        .collect();
    let mut missing = Vec::new();
    for (builder, files) in BUILDERS {
        let code = files.iter().map(|file| fs::read_to_string(src(file)));
        let names: Vec<_> = code.flat_map(|code| setters(&code.unwrap())).collect();
        assert!(names.len() > 5, "the test reads too little: {names:?}");
        let links = names
            .iter()
            .map(|name| format!("[`{name}`](crate::{builder}::{name})"));
        missing.extend(links.filter(|link| !first_cells.iter().any(|cell| cell.contains(link))));
    }
    assert_eq!(missing, Vec::<String>::new(), "without a row in tuning.md");
}

/// The names of the public methods that take a builder and give it back, but for the hidden ones.
fn setters(code: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut before = "";
    for method in code.split("pub fn ") {
        let (name, parameters) = method.split_once('(').unwrap_or_default();
        let parameters = parameters.trim_start();
        let signature = parameters.split('{').next().unwrap_or_default();
        let takes_it = parameters.starts_with("mut self") || parameters.starts_with("self");
        let is_hidden = before.trim_end().ends_with("#[doc(hidden)]");
        if takes_it && signature.contains("-> Self") && !is_hidden {
            names.push(name.split('<').next().unwrap_or_default().to_owned());
        }
        before = method;
    }
    names
}

#[test]
fn every_file_on_the_way_of_a_request_is_there() {
    let quoted = REQUEST.split('`').skip(1).step_by(2);
    let files: Vec<_> = quoted
        .filter(|it| it.rsplit_once('.').is_some_and(|(_, kind)| kind == "rs"))
        .collect();
    assert!(files.contains(&"router.rs"), "{files:?}");
    let missing: Vec<_> = files.iter().filter(|file| !src(file).is_file()).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
