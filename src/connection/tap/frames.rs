//! Messages of Postgres's protocol in a byte stream.

use std::mem;

/// Cuts a byte stream into messages, and shows the tag and the start of the body of each.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// The start of a message that was cut there: its tag, four bytes of length, and the start of its body. Not
    /// allocated between messages.
    head: Vec<u8>,
    /// Number of body bytes that are still to come and are not kept.
    skip: usize,
    /// Tag of the message that those bytes belong to.
    passing: u8,
}

/// A part of a message.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part<'a> {
    /// Its tag, and the start of its body.
    Start(u8, &'a [u8]),
    /// Its tag, and a further piece of its body.
    Rest(u8, &'a [u8]),
}

impl Frames {
    /// Most bytes of a message that are kept. An error's severity (twice), SQLSTATE and start of its text fit easily.
    const KEPT: usize = 128;

    /// Creates frames for a stream whose first message, the startup packet, has no tag.
    pub(super) fn starting() -> Self {
        Self {
            head: vec![0],
            ..Self::default()
        }
    }

    /// Calls `seen` with the start of each message whose kept part ends in `bytes`, and with every further piece of it.
    pub(super) fn pass(&mut self, mut bytes: &[u8], mut seen: impl FnMut(Part<'_>)) {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let n = self.skip.min(bytes.len());
                self.skip -= n;
                seen(Part::Rest(self.passing, &bytes[..n]));
                bytes = &bytes[n..];
            } else if self.head.is_empty() && is_whole(bytes) {
                let (start, rest) = bytes.split_at(kept(bytes)); // the usual case, without a copy
                self.begin(start, &mut seen);
                bytes = rest;
            } else {
                let n = (kept(&self.head) - self.head.len()).min(bytes.len());
                self.head.extend_from_slice(&bytes[..n]);
                bytes = &bytes[n..];
                if is_whole(&self.head) {
                    let start = mem::take(&mut self.head);
                    self.begin(&start, &mut seen);
                }
            }
        }
    }

    /// Begins a message with its kept part.
    fn begin(&mut self, start: &[u8], seen: &mut impl FnMut(Part<'_>)) {
        self.passing = start[0];
        self.skip = 5 + body_len(start) - start.len();
        seen(Part::Start(self.passing, &start[5..]));
    }
}

/// Returns whether `start` contains the kept part of a message.
fn is_whole(start: &[u8]) -> bool {
    start.len() >= 5 && start.len() >= kept(start)
}

/// Returns the length of the kept part of a message, as far as its `start` tells: at first, only that of its header.
fn kept(start: &[u8]) -> usize {
    if start.len() < 5 {
        return 5;
    }
    (5 + body_len(start)).min(Frames::KEPT)
}

fn body_len(start: &[u8]) -> usize {
    let length = [start[1], start[2], start[3], start[4]];
    (u32::from_be_bytes(length) as usize).saturating_sub(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The messages in `pieces`: the tag, the kept part, and all that follows it.
    fn messages(pieces: &[&[u8]], frames: &mut Frames) -> Vec<(u8, Vec<u8>, Vec<u8>)> {
        let mut messages = Vec::new();
        for piece in pieces {
            frames.pass(piece, |part| match part {
                Part::Start(tag, body) => messages.push((tag, body.to_vec(), Vec::new())),
                Part::Rest(tag, body) => {
                    let last = messages.last_mut().unwrap();
                    assert_eq!(last.0, tag);
                    last.2.extend_from_slice(body);
                }
            });
        }
        messages
    }

    #[test]
    fn messages_are_the_same_wherever_the_stream_is_cut_and_nothing_is_kept_between_them() {
        let lengths = [0, 1, 122, 123, 124, 300, 0, 7];
        let (mut stream, mut expected) = (Vec::new(), Vec::new());
        for (tag, len) in (b'a'..).zip(lengths) {
            let body: Vec<_> = (0..len).map(|at: u32| at.to_be_bytes()[3]).collect();
            stream.push(tag);
            stream.extend((len + 4).to_be_bytes());
            stream.extend(&body);
            let kept = body.len().min(Frames::KEPT - 5);
            expected.push((tag, body[..kept].to_vec(), body[kept..].to_vec()));
        }
        for first in 0..stream.len() {
            for second in [first, first + 1, first + 3, first + 130] {
                let second = second.min(stream.len());
                let pieces = [&stream[..first], &stream[first..second], &stream[second..]];
                let mut frames = Frames::default();
                assert_eq!(messages(&pieces, &mut frames), expected, "{first} {second}");
                assert_eq!(frames.head.capacity(), 0);
                if first == 0 {
                    continue;
                }
                // The first message of a stream has no tag.
                let pieces = [&stream[1..first], pieces[1], pieces[2]];
                let mut untagged = expected.clone();
                untagged[0].0 = 0;
                let mut frames = Frames::starting();
                assert_eq!(messages(&pieces, &mut frames), untagged, "{first} {second}");
            }
        }
        assert!(size_of::<Frames>() <= 40);
    }
}
