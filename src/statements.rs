//! Whether a text of SQL may end a transaction, as far as the first words of its statements tell.

/// Reads a text as it passes, in pieces of any size.
///
/// It does not know quotes, so it may see an end where there is none; where there is one, it sees it.
#[derive(Debug)]
pub(crate) struct Statements {
    place: Place,
    word: [u8; Self::LONGEST],
    length: usize,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Place {
    /// In front of the text: a prepared statement's name.
    Name,
    /// Where a statement may begin, or a comment.
    Gap,
    /// In a comment of one line.
    Line,
    /// In any other comment, and whether a star was the last of it.
    Block { star: bool },
    /// In the first word of a statement.
    First,
    /// Behind a ROLLBACK, which may yet be one to a savepoint.
    Rollback,
    /// In a word behind it.
    Target,
    /// In the rest of a statement, and whether a star was the last of it.
    Rest { star: bool },
    /// Behind the text.
    Over,
}

impl Statements {
    /// No word that counts is longer.
    const LONGEST: usize = 12;

    pub(crate) fn new() -> Self {
        Self {
            place: Place::Over,
            word: [0; Self::LONGEST],
            length: 0,
        }
    }

    /// Begins the body of a simple query.
    pub(crate) fn query(&mut self) {
        self.place = Place::Gap;
    }

    /// Begins the body of a request to prepare a statement.
    pub(crate) fn parse(&mut self) {
        self.place = Place::Name;
    }

    /// Begins a body that has no text.
    pub(crate) fn skip(&mut self) {
        self.place = Place::Over;
    }

    /// Reads on; says whether a statement that may end a transaction was seen.
    pub(crate) fn ends_in(&mut self, bytes: &[u8]) -> bool {
        let mut ends = false;
        for &byte in bytes {
            if self.place == Place::Over {
                break;
            }
            ends |= self.read(byte);
        }
        ends
    }

    fn read(&mut self, byte: u8) -> bool {
        let in_word = byte.is_ascii_alphanumeric() || byte == b'_';
        if in_word && matches!(self.place, Place::First | Place::Target) {
            if let Some(place) = self.word.get_mut(self.length) {
                *place = byte.to_ascii_lowercase();
            }
            self.length = (self.length + 1).min(Self::LONGEST);
            return false;
        }
        let mut ends = matches!(self.place, Place::First | Place::Target) && self.judge();
        ends |= self.place == Place::Rollback && !in_word && !byte.is_ascii_whitespace();
        self.place = self.after(byte, in_word);
        if matches!(self.place, Place::First | Place::Target) {
            self.word[0] = byte.to_ascii_lowercase();
            self.length = 1;
        }
        ends
    }

    /// Judges the word that has ended, and says whether it ends a transaction.
    fn judge(&mut self) -> bool {
        let (word, first) = (&self.word[..self.length], self.place == Place::First);
        self.place = match (first, word) {
            (true, b"rollback") | (false, b"work" | b"transaction") => Place::Rollback,
            _ => Place::Rest { star: false },
        };
        match self.place {
            Place::Rollback => false,
            _ if first => matches!(word, b"commit" | b"end" | b"abort" | b"prepare"),
            _ => word != b"to",
        }
    }

    /// Where it is after `byte`, if that does not go on with a word.
    fn after(&self, byte: u8, in_word: bool) -> Place {
        match (self.place, byte) {
            (Place::Name, 0)
            | (Place::Line, b'\n' | b'\r')
            | (Place::Block { star: true }, b'/') => Place::Gap,
            (Place::Name, _) => Place::Name,
            (_, 0) => Place::Over,
            (Place::Line, _) | (Place::Gap, b'-') => Place::Line,
            (Place::Block { .. }, _) => Place::Block { star: byte == b'*' },
            (Place::Gap, b'/') => Place::Block { star: false },
            (Place::Gap, _) if in_word => Place::First,
            (Place::Gap, b';') => Place::Gap,
            (Place::Gap | Place::Rollback, _) if byte.is_ascii_whitespace() => self.place,
            (Place::Rollback, _) if in_word => Place::Target,
            // A comment in a comment ends here as well.
            (_, b';') | (Place::Rest { star: true }, b'/') => Place::Gap,
            _ => Place::Rest { star: byte == b'*' },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether `sql` may end a transaction, read in pieces of any size.
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
            "SELECT CASE WHEN a THEN b END FROM t",
            "SAVEPOINT commit",
            "ROLLBACK TO s",
            "rollback work to savepoint s",
            "ROLLBACK TRANSACTION\n TO s; SELECT 2",
            "RELEASE s",
            "/* COMMIT */ SELECT 1",
            "-- COMMIT",
            "SELECT 2*3/1",
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
        statements.skip();
        assert!(!statements.ends_in(b"COMMIT\0"));
    }
}
