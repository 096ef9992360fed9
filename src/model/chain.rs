//! Formats an error for people: what happened and its causes, in one line.

use std::{error::Error as StdError, fmt, iter::successors};

use tokio_postgres::error::{DbError, Severity};

/// Most characters of a Postgres message that are repeated.
const LONGEST_WORDS: usize = 400;

/// Writes `err` and its causes, each of them once.
pub(crate) fn write(f: &mut fmt::Formatter<'_>, err: &(dyn StdError + 'static)) -> fmt::Result {
    let mut written = err.to_string();
    f.write_str(&written)?;
    for cause in successors(err.source(), |err| (*err).source()) {
        let text = text_of(cause);
        if written.contains(&text) {
            continue;
        }
        write!(f, ": {text}")?;
        written.push_str(&text);
    }
    Ok(())
}

/// Returns the text of one cause, without its own causes.
fn text_of(cause: &(dyn StdError + 'static)) -> String {
    let driver = cause.downcast_ref::<tokio_postgres::Error>();
    let said = driver.and_then(tokio_postgres::Error::as_db_error);
    match said.or_else(|| cause.downcast_ref()) {
        Some(said) => words(said),
        None => cause.to_string(),
    }
}

/// Returns Postgres's own words: severity, message, SQLSTATE, and its hint if that is about the statement's text.
///
/// DETAIL and CONTEXT are left out, because they hold rows. Values that messages about data quote are left out too.
pub(crate) fn words(said: &DbError) -> String {
    let (code, message) = (said.code().code(), said.message());
    let (class, _) = code.split_at_checked(2).unwrap_or_default();
    // An error that ends a session is about settings and never about rows.
    let is_fatal = said.severity() == "FATAL" || said.parsed_severity() == Some(Severity::Fatal);
    let quotes_data = !is_fatal && (class == "22" || message.starts_with("unterminated"));
    let message = if quotes_data {
        without_quotes(message)
    } else {
        message.to_owned()
    };
    let hint = said.hint().filter(|_| class == "42" && !quotes_data);
    let hint = hint.map(|it| format!("; {it}")).unwrap_or_default();
    let message: String = message.chars().take(LONGEST_WORDS).collect();
    let words = format!("{}: {message} (SQLSTATE {code}{hint})", said.severity());
    words.chars().filter(|it| !it.is_control()).collect()
}

/// Returns `text` with `…` in place of what is between its first and last quotes.
fn without_quotes(text: &str) -> String {
    let (Some(first), Some(last)) = (text.find('"'), text.rfind('"')) else {
        return text.to_owned();
    };
    format!("{}\"…\"{}", &text[..first], &text[last + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_message_about_data_quotes_is_left_out_whatever_it_is() {
        for (said, told) in [
            (
                "invalid input syntax for type uuid: \"4\"1\"",
                "invalid input syntax for type uuid: \"…\"",
            ),
            (
                "value \"99999999999\" is out of range for type integer",
                "value \"…\" is out of range for type integer",
            ),
            ("division by zero", "division by zero"),
        ] {
            assert_eq!(without_quotes(said), told);
        }
    }
}
