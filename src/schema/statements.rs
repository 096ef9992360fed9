//! A look at the SQL of a step before it runs: statements that cannot work there are refused.
//!
//! A text that servers may read in different ways passes. The runner finds out what it did.

use crate::connection::lexer::{Lexer, Token};

/// Most words of a statement that are kept.
const MOST_WORDS: usize = 64;

/// One statement, by its words outside of strings, quoted names and comments.
#[derive(Debug, Default)]
struct Statement(Vec<String>);

impl Statement {
    fn word(&self, at: usize) -> &str {
        self.0.get(at).map_or("", String::as_str)
    }

    fn has(&self, word: &str) -> bool {
        self.0.iter().any(|it| it == word)
    }

    /// Returns whether the statement begins or ends a transaction.
    fn is_transaction_control(&self) -> bool {
        match self.word(0) {
            "begin" | "start" | "commit" | "end" | "abort" => true,
            "rollback" => !self.has("to"),
            "prepare" => self.word(1) == "transaction",
            _ => false,
        }
    }

    /// Returns whether Postgres refuses the statement in a transaction.
    fn runs_outside_only(&self) -> bool {
        match self.word(0) {
            "vacuum" => true,
            "create" | "drop" if matches!(self.word(1), "database" | "tablespace") => true,
            "create" | "drop" | "reindex" => self.has("concurrently"),
            "alter" if self.word(1) == "system" => true,
            "alter" => self.has("detach") && self.has("concurrently"),
            _ => false,
        }
    }

    fn copies_from_client(&self) -> bool {
        self.word(0) == "copy" && self.has("from") && self.has("stdin")
    }
}

/// Returns the statements of `sql`, and whether the lexer understood all of it.
fn split(sql: &str) -> (Vec<Statement>, bool) {
    let (mut statements, mut current) = (Vec::new(), None::<Statement>);
    let mut is_certain = true;
    let mut lexer = Lexer::new();
    let mut seen = |token: Token| {
        if !is_certain {
            return;
        }
        match token {
            Token::Semicolon => statements.extend(current.take()),
            Token::Uncertain => is_certain = false,
            Token::Other => {
                current.get_or_insert_default();
            }
            Token::Word(word, length) => {
                let words = &mut current.get_or_insert_default().0;
                if words.len() < MOST_WORDS {
                    words.push(String::from_utf8_lossy(&word[..length]).into_owned());
                }
                // The body of a function in SQL's own syntax has statements of its own.
                is_certain = !words.ends_with(&["begin".to_owned(), "atomic".to_owned()]);
            }
        }
    };
    sql.bytes().for_each(|byte| lexer.read(byte, &mut seen));
    lexer.end(&mut seen);
    statements.extend(current);
    (statements, is_certain)
}

/// Checks the SQL of a step that runs in a transaction.
pub(super) fn check_in_transaction(sql: &str) -> Result<(), String> {
    let (statements, is_certain) = split(sql);
    let whole = statements.len() - usize::from(!is_certain && !statements.is_empty());
    for statement in &statements[..whole] {
        if statement.is_transaction_control() {
            return Err(format!(
                "it runs in a transaction of its own and must not begin or end one, but has the statement {}",
                statement.word(0).to_uppercase()
            ));
        }
        if statement.runs_outside_only() {
            return Err(format!(
                "Postgres does not run its statement {} in a transaction: add `.outside_transaction()`, or the line \
                 `-- tenantry: outside-transaction`",
                statement.word(0).to_uppercase()
            ));
        }
    }
    check_copy(&statements)
}

/// Checks the SQL of a step that runs outside of a transaction.
pub(super) fn check_outside(sql: &str) -> Result<(), String> {
    let (statements, is_certain) = split(sql);
    if is_certain && statements.len() != 1 {
        return Err(format!(
            "it runs outside of a transaction, so it must be one statement, but has {}; make each a step of its own",
            statements.len()
        ));
    }
    if is_certain && statements[0].is_transaction_control() {
        return Err("it must not begin or end a transaction".to_owned());
    }
    check_copy(&statements)
}

fn check_copy(statements: &[Statement]) -> Result<(), String> {
    if statements.iter().any(Statement::copies_from_client) {
        return Err(
            "it has COPY … FROM STDIN, for which a step has no data; use a step of code".to_owned(),
        );
    }
    Ok(())
}

/// Returns whether `sql` builds an index beside other work, which leaves an invalid index behind if it is stopped.
pub(super) fn builds_index(sql: &str) -> bool {
    let (statements, _) = split(sql);
    let is_build =
        |it: &Statement| it.word(0) == "create" && it.has("index") && it.has("concurrently");
    statements.first().is_some_and(is_build)
}

/// Returns whether `sql` has no statement.
pub(super) fn is_empty(sql: &str) -> bool {
    let (statements, is_certain) = split(sql);
    is_certain && statements.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_run_in_a_transaction_is_refused() {
        for (sql, why) in [
            ("SELECT 1; COMMIT; SELECT 2", "COMMIT"),
            ("begin; select 1", "BEGIN"),
            ("/* a */ END", "END"),
            ("START TRANSACTION", "START"),
            ("ROLLBACK", "ROLLBACK"),
            ("PREPARE TRANSACTION 'a'", "PREPARE"),
            (
                "CREATE UNIQUE INDEX CONCURRENTLY i ON t (a)",
                "outside_transaction",
            ),
            ("DROP INDEX CONCURRENTLY i", "outside_transaction"),
            (
                "REINDEX (VERBOSE) INDEX CONCURRENTLY i",
                "outside_transaction",
            ),
            ("VACUUM t", "outside_transaction"),
            ("CREATE DATABASE d", "outside_transaction"),
            ("ALTER SYSTEM SET a = 1", "outside_transaction"),
            ("COPY t FROM STDIN", "COPY"),
        ] {
            let err = check_in_transaction(sql).unwrap_err();
            assert!(err.contains(why), "{sql}: {err}");
        }
    }

    #[test]
    fn what_only_looks_like_that_passes() {
        for sql in [
            "CREATE TABLE t (a text DEFAULT '; COMMIT;')",
            "DO $$ BEGIN PERFORM 1; END $$",
            "CREATE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 1; END; SELECT 1",
            "SAVEPOINT s; ROLLBACK TO s; RELEASE s",
            "PREPARE p AS SELECT 1; REFRESH MATERIALIZED VIEW CONCURRENTLY v",
            "-- COMMIT;\nSELECT 1 /* ; VACUUM */",
            "CREATE TABLE \"commit\" (\"end\" int); INSERT INTO concurrently VALUES (1)",
            "COPY t TO STDOUT; SELECT CASE WHEN true THEN 1 END",
        ] {
            assert_eq!(check_in_transaction(sql), Ok(()), "{sql}");
        }
    }

    #[test]
    fn a_step_outside_of_a_transaction_is_one_statement() {
        assert_eq!(
            check_outside("-- so\nCREATE INDEX CONCURRENTLY i ON t (a); "),
            Ok(())
        );
        for sql in ["VACUUM a; VACUUM b", "COMMIT", "-- nothing"] {
            check_outside(sql).unwrap_err();
        }
        assert!(builds_index("create unique index concurrently i on t (a)"));
        assert!(!builds_index("DROP INDEX CONCURRENTLY i"));
        assert!(is_empty(" ; -- a\n /* b */") && !is_empty("''"));
    }
}
