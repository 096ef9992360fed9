//! Detects whether a connection's session may keep state of its user: settings, a role, locks, temporary tables.
//!
//! This is only for servers without a pooler in transaction mode in front. The reader looks at the texts of statements
//! as they pass, and at the changes that the server reports on its own. A user's own function that leaves state is not
//! seen, unless the server reports the change.

mod call;
mod scan;

use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash, Hasher},
};

use super::status::{Residue, SessionFlags};
use crate::model::endpoint::SessionReset;

use scan::Scan;

/// Most prepared statements that may leave state and are remembered one by one.
const REMEMBERED: usize = 64;

/// Reads the messages of one connection.
#[derive(Debug)]
pub(super) struct SessionState {
    scan: Scan,
    /// The hash of the name of the statement that is being prepared; `None` for a simple query or an unnamed statement.
    preparing: Option<u64>,
    /// Prepared statements that leave state each time they run.
    leaving: Vec<(u64, Residue)>,
    /// The residue of the prepared statements that were too many to remember.
    others: Residue,
    /// Number of named statements that the driver has prepared and not closed.
    named: u32,
    reported: Vec<Reported>,
    logged_in: bool,
}

/// A setting that the server reports. Its name and values are hashes.
#[derive(Debug)]
struct Reported {
    name: u64,
    at_login: u64,
    now: u64,
}

impl SessionState {
    /// Creates a reader for a session with those flags, or returns `None` if the session is never reset.
    pub(super) fn of(flags: &SessionFlags) -> Option<Box<Self>> {
        (flags.reset != SessionReset::Never).then(|| {
            Box::new(Self {
                scan: Scan::new(),
                preparing: None,
                leaving: Vec::new(),
                others: Residue::NONE,
                named: 0,
                reported: Vec::new(),
                logged_in: false,
            })
        })
    }

    /// Notes a message from the client, by the start of its body.
    pub(super) fn note_sent(&mut self, tag: u8, body: &[u8], flags: &SessionFlags) {
        self.scan.skip();
        if flags.reset == SessionReset::Always && matches!(tag, b'Q' | b'P' | b'B' | b'F') {
            flags.mark(Residue::RESETTABLE);
        }
        match tag {
            b'Q' => {
                self.preparing = None;
                self.scan.begin();
                self.note_more(body, flags);
            }
            b'P' => self.note_parse(body, flags),
            b'B' => self.note_bind(body, flags),
            b'C' => self.note_close(body),
            b'F' => flags.mark(Residue::RESETTABLE), // FunctionCall, which names the function by its OID
            _ => {}
        }
    }

    /// Notes the next part of the same message's body.
    pub(super) fn note_more(&mut self, body: &[u8], flags: &SessionFlags) {
        let residue = self.scan.read(body);
        if residue == Residue::NONE {
            return;
        }
        match self.preparing {
            None => self.mark(residue, flags),
            Some(name) => self.remember(name, residue),
        }
    }

    fn note_parse(&mut self, body: &[u8], flags: &SessionFlags) {
        let Some((name, text)) = cut(body) else {
            return flags.mark(Residue::LASTING); // not a name of the driver, whose names are short
        };
        self.preparing = (!name.is_empty()).then(|| hash(name));
        self.named = self.named.saturating_add(u32::from(!name.is_empty()));
        self.scan.begin();
        self.note_more(text, flags);
    }

    /// Notes that a statement is about to run. A statement without a name was judged when it was prepared.
    fn note_bind(&mut self, body: &[u8], flags: &SessionFlags) {
        let name = cut(body).and_then(|(_portal, rest)| cut(rest));
        let Some((name, _)) = name else {
            return flags.mark(Residue::LASTING);
        };
        if name.is_empty() || self.leaving.is_empty() && self.others == Residue::NONE {
            return;
        }
        let name = hash(name);
        let known = self.leaving.iter().find(|(it, _)| *it == name);
        self.mark(known.map_or(self.others, |(_, residue)| *residue), flags);
    }

    fn note_close(&mut self, body: &[u8]) {
        let Some((name, _)) = body.strip_prefix(b"S").and_then(cut) else {
            return;
        };
        self.named = self.named.saturating_sub(u32::from(!name.is_empty()));
        if !self.leaving.is_empty() {
            let name = hash(name);
            self.leaving.retain(|(it, _)| *it != name);
        }
    }

    fn remember(&mut self, name: u64, residue: Residue) {
        let known = self.leaving.iter_mut().find(|(it, _)| *it == name);
        if let Some((_, known)) = known {
            *known = known.and(residue);
        } else if self.leaving.len() < REMEMBERED {
            self.leaving.push((name, residue));
        } else {
            self.others = self.others.and(residue);
        }
    }

    fn mark(&self, residue: Residue, flags: &SessionFlags) {
        let forgets = residue.has(Residue::FORGETS);
        let residue = residue.without(Residue::FORGETS);
        flags.mark(match (forgets, self.named) {
            (false, _) => residue,
            (true, 0) => residue.and(Residue::RESETTABLE),
            (true, _) => residue.and(Residue::LASTING),
        });
    }

    /// Notes a message from the server, by the start of its body.
    pub(super) fn note_received(&mut self, tag: u8, body: &[u8], flags: &SessionFlags) {
        match tag {
            b'Z' => self.logged_in = true,
            b'A' => flags.note_notification(),
            b'S' => self.note_parameter(body, flags),
            _ => {}
        }
    }

    /// Notes the value of a setting. The server reports all of them at the login, and later those that change.
    fn note_parameter(&mut self, body: &[u8], flags: &SessionFlags) {
        let Some((name, value)) = cut(body) else {
            return;
        };
        if name == b"standard_conforming_strings" {
            self.scan.escapes_by_default |= !value.starts_with(b"on");
        }
        let (name, value) = (hash(name), hash(value));
        match self.reported.iter_mut().find(|it| it.name == name) {
            Some(known) => known.now = value,
            None if !self.logged_in => self.reported.push(Reported {
                name,
                at_login: value,
                now: value,
            }),
            None => return, // its value at the login is unknown
        }
        let differs = self.reported.iter().any(|it| it.at_login != it.now);
        flags.note_difference(differs);
    }
}

/// Splits `body` at its first NUL.
fn cut(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = body.iter().position(|&byte| byte == 0)?;
    Some((&body[..end], &body[end + 1..]))
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETS: &str = "SET x = 1";

    fn reader() -> (Box<SessionState>, SessionFlags) {
        let flags = SessionFlags::new(SessionReset::IfNeeded);
        let mut state = SessionState::of(&flags).unwrap();
        state.note_received(b'S', b"TimeZone\0UTC\0", &flags);
        state.note_received(b'Z', b"I", &flags);
        (state, flags)
    }

    #[test]
    fn only_those_prepared_statements_count_that_leave_something_and_each_time() {
        let (mut state, flags) = reader();
        let prepare = |state: &mut SessionState, n: usize, sql: &str| {
            state.note_sent(b'P', format!("s{n}\0{sql}\0\0\0").as_bytes(), &flags);
        };
        let leaves = |state: &mut SessionState, n: usize| {
            state.note_sent(b'B', format!("\0s{n}\0").as_bytes(), &flags);
            let leaves = flags.is_marked();
            flags.note_reset();
            leaves
        };
        for n in 0..REMEMBERED {
            prepare(&mut state, n, SETS);
        }
        prepare(&mut state, 1000, "SELECT 1");
        assert!(!flags.is_marked(), "none was run");
        assert!(leaves(&mut state, 0) && leaves(&mut state, 0) && leaves(&mut state, 63));
        assert!(!leaves(&mut state, 1000));
        prepare(&mut state, REMEMBERED, SETS);
        assert!(leaves(&mut state, REMEMBERED));
        assert!(
            leaves(&mut state, 1000),
            "it may be one of those that were too many"
        );
    }

    #[test]
    fn a_closed_statement_is_not_remembered() {
        let (mut state, flags) = reader();
        for n in 0..10 * REMEMBERED {
            state.note_sent(b'P', format!("s{n}\0{SETS}\0\0\0").as_bytes(), &flags);
            state.note_sent(b'C', format!("Ss{n}\0").as_bytes(), &flags);
        }
        assert_eq!((state.leaving.len(), state.named), (0, 0));
        assert_eq!(state.others, Residue::NONE);
        state.note_sent(b'Q', b"DISCARD ALL\0", &flags);
        assert!(flags.can_be_reset(), "nothing is prepared");
        state.note_sent(b'P', b"s1\0SELECT 1\0", &flags);
        state.note_sent(b'Q', b"DISCARD ALL\0", &flags);
        assert!(!flags.can_be_reset());
    }

    #[test]
    fn a_setting_that_the_server_reports_counts_while_it_differs_from_the_login() {
        let (mut state, flags) = reader();
        state.note_received(b'S', b"TimeZone\0Asia/Tokyo\0", &flags);
        assert!(flags.needs_reset() && !flags.is_marked());
        state.note_received(b'S', b"TimeZone\0UTC\0", &flags);
        assert!(!flags.needs_reset(), "as after SET LOCAL");
    }
}
