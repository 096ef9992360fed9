//! The table in the manual is the one in the code.

use std::fmt::Debug;

use serde::de::DeserializeOwned;
use tenantry::{
    ErrorKind,
    emulator::{Fault, Reason, Stop},
};

use super::table::{Cells, Event, Outcome, Row, State, TABLE};

const MANUAL: &str = include_str!("../../../src/manual/cold_start.md");

#[test]
fn the_manual_has_the_table_that_is_tested() {
    let table = markdown();
    let apart = format!("\n\n{table}\n"); // with nothing before or after it
    assert!(MANUAL.contains(&apart), "to be copied:\n{table}");
}

#[test]
fn nothing_that_the_emulator_can_do_is_missing_in_the_table() {
    let tested: Vec<_> = TABLE
        .iter()
        .copied()
        .flatten()
        .flat_map(|row| row.events)
        .collect();
    let is_tested = |name: &str| {
        let is_it = |tested: &dyn Debug| format!("{tested:?}").starts_with(name);
        tested.iter().any(|event| match event {
            Event::Fault(fault) => is_it(fault),
            Event::Refused(reason, _) => is_it(reason) || name == "WakeRefused",
            Event::Stop(how) => is_it(how),
            _ => false,
        })
    };
    let all = [
        variants::<Fault>(),
        variants::<Reason>(),
        variants::<Stop>(),
    ]
    .concat();
    assert!(all.contains(&"ComputeSilent".to_owned()), "{all:?}");
    let missing: Vec<_> = all.iter().filter(|name| !is_tested(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// Returns the names of an enum's variants, from serde's error about an unknown one.
fn variants<T: DeserializeOwned + Debug>() -> Vec<String> {
    let message = serde_json::from_str::<T>("\"none\"")
        .unwrap_err()
        .to_string();
    let names = message.split('`').skip(3).step_by(2);
    names.map(camel).collect()
}

fn camel(snake: &str) -> String {
    let words = snake.split('_').map(|word| {
        let (first, rest) = word.split_at(1);
        first.to_uppercase() + rest
    });
    words.collect()
}

/// All rows, as the manual has them.
fn markdown() -> String {
    let head = State::ALL.map(State::name).join(" | ");
    let lines = TABLE.iter().copied().flatten().map(line);
    format!(
        "| what happens | {head} |\n|---|---|---|---|---|\n{}",
        lines.collect::<String>()
    )
}

fn line(row: &Row) -> String {
    let cells = State::ALL.map(|state| row.cells(state).map_or_else(|| "–".to_owned(), cell));
    format!("| {} | {} |\n", row.what, cells.join(" | "))
}

fn cell(cells: Cells) -> String {
    let [get, read, transaction] = cells.map(word);
    if get == read && read == transaction {
        get
    } else if read == transaction {
        format!("`get`: {get}; else {read}")
    } else if get == read {
        format!("`transaction`: {transaction}; else {read}")
    } else {
        format!("{get} / {read} / {transaction}")
    }
}

fn word(outcome: Outcome) -> String {
    match outcome {
        Outcome::Rows => "rows".to_owned(),
        Outcome::RowsOnceHeard => "rows*".to_owned(),
        Outcome::OwnError => "own error".to_owned(),
        Outcome::NoAnswer => "no answer".to_owned(),
        Outcome::Fails(kind @ ErrorKind::Timeout(_), _) => format!("`{kind:?}`"),
        Outcome::Fails(kind, stage) => format!("`{kind:?}` at `{stage:?}`"),
    }
}
