//! Detects whether SQL text may end a transaction, by the first words of its statements.

use crate::connection::lexer::{Lexer, Token};

/// Reads SQL text as it passes, in pieces of any size.
///
/// It detects every end. If servers read a text in different ways, by version or setting, it may also report an end
/// that is none.
#[derive(Debug)]
pub(super) struct Statements {
    place: Place,
    lexer: Lexer,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Place {
    /// Before the text, in the name of a prepared statement.
    Name,
    /// At the start of a statement.
    Start,
    /// After ROLLBACK, which may still turn out to be a rollback to a savepoint.
    Rollback,
    /// In the rest of a statement.
    Rest,
    /// After the end of the text.
    Over,
}

impl Statements {
    pub(in crate::connection) fn new() -> Self {
        Self {
            place: Place::Over,
            lexer: Lexer::new(),
        }
    }

    /// Begins the body of a simple query.
    pub(super) fn query(&mut self) {
        *self = Self {
            place: Place::Start,
            ..Self::new()
        };
    }

    /// Begins the body of a request to prepare a statement.
    pub(super) fn parse(&mut self) {
        *self = Self {
            place: Place::Name,
            ..Self::new()
        };
    }

    /// Begins a body that has no text.
    pub(super) fn skip(&mut self) {
        self.place = Place::Over;
    }

    /// Reads the next bytes, and returns whether they show a statement that may end a transaction.
    pub(super) fn ends_in(&mut self, bytes: &[u8]) -> bool {
        let Self { place, lexer } = self;
        let mut ends = false;
        let mut bytes = bytes.iter();
        if *place == Place::Name && bytes.any(|&byte| byte == 0) {
            *place = Place::Start;
        }
        for &byte in bytes {
            let mut judge = |token| ends |= place.after(token);
            match byte {
                0 => {
                    lexer.end(&mut judge);
                    ends |= *place == Place::Rollback;
                    *place = Place::Over;
                }
                _ => lexer.read(byte, &mut judge),
            }
            if *place == Place::Over {
                break;
            }
        }
        ends
    }
}

impl Place {
    /// Moves past `token`, and returns whether its statement may end a transaction.
    fn after(&mut self, token: Token) -> bool {
        let word = match &token {
            Token::Word(word, length) => &word[..*length],
            _ => b"",
        };
        let (place, ends) = match (*self, token) {
            (Self::Name | Self::Over, _) => (*self, false),
            (_, Token::Uncertain) => (Self::Over, true),
            (_, Token::Semicolon) => (Self::Start, *self == Self::Rollback),
            (Self::Start, _) if word == b"rollback" => (Self::Rollback, false),
            (Self::Start, _) => (Self::Rest, is_end(word)),
            (Self::Rollback, _) if matches!(word, b"work" | b"transaction") => (*self, false),
            (Self::Rollback, _) => (Self::Rest, word != b"to"),
            (Self::Rest, _) => (Self::Rest, false),
        };
        *self = place;
        ends
    }
}

/// Returns whether a statement that begins with `word` may end a transaction. EXECUTE may run a COMMIT that the driver
/// prepared, and PREPARE may be PREPARE TRANSACTION.
fn is_end(word: &[u8]) -> bool {
    matches!(
        word,
        b"abort" | b"commit" | b"end" | b"execute" | b"prepare"
    )
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use super::*;

    /// Returns whether `sql` may end a transaction, read in pieces of any size.
    fn ends(sql: &str) -> bool {
        let text = [sql.as_bytes(), &[0]].concat();
        let mut seen: Vec<_> = (1..=text.len())
            .map(|size| {
                let mut statements = Statements::new();
                statements.query();
                let pieces = text.chunks(size);
                pieces.fold(false, |ends, piece| ends | statements.ends_in(piece))
            })
            .collect();
        seen.dedup();
        assert_eq!(seen.len(), 1, "{sql}: however it is cut");
        seen[0]
    }

    #[test]
    fn whatever_ends_a_transaction_is_seen() {
        for sql in [
            "COMMIT",
            "commit and chain",
            " ;\n\tEnd;",
            "ABORT",
            "PREPARE TRANSACTION 'x'",
            "ROLLBACK",
            "rollback;",
            "ROLLBACK WORK",
            "ROLLBACK TRANSACTION AND CHAIN",
            "INSERT INTO t VALUES (1); COMMIT",
            "INSERT INTO t VALUES (1);COMMIT;BEGIN",
            "ROLLBACK; INSERT INTO t VALUES (1)",
            "/* why */ COMMIT",
            "/* why /* and */ how */ COMMIT",
            "-- why\nCOMMIT",
            "SELECT 1; -- why\n /**/COMMIT--",
            "ROLLBACK/* all of it */",
            "INSERT INTO t VALUES ('a;-b'); COMMIT",
            "INSERT INTO t VALUES ('a;/*b'); COMMIT",
            "INSERT INTO t VALUES ('a--b'); COMMIT",
            "INSERT INTO t VALUES ('it''s /*'); COMMIT",
            "INSERT INTO t VALUES (E'\\'/*'); COMMIT",
            "INSERT INTO t VALUES (E'\\\\'); COMMIT --'",
            "INSERT INTO t VALUES (E'a'\n'\\'--'); COMMIT",
            "INSERT INTO t VALUES ($$--'$$); COMMIT",
            "INSERT INTO t VALUES ($a$ $$ $b$ $aa$ $$a$); COMMIT",
            "INSERT INTO \"t--'\" VALUES (1); COMMIT",
            "SELECT a$b$c; COMMIT; SELECT d$b$e",
            "SELECT 1$b$--$b$; COMMIT",
            "SELECT 2*-/* 3 */4/*/ 5 */; COMMIT",
            "SELECT 4-/**/2; COMMIT",
            "SELECT /**//1; COMMIT",
            "EXECUTE s1",
            "\x0bCOMMIT",
            // The quote ends the string or not, depending on standard_conforming_strings.
            "INSERT INTO t VALUES ('a\\'); COMMIT --')",
            "INSERT INTO t VALUES ('\\'); COMMIT; SELECT ('')",
            // One token or two, depending on the version.
            "SELECT 1_0$a$; COMMIT; SELECT $a$",
            "SELECT 1e'\\'; COMMIT; SELECT '",
        ] {
            assert!(ends(sql), "{sql}");
        }
    }

    #[test]
    fn what_goes_on_with_it_is_not_an_end() {
        for sql in [
            "",
            "SELECT 1",
            "INSERT INTO commits VALUES (1)",
            "commits",
            "committed_beyond_all_doubt",
            "commit$",
            "SELECT CASE WHEN a THEN b END FROM t",
            "SAVEPOINT commit",
            "ROLLBACK TO s",
            "ROLLBACK/* not all of it */TO s",
            "rollback work to savepoint s",
            "ROLLBACK TRANSACTION\n TO s; SELECT 2",
            "RELEASE s",
            "/* COMMIT */ SELECT 1",
            "-- COMMIT",
            "-- ;COMMIT",
            "/* /* */;COMMIT*/ SELECT 1",
            "SELECT 2*3/1",
            "SELECT $1, 'a;COMMIT', E'\\';COMMIT', $$;COMMIT$$, $a$;COMMIT;$$;COMMIT$a$, 1.5e3",
            "SELECT 'c:\\dir', 'it''s ;COMMIT' FROM \";COMMIT\"",
        ] {
            assert!(!ends(sql), "{sql}");
        }
    }

    #[test]
    fn the_name_in_front_of_a_prepared_text_and_the_types_behind_it_are_not_read() {
        let mut statements = Statements::new();
        statements.parse();
        assert!(!statements.ends_in(b"commit\0SELECT 1\0\0\x01END\0"));
        statements.parse();
        assert!(statements.ends_in(b"s1\0COMMIT\0\0\0"));
        statements.parse();
        assert!(!statements.ends_in(b"s"));
        assert!(!statements.ends_in(b"1\0END"), "it may go on");
        assert!(statements.ends_in(b"\0\0\0"));
        statements.skip();
        assert!(!statements.ends_in(b"COMMIT\0"));
    }

    /// Returns random text of fragments that the lexer treats specially.
    fn junk(rng: &mut Rng) -> String {
        const PARTS: &[&str] = &[
            "'", "''", "\"", "\\", "$", "$$", "$a$", "--", "-", "/*", "*/", "/", "*", ";", "\n",
            " ", "a", "E", "1", "COMMIT", "é", "END;",
        ];
        (0..rng.usize(..8))
            .map(|_| PARTS[rng.usize(..PARTS.len())])
            .collect()
    }

    /// Returns a literal, a quoted name or a comment with random content that does not end it early.
    fn piece(rng: &mut Rng) -> String {
        let inside = junk(rng);
        match rng.u8(..7) {
            0 => format!(", '{}'", inside.replace('\'', "''")),
            1 => {
                let inside = inside.replace('\\', "\\\\").replace('\'', "\\'");
                format!(", E'{inside}'")
            }
            2 => format!(", $q${inside}$q$"),
            3 => format!(", $${}$$", inside.replace('$', "€")),
            4 => format!(", \"{}\"", inside.replace('"', "\"\"")),
            5 => format!(" --{}\n", inside.replace('\n', " ")),
            _ => format!(" /*{} /*nested*/ */", inside.replace('/', "|")),
        }
    }

    #[test]
    fn an_end_is_seen_behind_any_literals_and_comments() {
        let ends_of_it = [
            "COMMIT",
            "rollback",
            "End;",
            "abort -- all",
            "ROLLBACK /**/",
        ];
        for seed in 0..3000 {
            let rng = &mut Rng::with_seed(seed);
            let mut statement = || -> String {
                let pieces = rng.usize(..5);
                let pieces: String = (0..pieces).map(|_| piece(rng)).collect();
                format!("SELECT{pieces} AS x;")
            };
            let before = statement() + &statement();
            let end = ends_of_it[rng.usize(..ends_of_it.len())];
            let sql = format!(
                "{before} {} {end}",
                ["", "/* ; */", "--;\n"][rng.usize(..3)]
            );
            let mut statements = Statements::new();
            statements.query();
            let text = [sql.as_bytes(), &[0]].concat();
            assert!(statements.ends_in(&text), "{seed}: {sql}");
        }
    }
}
