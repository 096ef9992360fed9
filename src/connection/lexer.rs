//! Cuts SQL text into words, strings and comments as Postgres's own lexer does.

/// A token of a text.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Token {
    /// A word without quotes, and its length. Longer words are cut to [`LONGEST`].
    Word([u8; LONGEST], usize),
    /// The end of a statement.
    Semicolon,
    /// Anything else that is not a comment.
    Other,
    /// Text that servers read in different ways, by version or setting.
    Uncertain,
}

/// Most bytes of a word that are kept. Every keyword that matters is shorter.
pub(super) const LONGEST: usize = 12;
/// Longest tag of a dollar quote that is tracked.
const LONGEST_TAG: usize = 63;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Place {
    /// Between tokens.
    Gap,
    /// After a hyphen, which may begin a comment.
    Hyphen,
    /// After a slash, which may begin a comment.
    Slash,
    /// In a comment that ends with its line.
    Line,
    /// In a block comment, with its nesting depth and its last byte.
    Block { depth: u32, last: u8 },
    /// In a word.
    Word,
    /// In a number, which has only digits so far if `plain`.
    Number { plain: bool },
    /// In a string without escapes, which ends in an odd number of backslashes so far if `backslash`.
    Plain { backslash: bool },
    /// In a string with escapes, where the next byte is escaped if `backslash`.
    Escaped { backslash: bool },
    /// In a quoted name.
    Name,
    /// After a dollar sign, in a possible tag of a dollar quote.
    Tag,
    /// In a dollar quote, with the number of bytes of its end that were just seen.
    Dollar { seen: u8 },
}

/// Reads a text byte by byte.
#[derive(Debug)]
pub(crate) struct Lexer {
    place: Place,
    word: [u8; LONGEST],
    length: u8,
    /// The tag of the dollar quote; not allocated before there is one.
    tag: Vec<u8>,
    /// `true` if the last token was a string with escapes, which another pair of quotes continues.
    escaped: bool,
}

impl Lexer {
    pub(crate) fn new() -> Self {
        Self {
            place: Place::Gap,
            word: [0; LONGEST],
            length: 0,
            tag: Vec::new(),
            escaped: false,
        }
    }

    /// Reads `byte`, and calls `seen` with each token that it completes.
    pub(crate) fn read(&mut self, byte: u8, seen: &mut impl FnMut(Token)) {
        self.place = match self.place {
            Place::Gap => self.begin(byte, seen),
            Place::Hyphen if byte == b'-' => Place::Line,
            Place::Slash if byte == b'*' => Place::Block { depth: 1, last: 0 },
            Place::Hyphen | Place::Slash => {
                self.complete(Token::Other, seen);
                self.begin(byte, seen)
            }
            Place::Line if matches!(byte, b'\n' | b'\r') => Place::Gap,
            Place::Line => Place::Line,
            Place::Block { depth, last } => in_block(depth, last, byte),
            Place::Word => self.in_word(byte, seen),
            Place::Number { plain } => self.in_number(plain, byte, seen),
            Place::Plain { backslash } => self.in_plain(backslash, byte, seen),
            Place::Escaped { backslash } => self.in_escaped(backslash, byte, seen),
            Place::Name if byte == b'"' => self.complete(Token::Other, seen),
            Place::Name => Place::Name,
            Place::Tag => self.in_tag(byte, seen),
            Place::Dollar { seen: so_far } => self.in_dollar(so_far, byte, seen),
        };
    }

    /// Reads the end of the text, and calls `seen` with the token that it completes.
    pub(crate) fn end(&mut self, seen: &mut impl FnMut(Token)) {
        match self.place {
            Place::Word => self.complete_word(seen),
            Place::Gap | Place::Line | Place::Block { .. } => return,
            _ => self.complete(Token::Other, seen),
        };
    }

    fn begin(&mut self, byte: u8, seen: &mut impl FnMut(Token)) -> Place {
        match byte {
            _ if is_space(byte) => Place::Gap,
            b'-' => Place::Hyphen,
            b'/' => Place::Slash,
            b'\'' if self.escaped => Place::Escaped { backslash: false },
            b'\'' => Place::Plain { backslash: false },
            b'"' => Place::Name,
            b'$' => {
                self.tag.clear();
                Place::Tag
            }
            b'0'..=b'9' => Place::Number { plain: true },
            _ if begins_word(byte) => {
                self.length = 0;
                self.push(byte);
                Place::Word
            }
            b';' => self.complete(Token::Semicolon, seen),
            _ => self.complete(Token::Other, seen),
        }
    }

    fn in_word(&mut self, byte: u8, seen: &mut impl FnMut(Token)) -> Place {
        if continues_word(byte) || byte == b'$' {
            self.push(byte);
            return Place::Word;
        }
        if byte == b'\'' && self.word[..usize::from(self.length)] == *b"e" {
            return Place::Escaped { backslash: false };
        }
        self.complete_word(seen);
        self.begin(byte, seen)
    }

    fn in_number(&mut self, plain: bool, byte: u8, seen: &mut impl FnMut(Token)) -> Place {
        match byte {
            b'0'..=b'9' => Place::Number { plain },
            _ if continues_word(byte) => Place::Number { plain: false },
            b'\'' | b'$' if !plain => self.complete(Token::Uncertain, seen),
            _ => {
                self.complete(Token::Other, seen);
                self.begin(byte, seen)
            }
        }
    }

    fn in_plain(&mut self, backslash: bool, byte: u8, seen: &mut impl FnMut(Token)) -> Place {
        match byte {
            // The string ends here if standard_conforming_strings is on.
            b'\'' if backslash => self.complete(Token::Uncertain, seen),
            b'\'' => self.complete(Token::Other, seen),
            b'\\' => Place::Plain {
                backslash: !backslash,
            },
            _ => Place::Plain { backslash: false },
        }
    }

    fn in_escaped(&mut self, backslash: bool, byte: u8, seen: &mut impl FnMut(Token)) -> Place {
        if byte == b'\'' && !backslash {
            let place = self.complete(Token::Other, seen);
            self.escaped = true;
            return place;
        }
        Place::Escaped {
            backslash: byte == b'\\' && !backslash,
        }
    }

    fn in_tag(&mut self, byte: u8, seen: &mut impl FnMut(Token)) -> Place {
        let goes_on = if self.tag.is_empty() {
            begins_word(byte)
        } else {
            continues_word(byte)
        };
        match self.tag.len() {
            _ if byte == b'$' => Place::Dollar { seen: 0 },
            ..LONGEST_TAG if goes_on => {
                self.tag.push(byte);
                Place::Tag
            }
            _ if goes_on => self.complete(Token::Uncertain, seen),
            _ => {
                self.complete(Token::Other, seen);
                self.begin(byte, seen)
            }
        }
    }

    /// Reads a byte of a dollar quote. `so_far` bytes of its end, which is a dollar sign and the tag, were just seen.
    fn in_dollar(&mut self, so_far: u8, byte: u8, seen: &mut impl FnMut(Token)) -> Place {
        match so_far.checked_sub(1).map(usize::from) {
            Some(matched) if matched == self.tag.len() && byte == b'$' => {
                self.complete(Token::Other, seen)
            }
            Some(matched) if self.tag.get(matched) == Some(&byte) => {
                Place::Dollar { seen: so_far + 1 }
            }
            _ => Place::Dollar {
                seen: u8::from(byte == b'$'),
            },
        }
    }

    fn push(&mut self, byte: u8) {
        if let Some(place) = self.word.get_mut(usize::from(self.length)) {
            *place = byte.to_ascii_lowercase();
            self.length += 1;
        }
    }

    fn complete_word(&mut self, seen: &mut impl FnMut(Token)) -> Place {
        self.complete(Token::Word(self.word, usize::from(self.length)), seen)
    }

    fn complete(&mut self, token: Token, seen: &mut impl FnMut(Token)) -> Place {
        self.escaped = false;
        seen(token);
        Place::Gap
    }
}

/// Returns the place after `byte` in a block comment of nesting depth `depth`, whose last byte was `last`.
fn in_block(depth: u32, last: u8, byte: u8) -> Place {
    match (last, byte, depth) {
        (b'*', b'/', 1) => Place::Gap,
        (b'*', b'/', _) => Place::Block {
            depth: depth - 1,
            last: 0,
        },
        (b'/', b'*', _) => Place::Block {
            depth: depth.saturating_add(1),
            last: 0,
        },
        _ => Place::Block { depth, last: byte },
    }
}

/// Returns whether `byte` is white space, including the vertical tab, which is an error before Postgres 16.
fn is_space(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == b'\x0b'
}

fn begins_word(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn continues_word(byte: u8) -> bool {
    begins_word(byte) || byte.is_ascii_digit()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_small_and_allocates_for_the_tag_of_a_dollar_quote_only() {
        assert!(size_of::<Lexer>() <= 56);
        let mut lexer = Lexer::new();
        for (text, has_tag) in [("SELECT 'a', $$b$$ ", false), ("$tag$ x $tag$ ", true)] {
            text.bytes().for_each(|byte| lexer.read(byte, &mut |_| {}));
            assert_eq!(lexer.tag.capacity() > 0, has_tag, "{text}");
        }
    }
}
