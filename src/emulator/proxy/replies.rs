//! The server's messages on their way to the client: their boundaries, and the answer to a COMMIT.

/// The answer to a COMMIT: `C`, a length of 11, and `COMMIT` with its zero byte.
const COMMITTED: &[u8] = b"C\0\0\0\x0bCOMMIT\0";

/// The position in a server's messages, which arrive in pieces of any size.
#[derive(Debug, Default)]
pub(in crate::emulator) struct Replies {
    /// Bytes of the current message's tag and length that have passed.
    head: Vec<u8>,
    /// Bytes of its body that are still to come.
    left: usize,
}

impl Replies {
    /// Follows one more piece. Returns the position in it at which the answer to a COMMIT begins. An answer that is
    /// split between two pieces is not recognized, which takes a long message right before it.
    pub(in crate::emulator) fn pass(&mut self, piece: &[u8]) -> Option<usize> {
        let mut committed = None;
        let mut at = 0;
        while at < piece.len() {
            if self.left > 0 {
                let skipped = self.left.min(piece.len() - at);
                self.left -= skipped;
                at += skipped;
                continue;
            }
            if self.head.is_empty() && piece[at..].starts_with(COMMITTED) {
                committed = committed.or(Some(at));
            }
            self.head.push(piece[at]);
            at += 1;
            if let [_, a, b, c, d] = self.head[..] {
                let length = u32::from_be_bytes([a, b, c, d]) as usize;
                self.left = length.saturating_sub(4);
                self.head.clear();
            }
        }
        committed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_found_between_messages_and_not_within_one() {
        let row = [b"D\0\0\0\x10", COMMITTED].concat(); // data that looks like the answer to a COMMIT
        let all = [&row, COMMITTED, b"Z\0\0\0\x05I"].concat();
        assert_eq!(Replies::default().pass(&all), Some(row.len()));
        for cut in 0..row.len() {
            let mut replies = Replies::default();
            assert_eq!(replies.pass(&all[..cut]), None, "{cut}");
            assert_eq!(replies.pass(&all[cut..]), Some(row.len() - cut), "{cut}");
        }
        assert_eq!(Replies::default().pass(&row), None);
    }
}
