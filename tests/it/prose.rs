//! The rules of our prose that a program can see.

use std::{fs, path::Path};

/// Words and phrases that name no actor, or stand for a plainer word.
const VAGUE: [&str; 7] = [
    "whoever",
    "somebody",
    "everybody",
    "those who",
    "whom",
    "meanwhile",
    "all the same",
];
/// Most uses of all of them together, in all of these folders and the README.
const MOST_VAGUE: usize = 2;
/// Folders whose texts are checked.
const FOLDERS: [&str; 3] = ["src", "benches", "examples"];
/// Longest line, in characters.
const LONGEST: usize = 120;

/// Returns every file of these folders with its path, and the README.
fn texts() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut texts = vec![(
        "README.md".to_owned(),
        fs::read_to_string(root.join("README.md")).unwrap(),
    )];
    let mut folders: Vec<_> = FOLDERS.iter().map(|folder| root.join(folder)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().display().to_string();
                texts.push((name, fs::read_to_string(path).unwrap()));
            }
        }
    }
    assert!(texts.len() > 200, "{} texts were read", texts.len());
    texts
}

/// Returns the places, with the line, of every line that `is_wrong`.
fn lines_where(is_wrong: impl Fn(&str, &str) -> bool) -> Vec<String> {
    let texts = texts();
    let places = texts.iter().flat_map(|(name, text)| {
        let lines = text.lines().enumerate();
        let wrong = lines.filter(|(_, line)| is_wrong(name, line));
        wrong.map(move |(at, line)| format!("{name}:{}: {}", at + 1, line.trim()))
    });
    places.collect()
}

/// Returns whether `text` has `phrase` as words of their own.
fn has_phrase(text: &str, phrase: &str) -> bool {
    let text = text.to_lowercase();
    text.match_indices(phrase).any(|(at, _)| {
        let is_letter = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        !is_letter(text[..at].chars().next_back())
            && !is_letter(text[at + phrase.len()..].chars().next())
    })
}

#[test]
fn actors_are_named() {
    let vague = lines_where(|_, line| VAGUE.iter().any(|phrase| has_phrase(line, phrase)));
    assert!(vague.len() <= MOST_VAGUE, "{vague:#?}");
}

#[test]
fn no_line_of_documentation_begins_with_a_question_word() {
    let questions = [
        "What", "Who", "Whom", "Whose", "Where", "When", "Why", "How", "Which", "Whether",
    ];
    let begins = |line: &str| {
        let line = line.trim_start();
        let doc = line
            .strip_prefix("///")
            .or_else(|| line.strip_prefix("//!"));
        let word = doc.and_then(|doc| doc.split_whitespace().next());
        word.is_some_and(|word| questions.contains(&word))
    };
    assert!(begins("    /// What holds"), "the test sees such a line");
    assert!(!begins("/// Whatever"));
    assert_eq!(lines_where(|_, line| begins(line)), Vec::<String>::new());
}

#[test]
fn lines_fit_on_a_screen() {
    let is_too_long = |name: &str, line: &str| {
        let is_page = Path::new(name).extension().is_some_and(|it| it == "md");
        let text = line
            .trim_start()
            .trim_start_matches(['/', '!'])
            .trim_start();
        // Rows of tables, links and samples of output cannot be broken, nor can strings.
        let is_whole = text.starts_with('|') || line.contains("](http") || line.contains(" | ");
        let is_prose = is_page || line.trim_start().starts_with("//");
        is_prose && !is_whole && line.chars().count() > LONGEST
    };
    assert!(is_too_long("src/a.rs", &format!("/// {}", "a ".repeat(60))));
    assert_eq!(lines_where(is_too_long), Vec::<String>::new());
}
