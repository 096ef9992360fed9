//! Checks that what the manual says of the code is there.

use std::{fs, path::PathBuf};

const FIGURES: &str = include_str!("../../src/manual/figures.md");
const PROMISES: &str = include_str!("../../src/manual/promises.md");
const README: &str = include_str!("../../README.md");
const REQUEST: &str = include_str!("../../src/manual/request.md");
const TUNING: &str = include_str!("../../src/manual/tuning.md");

/// Each builder as the manual links it, and the files that have its settings.
const BUILDERS: [(&str, &[&str]); 4] = [
    (
        "RouterBuilder",
        &["router/builder.rs", "router/settings.rs"],
    ),
    ("Provisioner", &["provision.rs"]),
    ("neon::NeonBuilder", &["neon/builder.rs"]),
    ("catalog::PostgresBuilder", &["catalog/postgres/builder.rs"]),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn src(file: &str) -> PathBuf {
    root().join("src").join(file)
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
fn every_file_named_on_the_page_about_a_request_exists() {
    let quoted = REQUEST.split('`').skip(1).step_by(2);
    let files: Vec<_> = quoted
        .filter(|it| it.rsplit_once('.').is_some_and(|(_, kind)| kind == "rs"))
        .collect();
    assert!(files.contains(&"router.rs"), "{files:?}");
    let missing: Vec<_> = files.iter().filter(|file| !src(file).is_file()).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// The rows of the table below a heading of a page, without the two lines that head it.
fn rows_below(heading: &str, page: &'static str) -> Vec<&'static str> {
    let (_, section) = page.split_once(heading).unwrap();
    let same_level = heading.split_inclusive(' ').next().unwrap();
    let section = section.split(same_level).next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with('|'));
    rows.skip(2).collect()
}

#[test]
fn every_test_named_on_the_page_of_promises_exists() {
    let promises = rows_below("\n# Promises and their tests\n", PROMISES);
    assert!(promises.len() >= 10, "{promises:#?}");
    let mut missing = Vec::new();
    for promise in promises {
        let tests = promise.rsplit(" | ").next().unwrap();
        let names: Vec<_> = tests.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "nothing proves: {promise}");
        missing.extend(names.into_iter().filter(|name| !is_a_test(name)));
    }
    assert_eq!(missing, Vec::<&str>::new(), "named as a test");
}

/// Returns whether `name` is a test of this binary (`module::name`), all of a module (`module::…`), or a file with
/// tests.
fn is_a_test(name: &str) -> bool {
    let Some((module, test)) = name.split_once("::") else {
        let file = fs::read_to_string(root().join(name));
        return file.is_ok_and(|code| tests_in(&code).next().is_some());
    };
    let is_run = include_str!("main.rs").contains(&format!("\nmod {module};\n"));
    let file = fs::read_to_string(root().join("tests/it").join(format!("{module}.rs")));
    let has_it = |code: String| tests_in(&code).any(|it| test == "…" || test == it);
    is_run && file.is_ok_and(has_it)
}

/// The names of the functions that are marked as tests.
fn tests_in(code: &str) -> impl Iterator<Item = &str> {
    let marked = code
        .match_indices("#[test]\n")
        .chain(code.match_indices("#[tokio::test"));
    marked.filter_map(|(at, _)| {
        let (_, function) = code[at..].split_once("fn ")?;
        function.split('(').next()
    })
}

#[test]
fn every_figure_that_the_readme_quotes_is_on_the_page_of_figures() {
    let numbers = |text: &'static str| {
        let all = text.split(|it: char| !it.is_ascii_digit() && it != '.' && it != ',');
        let all = all.map(|it| it.trim_matches(['.', ',']));
        all.filter(|it| it.len() > 1)
    };
    let known: Vec<_> = numbers(FIGURES).collect();
    let rows = rows_below("\n## Figures\n", README).into_iter();
    let quoted: Vec<_> = rows.flat_map(numbers).collect();
    assert!(quoted.len() > 10, "the test reads too little: {quoted:?}");
    let unknown: Vec<_> = quoted.iter().filter(|it| !known.contains(it)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}
