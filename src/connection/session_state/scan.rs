//! Detects whether SQL text may leave state in its session.

use super::call::Call;
use crate::connection::status::Residue;

/// Reads SQL text as it passes, in pieces of any size.
///
/// It knows statements that leave nothing by their first word, and functions that leave state by their name. If it is
/// not certain how Postgres reads the text, it reports that state may be left.
#[derive(Debug)]
pub(super) struct Scan {
    place: Place,
    step: Step,
    /// The call of `set_config` that is being read.
    call: Option<Call>,
    /// `true` if the last word was INTO, or LOCAL or GLOBAL after it.
    into: bool,
    /// `true` if a backslash in a string may escape the quote after it.
    escapes: bool,
    /// `true` if that also holds for strings without the prefix `E`.
    pub(super) escapes_by_default: bool,
    /// The previous byte; 0 if it cannot belong to the next sign.
    last: u8,
    word: [u8; Self::LONGEST],
    length: usize,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Place {
    /// Between words, or in a word.
    Code,
    /// In a double-quoted name, whose words count.
    Quoted,
    /// After a dollar sign that is not part of a word.
    Dollar,
    String,
    /// In a comment that ends with its line.
    Line,
    /// In a block comment, with the number of open ones.
    Block(u32),
    /// After the end of the text.
    Over,
}

/// The position of a word in its statement.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
    First,
    /// After SET.
    Set,
    /// After SET LOCAL and its like, where `local` could still be the name of a setting: `SET local.x = 1`.
    Local,
    /// After DISCARD.
    Discard,
    /// After PREPARE.
    Prepare,
    /// After PREPARE TRANSACTION, where `transaction` could still be the name of a statement.
    Transaction,
    Rest,
}

impl Scan {
    /// Most bytes of a word that are kept. No word that matters is longer.
    const LONGEST: usize = 32;

    pub(super) fn new() -> Self {
        Self {
            place: Place::Over,
            step: Step::First,
            call: None,
            into: false,
            escapes: false,
            escapes_by_default: false,
            last: 0,
            word: [0; Self::LONGEST],
            length: 0,
        }
    }

    /// Begins a text.
    pub(super) fn begin(&mut self) {
        *self = Self {
            place: Place::Code,
            escapes: self.escapes_by_default,
            escapes_by_default: self.escapes_by_default,
            ..Self::new()
        };
    }

    /// Skips a body that has no SQL text.
    pub(super) fn skip(&mut self) {
        self.place = Place::Over;
    }

    /// Reads the next bytes, and returns the residue that they may leave.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Residue {
        let mut residue = Residue::NONE;
        for &byte in bytes {
            if self.place == Place::Over {
                break;
            }
            residue = residue.and(self.pass(byte));
        }
        residue
    }

    fn pass(&mut self, byte: u8) -> Residue {
        let last = std::mem::replace(&mut self.last, byte);
        match (self.place, byte) {
            (_, 0) => return self.end(),
            (Place::Code | Place::Quoted, _) => return self.code(last, byte),
            (Place::Dollar, _) => {
                self.place = Place::Code;
                let is_parameter = byte.is_ascii_digit();
                return self.code(last, byte).and(unless(is_parameter)); // else a string in dollar quotes
            }
            (Place::String, b'\\') => return unless(!self.escapes),
            (Place::String, b'\'') | (Place::Line, b'\n' | b'\r') => self.place = Place::Code,
            (Place::Block(open), _) => self.comment(open, last, byte),
            (Place::String | Place::Line | Place::Over, _) => {}
        }
        Residue::NONE
    }

    /// Reads a byte of a comment. Comments nest.
    fn comment(&mut self, open: u32, last: u8, byte: u8) {
        self.place = match (last, byte) {
            (b'*', b'/') if open == 1 => Place::Code,
            (b'*', b'/') => Place::Block(open - 1),
            (b'/', b'*') => Place::Block(open.saturating_add(1)),
            _ => return,
        };
        self.last = 0;
    }

    fn code(&mut self, last: u8, byte: u8) -> Residue {
        let in_word = byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii();
        if in_word || byte == b'$' && self.length > 0 {
            return self.spell(byte);
        }
        let is_prefix = self.length == 1 && self.word[0] == b'e';
        let residue = self.word_ends();
        if self.place == Place::Quoted {
            if byte == b'"' {
                self.place = Place::Code;
            }
            return residue;
        }
        match (last, byte) {
            (b'-', b'-') => self.place = Place::Line,
            (b'/', b'*') => (self.place, self.last) = (Place::Block(1), 0),
            (_, b'$') => self.place = Place::Dollar,
            (_, b'"') => self.place = Place::Quoted,
            (_, b'\'') => {
                self.place = Place::String;
                self.escapes |= is_prefix;
            }
            _ => {}
        }
        // U&"…" may write letters as code points.
        let is_certain = last != b'&' || !matches!(byte, b'"' | b'\'');
        residue.and(unless(is_certain)).and(self.sign(byte))
    }

    /// Reads a byte of a word. Digits before a word belong to a number or a parameter.
    fn spell(&mut self, byte: u8) -> Residue {
        if self.length == 0 && byte.is_ascii_digit() {
            return self.argue(byte, false);
        }
        if let Some(place) = self.word.get_mut(self.length) {
            *place = byte.to_ascii_lowercase();
        }
        self.length = (self.length + 1).min(Self::LONGEST);
        Residue::NONE
    }

    /// Reads white space, or a sign that belongs to no word.
    fn sign(&mut self, byte: u8) -> Residue {
        if byte.is_ascii_whitespace() || byte == b'"' {
            return Residue::NONE;
        }
        if byte == b';' {
            return self.statement_ends();
        }
        let is_name = self.step == Step::Local && matches!(byte, b'.' | b'=');
        self.argue(byte, false).and(unless(!is_name))
    }

    fn statement_ends(&mut self) -> Residue {
        (self.step, self.into) = (Step::First, false);
        unless(self.call.take().is_none())
    }

    /// Ends the text.
    fn end(&mut self) -> Residue {
        let is_whole = matches!(self.place, Place::Code | Place::Line);
        self.place = Place::Over;
        let last = self.word_ends();
        last.and(self.statement_ends()).and(unless(is_whole))
    }

    /// Judges the word that has ended, if there is one.
    fn word_ends(&mut self) -> Residue {
        let (word, length) = (self.word, std::mem::take(&mut self.length));
        let word = &word[..length];
        if word.is_empty() {
            return Residue::NONE;
        }
        let by_place = self.judge_by_place(word);
        by_place
            .and(self.argue(b'a', word == b"true"))
            .and(self.judge(word))
    }

    fn judge_by_place(&mut self, word: &[u8]) -> Residue {
        let (step, residue) = match (self.step, word) {
            (Step::First, b"set") => (Step::Set, Residue::NONE),
            (Step::First, b"discard") => (Step::Discard, Residue::NONE),
            (Step::First, b"prepare") => (Step::Prepare, Residue::NONE),
            (Step::First, b"deallocate") => (Step::Rest, Residue::FORGETS),
            (Step::First, b"load") => (Step::Rest, Residue::LASTING),
            (Step::First, _) => (Step::Rest, unless(is_harmless(word))),
            (Step::Set, b"local" | b"transaction" | b"constraints") => (Step::Local, Residue::NONE),
            (Step::Set, _) => (Step::Rest, Residue::RESETTABLE),
            (Step::Discard, b"temp" | b"temporary" | b"plans" | b"sequences") => {
                (Step::Rest, Residue::RESETTABLE)
            }
            (Step::Discard, _) => (Step::Rest, Residue::FORGETS),
            (Step::Prepare, b"transaction") => (Step::Transaction, Residue::NONE),
            (Step::Prepare | Step::Transaction, _) => (Step::Rest, Residue::LASTING),
            (Step::Local | Step::Rest, _) => (Step::Rest, Residue::NONE),
        };
        self.step = step;
        residue
    }

    /// Judges a word that matters at any position.
    fn judge(&mut self, word: &[u8]) -> Residue {
        let is_temporary = self.into && matches!(word, b"temp" | b"temporary");
        self.into = word == b"into" || self.into && matches!(word, b"local" | b"global");
        if word == b"set_config" {
            let within = self.call.replace(Call::new());
            return unless(within.is_none());
        }
        let locks = contains(word, b"advisory") && !contains(word, b"_xact");
        if locks || is_temporary || word.starts_with(b"pg_temp") {
            return Residue::RESETTABLE;
        }
        if word.starts_with(b"dblink_connect") {
            return Residue::LASTING;
        }
        Residue::NONE
    }

    /// Passes a token to the call of `set_config`, if one is being read.
    fn argue(&mut self, token: u8, is_true: bool) -> Residue {
        let ended = self.call.as_mut().and_then(|it| it.read(token, is_true));
        let Some(is_local) = ended else {
            return Residue::NONE;
        };
        self.call = None;
        unless(is_local)
    }
}

/// Returns no residue if it `is_certain` that nothing is left, and otherwise the residue that a reset undoes.
fn unless(is_certain: bool) -> Residue {
    if is_certain {
        Residue::NONE
    } else {
        Residue::RESETTABLE
    }
}

/// Returns whether a statement that begins with `word` leaves nothing, unless a function in it does.
fn is_harmless(word: &[u8]) -> bool {
    let harmless: &[&[u8]] = &[
        b"select",
        b"insert",
        b"update",
        b"delete",
        b"merge",
        b"with",
        b"values",
        b"table",
        b"begin",
        b"start",
        b"commit",
        b"end",
        b"rollback",
        b"abort",
        b"savepoint",
        b"release",
        b"copy",
        b"show",
        b"fetch",
        b"move",
        b"close",
        b"lock",
        b"notify",
        b"truncate",
        b"analyze",
        b"vacuum",
    ];
    harmless.contains(&word)
}

fn contains(word: &[u8], part: &[u8]) -> bool {
    word.windows(part.len()).any(|it| it == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the residue of `sql`, read in pieces of any size.
    fn left_by(sql: &str, escapes_by_default: bool) -> Residue {
        let text = [sql.as_bytes(), b"\0\0\0SET x = 1"].concat();
        let mut seen: Vec<_> = (1..=text.len())
            .map(|size| {
                let mut scan = Scan::new();
                scan.escapes_by_default = escapes_by_default;
                scan.begin();
                let pieces = text.chunks(size);
                pieces.fold(Residue::NONE, |all, piece| all.and(scan.read(piece)))
            })
            .collect();
        seen.dedup();
        assert_eq!(seen.len(), 1, "{sql}: however it is cut");
        seen[0]
    }

    fn left(sql: &str) -> Residue {
        left_by(sql, false)
    }

    #[test]
    fn plain_statements_leave_nothing() {
        for sql in [
            "",
            "SELECT 1",
            "  (select 1) union (SELECT 2)",
            "SELECT set, temp, \"set_configs\" FROM temp WHERE a = $1 AND b = 'SET ROLE a; SET b'",
            "INSERT INTO t (a) VALUES ($1), ($2::text) RETURNING a$b",
            "UPDATE t SET role = 'it''s', temp = 1 WHERE listen",
            "DELETE FROM t -- SET ROLE a\n WHERE a/b > 2*3 - -1",
            "/* SET /* x */ = 1; SET x */ SELECT E'plain'",
            "WITH a AS (SELECT 1) SELECT * FROM a",
            "SELECT '\\d+' ~ a FROM t",
            "BEGIN READ WRITE; SET LOCAL statement_timeout = 1500",
            "SET /* why */ LOCAL\nROLE alice",
            "SET TRANSACTION READ ONLY; SET CONSTRAINTS ALL DEFERRED",
            "START TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            "SAVEPOINT a; ROLLBACK TO a; RELEASE a; COMMIT; ROLLBACK; ABORT; END",
            "COPY t FROM STDIN",
            "SELECT pg_advisory_xact_lock($1), pg_try_advisory_xact_lock(2)",
            "SELECT set_config('app.user', $1, true)",
            "SELECT SET_CONFIG('app.user', coalesce($1, f(true)), TRUE ), 1",
            "SELECT set_config FROM t",
            "PREPARE TRANSACTION 'x'",
            "LOCK t; NOTIFY a, 'SET'",
        ] {
            assert_eq!(left(sql), Residue::NONE, "{sql}");
        }
    }

    #[test]
    fn whatever_may_leave_something_is_seen() {
        for sql in [
            "SET ROLE alice",
            " ; set x = 1",
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
            "SET local.x = 1",
            "SET \"local\" . x = 1",
            "SELECT 1; SET x TO 1",
            "SELECT 1;/**/SET x TO 1",
            "-- why\nSET x TO 1",
            "RESET ROLE",
            "SELECT set_config('a', 'b', false)",
            "SELECT set_config('a', 'b', $1)",
            "SELECT set_config('a', 'true', not true)",
            "SELECT set_config('a', 'b', 1 = 1 OR true)",
            "SELECT set_config('a', set_config('b', 'c', false), true)",
            "SELECT pg_catalog . \"set_config\" ('a', 'b', false)",
            "SELECT set_config('a', 'b'",
            "SELECT pg_advisory_lock(1)",
            "SELECT pg_try_advisory_lock_shared(1)",
            "UPDATE t SET a = pg_advisory_lock(1)",
            "SELECT 1 INTO TEMP t",
            "SELECT 1 INTO LOCAL TEMPORARY TABLE t",
            "SELECT 1 INTO pg_temp.t",
            "CREATE TEMP TABLE t (a int)",
            "CREATE TABLE t (a int)",
            "LISTEN a",
            "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
            "DO $$ BEGIN END $$",
            "CALL p()",
            "EXECUTE p",
            "EXPLAIN ANALYZE SELECT 1",
            "DISCARD TEMP",
            "whatever",
        ] {
            assert_eq!(left(sql), Residue::RESETTABLE, "{sql}");
        }
    }

    #[test]
    fn what_a_reset_does_not_undo_is_told_from_what_it_does() {
        for sql in [
            "LOAD 'auto_explain'",
            "PREPARE p AS SELECT 1",
            "PREPARE transaction AS SELECT 1",
        ] {
            assert_eq!(left(sql), Residue::LASTING, "{sql}");
        }
        for sql in [
            "DISCARD ALL",
            "DEALLOCATE ALL",
            "deallocate s1",
            "SELECT 1; DISCARD\nALL",
        ] {
            assert_eq!(left(sql), Residue::FORGETS, "{sql}");
        }
        let connects = left("SELECT dblink_connect_u('a', 'b')");
        assert_eq!(connects, Residue::LASTING);
    }

    #[test]
    fn where_the_scan_is_not_certain_something_may_be_left() {
        for sql in [
            "SELECT $$'$$, set_config('a', 'b', false) --'",
            "SELECT $a$ ; $a$",
            "SELECT E'\\'', 1",
            "SELECT e'a' '\\'', 1",
            "SELECT U&\"\\0073et_config\"('a', 'b', false)",
            "SELECT u&'\\0061'",
            "SELECT 'no end",
            "SELECT 1 /* no end",
            "SELECT \"no end",
        ] {
            assert_eq!(left(sql), Residue::RESETTABLE, "{sql}");
        }
        let sql = "SELECT '\\'', set_config('a', 'b', false) --'";
        assert_eq!(left_by(sql, true), Residue::RESETTABLE);
    }
}
