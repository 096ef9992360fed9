//! Observes the messages that pass on a connection.
//!
//! tokio-postgres reports neither whether a transaction is open nor whether an abandoned query is still running. Both
//! decide whether a connection may go to the next user, so the decrypted stream is observed as it passes. The tap reads
//! headers, SQL text, and the start of other bodies, such as the status byte or the fields of an error.

mod frames;
mod outdated;
pub(super) mod statements;

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::Ordering::{Release, SeqCst},
    },
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsStream};

use frames::{Frames, Part};

use self::statements::Statements;
use super::{session_state::SessionState, status::ConnectionStatus, verdict::ServerClose};

/// The kind of a batch of requests. Batches are queued in the order in which their ReadyForQuery will come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Batch {
    /// The login.
    Startup,
    /// Requests whose answer a caller may be waiting for.
    Work,
    /// Closing of prepared statements, which disturbs no caller.
    Housekeeping,
}

/// A stream whose messages are observed as they pass.
#[derive(Debug)]
pub(super) struct Tap<S> {
    stream: S,
    status: Arc<ConnectionStatus>,
    sent: Frames,
    received: Frames,
    batches: VecDeque<Batch>,
    /// `true` if the batch being written has done more than close statements.
    working: bool,
    statements: Statements,
    /// `true` once a statement was prepared here that may end a transaction whenever it runs.
    prepared: bool,
    /// `true` once a statement with a name was prepared here.
    has_named: bool,
    /// The reader of what statements leave in the session; `None` if the session is never reset.
    session: Option<Box<SessionState>>,
}

impl<S> Tap<S> {
    pub(super) fn new(stream: S, status: Arc<ConnectionStatus>) -> Self {
        let batches = VecDeque::from([Batch::Startup]);
        let session = SessionState::of(&status.session);
        Self {
            stream,
            status,
            session,
            sent: Frames::starting(),
            received: Frames::default(),
            batches,
            working: false,
            statements: Statements::new(),
            prepared: false,
            has_named: false,
        }
    }

    fn note_sent(&mut self, bytes: &[u8]) {
        let Self {
            sent,
            batches,
            working,
            status,
            statements,
            prepared,
            has_named,
            session,
            ..
        } = self;
        sent.pass(bytes, |part| {
            match (session.as_deref_mut(), part) {
                (Some(it), Part::Start(tag, body)) => it.note_sent(tag, body, &status.session),
                (Some(it), Part::Rest(_, body)) => it.note_more(body, &status.session),
                (None, _) => {}
            }
            let (tag, body) = match part {
                Part::Start(tag, body) => (tag, body),
                Part::Rest(tag, body) => {
                    let ends = statements.ends_in(body);
                    return note_end(status, prepared, tag, ends);
                }
            };
            match tag {
                b'Q' => statements.query(),
                b'P' => statements.parse(),
                _ => statements.skip(),
            }
            let ends = statements.ends_in(body);
            note_end(status, prepared, tag, ends);
            *has_named |= tag == b'P' && !body.starts_with(b"\0");
            let ends_batch = matches!(tag, b'S' | b'Q' | b'F');
            // C: Close; S: Sync; p: password; X: Terminate; 0: the startup packet.
            if !matches!(tag, b'C' | b'S' | b'p' | b'X' | 0) && !*working {
                *working = true;
                status.outstanding.fetch_add(1, SeqCst);
            }
            if ends_batch {
                let batch = if std::mem::take(working) {
                    Batch::Work
                } else {
                    Batch::Housekeeping
                };
                batches.push_back(batch);
            }
        });
    }

    fn note_received(&mut self, bytes: &[u8]) {
        let Self {
            received,
            batches,
            working,
            status,
            has_named,
            session,
            ..
        } = self;
        // A reader of the session, if there is one, judges these commands itself.
        let forgets = *has_named && session.is_none();
        let mut note_session = |tag, body: &[u8]| {
            if let Some(session) = session.as_deref_mut() {
                session.note_received(tag, body, &status.session);
            }
        };
        received.pass(bytes, |part| match part {
            // The server now takes data and ignores the Sync sent with the COPY. The one after the data ends the batch.
            Part::Start(b'G', _) if batches.front() == Some(&Batch::Work) => {
                batches.pop_front();
                *working = true;
            }
            Part::Start(b'Z', body) => {
                note_session(b'Z', body);
                status.note_status(body.first().copied().unwrap_or(0));
                if batches.pop_front() == Some(Batch::Work) {
                    status.outstanding.fetch_sub(1, SeqCst);
                    status.mark_served();
                }
            }
            Part::Start(tag @ (b'A' | b'S'), body) => note_session(tag, body),
            Part::Start(b'C', body) => {
                status.note_done(body.starts_with(b"ROLLBACK\0"));
                if forgets && matches!(body, b"DISCARD ALL\0" | b"DEALLOCATE ALL\0") {
                    status.expire(); // the driver still uses statements that the server has forgotten
                }
            }
            Part::Start(b'E', body) => {
                let code = packed_sqlstate(body);
                if code != IN_FAILED_TRANSACTION {
                    status.sqlstate.store(code, Release);
                }
                status.note_error();
                if outdated::is_outdated_plan(body) {
                    status.mark_outdated();
                }
                if let Some(farewell) = farewell(body, &[b"FATAL", b"PANIC"]) {
                    status.note_farewell(farewell);
                }
            }
            // An immediate shutdown, or a crash of another process, is announced by a warning only.
            Part::Start(b'N', body) => {
                let told = farewell(body, &[b"WARNING"]);
                if let Some(farewell) = told.filter(|it| it.sqlstate.starts_with("57P")) {
                    status.note_farewell(farewell);
                }
            }
            _ => {}
        });
    }
}

/// Notes a statement that may end a transaction: a simple query at once, a prepared one when it runs.
fn note_end(status: &ConnectionStatus, prepared: &mut bool, tag: u8, ends: bool) {
    match tag {
        b'Q' if ends => status.note_end(),
        b'P' => *prepared |= ends,
        b'B' if *prepared => status.note_end(),
        _ => {}
    }
}

/// 25P02, packed. It only says that an earlier statement has failed, and the code of that statement counts.
const IN_FAILED_TRANSACTION: u64 = 0x0032_3550_3032;

/// Returns the SQLSTATE in the start of an ErrorResponse's body, packed into a number; 0 if it is missing.
fn packed_sqlstate(body: &[u8]) -> u64 {
    let code = body
        .split(|&b| b == 0)
        .find_map(|field| field.strip_prefix(b"C"));
    code.filter(|code| code.len() == 5).map_or(0, |code| {
        code.iter()
            .fold(0, |packed, &b| (packed << 8) | u64::from(b))
    })
}

/// Returns the message in the start of an error's or a notice's body, if its severity is one of `severities`.
fn farewell(body: &[u8], severities: &[&[u8]]) -> Option<ServerClose> {
    let field = |tag: u8| {
        let mut fields = body.split(|&b| b == 0);
        fields.find_map(|field| field.strip_prefix(&[tag]))
    };
    let severity = field(b'V').or_else(|| field(b'S'))?;
    let text = |tag| String::from_utf8_lossy(field(tag).unwrap_or_default()).into_owned();
    severities.contains(&severity).then(|| ServerClose {
        sqlstate: text(b'C'),
        text: text(b'M'),
    })
}

impl<S: AsyncRead + Unpin> AsyncRead for Tap<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.status.drained.store(polled.is_pending(), Release);
        if matches!(&polled, Poll::Ready(Ok(()))) && buf.filled().len() == before {
            self.status.mark_dead();
        }
        if buf.filled().len() > before {
            self.status.mark_heard();
            self.note_received(&buf.filled()[before..]);
        }
        polled
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Tap<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.status.blocked.store(polled.is_pending(), Release);
        if let Poll::Ready(Ok(n)) = polled {
            self.note_sent(&bytes[..n]);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Completes when the other side has ended too: until then the server still counts the connection.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        loop {
            let mut rest = [0; 256];
            let mut rest = ReadBuf::new(&mut rest);
            let read = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut rest));
            if read.is_err() || rest.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: TlsStream + Unpin> TlsStream for Tap<S> {
    fn channel_binding(&self) -> ChannelBinding {
        self.stream.channel_binding()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Acquire;

    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        [&[tag], &length[..], body].concat()
    }

    /// Returns a tap after its login, and its status.
    fn logged_in() -> (Tap<()>, Arc<ConnectionStatus>) {
        let status = ConnectionStatus::new();
        let mut tap = Tap::new((), Arc::clone(&status));
        tap.note_sent(&message(0, b"\0\x03\0\0user\0u\0\0")[1..]);
        tap.note_sent(&message(b'p', b"secret"));
        tap.note_received(&[message(b'R', &[0; 4]), message(b'Z', b"I")].concat());
        (tap, status)
    }

    fn outstanding(status: &ConnectionStatus) -> u32 {
        status.outstanding.load(Acquire)
    }

    #[test]
    fn a_request_is_outstanding_until_its_ready_for_query() {
        let (mut tap, status) = logged_in();
        assert!(status.is_idle());
        tap.note_sent(&message(b'P', b"parse"));
        assert_eq!(
            outstanding(&status),
            1,
            "as soon as it begins, before its Sync"
        );
        tap.note_sent(
            &[
                message(b'B', b""),
                message(b'S', b""),
                message(b'Q', b"second"),
            ]
            .concat(),
        );
        assert_eq!(outstanding(&status), 2);
        tap.note_received(&message(b'Z', b"I"));
        assert_eq!(outstanding(&status), 1);
        tap.note_received(&message(b'Z', b"T"));
        assert_eq!(outstanding(&status), 0);
        assert!(!status.is_idle(), "a transaction is open");
    }

    #[test]
    fn closing_a_statement_is_not_work() {
        let (mut tap, status) = logged_in();
        tap.note_sent(
            &[
                message(b'C', b"Ss1\0"),
                message(b'S', b""),
                message(b'Q', b"x"),
            ]
            .concat(),
        );
        assert_eq!(outstanding(&status), 1);
        tap.note_received(&[message(b'3', b""), message(b'Z', b"I")].concat());
        assert_eq!(outstanding(&status), 1, "that was the Close's");
        tap.note_received(&message(b'Z', b"I"));
        assert!(status.is_idle());
    }

    #[test]
    fn a_copy_in_is_one_batch_though_it_has_two_syncs() {
        let (mut tap, status) = logged_in();
        tap.note_sent(&[message(b'B', b""), message(b'E', b""), message(b'S', b"")].concat());
        tap.note_received(&[message(b'2', b""), message(b'G', b"\0\0\0")].concat());
        tap.note_sent(
            &[
                message(b'd', b"row"),
                message(b'c', b""),
                message(b'S', b""),
            ]
            .concat(),
        );
        assert_eq!(outstanding(&status), 1);
        tap.note_received(&message(b'Z', b"I"));
        assert!(status.is_idle());
    }

    #[test]
    fn what_the_server_says_at_the_end_is_kept_and_mere_errors_are_not() {
        let (mut tap, status) = logged_in();
        let body = |severity: &str, code: &str, text: &str| {
            format!("S{severity}\0V{severity}\0C{code}\0M{text}\0\0").into_bytes()
        };
        tap.note_received(&message(b'E', &body("ERROR", "42P01", "no such table")));
        tap.note_received(&message(
            b'N',
            &body("WARNING", "25001", "a transaction is open"),
        ));
        assert_eq!(status.farewell(), None);
        tap.note_received(&message(
            b'N',
            &body("WARNING", "57P02", "another one crashed"),
        ));
        assert_eq!(status.farewell().unwrap().sqlstate, "57P02");
        tap.note_received(&message(
            b'E',
            &body("FATAL", "08P01", "server conn crashed?"),
        ));
        let first = status.farewell().unwrap();
        assert_eq!(
            (&*first.sqlstate, &*first.text),
            ("57P02", "another one crashed"),
            "the pooler's own message hides no reason"
        );
    }

    #[test]
    fn a_commit_that_became_a_rollback_is_seen() {
        let (mut tap, status) = logged_in();
        tap.note_received(&message(b'C', b"COMMIT\0"));
        assert!(!status.was_rolled_back());
        tap.note_received(&message(b'C', b"ROLLBACK\0"));
        assert!(status.was_rolled_back());
    }

    #[test]
    fn messages_are_seen_however_the_stream_is_cut() {
        let error = message(
            b'E',
            b"SERROR\0VERROR\0C57014\0Mcanceling statement due to user request, and more text\0\0",
        );
        let stream = [message(b'D', &[b'Z'; 3000]), error, message(b'Z', b"E")].concat();
        for step in [1, 2, 5, 7, 64, 1000, 10_000] {
            let (mut tap, status) = logged_in();
            stream.chunks(step).for_each(|part| tap.note_received(part));
            assert_eq!(
                status.last_sqlstate().as_deref(),
                Some("57014"),
                "cut at every {step}"
            );
            assert_eq!(status.transaction_status.load(Acquire), b'E');
        }
    }
}
