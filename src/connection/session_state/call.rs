//! Calls of `set_config`.

/// A call that is being read. If its last argument is a plain `true`, the call leaves nothing after its transaction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    /// Number of open parentheses.
    depth: u32,
    argument: Argument,
}

/// The part of an argument that has been read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Argument {
    Nothing,
    True,
    Other,
}

impl Call {
    /// Creates a call whose name was just read.
    pub(super) fn new() -> Self {
        Self {
            depth: 0,
            argument: Argument::Other,
        }
    }

    /// Reads a sign, or a word by its first byte. At the end of the call, returns whether the call leaves nothing.
    pub(super) fn read(&mut self, token: u8, is_true: bool) -> Option<bool> {
        let before = std::mem::replace(&mut self.argument, Argument::Other);
        match (token, self.depth) {
            (b'(', _) => self.depth = self.depth.saturating_add(1),
            (_, 0) => return Some(true), // no call, but a column of that name
            (b')', 1) => return Some(before == Argument::True),
            (b')', _) => self.depth -= 1,
            (b',', 1) => self.argument = Argument::Nothing,
            (_, 1) if is_true && before == Argument::Nothing => self.argument = Argument::True,
            _ => {}
        }
        None
    }
}
