//! Calls of `set_config`.

/// A call that is being read. With a plain `true` as its last argument it leaves nothing behind its transaction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    /// Parentheses that are open.
    depth: u32,
    argument: Argument,
}

/// What has been read of an argument.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Argument {
    Nothing,
    True,
    Other,
}

impl Call {
    /// A call of which the name was read.
    pub(super) fn new() -> Self {
        Self {
            depth: 0,
            argument: Argument::Other,
        }
    }

    /// Reads on, by the first byte of a word or a sign. Once the call is over, returns whether it leaves nothing.
    pub(super) fn read(&mut self, token: u8, is_true: bool) -> Option<bool> {
        let before = std::mem::replace(&mut self.argument, Argument::Other);
        match (token, self.depth) {
            (b'(', _) => self.depth = self.depth.saturating_add(1),
            (_, 0) => return Some(true), // a column of that name
            (b')', 1) => return Some(before == Argument::True),
            (b')', _) => self.depth -= 1,
            (b',', 1) => self.argument = Argument::Nothing,
            (_, 1) if is_true && before == Argument::Nothing => self.argument = Argument::True,
            _ => {}
        }
        None
    }
}
