//! Messages of Postgres's protocol in a byte stream.

/// Cuts a byte stream into messages, and keeps the tag and the start of the body of each.
#[derive(Debug)]
pub(super) struct Frames {
    /// Tag, four bytes of length, and the start of the body.
    head: [u8; Self::KEPT],
    have: usize,
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

    pub(super) fn new() -> Self {
        Self {
            head: [0; Self::KEPT],
            have: 0,
            skip: 0,
            passing: 0,
        }
    }

    /// Creates frames for a stream whose first message, the startup packet, has no tag.
    pub(super) fn starting() -> Self {
        Self {
            have: 1,
            ..Self::new()
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
                continue;
            }
            let wanted = if self.have < 5 {
                5
            } else {
                5 + self.kept_body()
            };
            let n = (wanted - self.have).min(bytes.len());
            self.head[self.have..self.have + n].copy_from_slice(&bytes[..n]);
            self.have += n;
            bytes = &bytes[n..];
            if self.have >= 5 && self.have == 5 + self.kept_body() {
                self.passing = self.head[0];
                seen(Part::Start(self.passing, &self.head[5..self.have]));
                self.skip = self.body_len() - self.kept_body();
                self.have = 0;
                self.head[0] = 0;
            }
        }
    }

    fn body_len(&self) -> usize {
        let length = [self.head[1], self.head[2], self.head[3], self.head[4]];
        (u32::from_be_bytes(length) as usize).saturating_sub(4)
    }

    fn kept_body(&self) -> usize {
        self.body_len().min(Self::KEPT - 5)
    }
}
