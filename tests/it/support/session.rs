//! The server's side of one scripted connection: enough of Postgres's protocol for tokio-postgres.

use std::{collections::HashMap, sync::Arc};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::Notify,
    task::yield_now,
    time::Instant,
};

use super::{
    backend::{Backend, OpenStream},
    gate::{Failure, Step},
    packet::{TEXT, cut, int, strings, text_column},
    statement::Statement,
};

/// Codes that stand at the start of a first packet.
const VERSION_3: i32 = 196_608;
const CANCEL: i32 = 80_877_102;

const CANCELLED: Failure = Failure::Error {
    code: "57014",
    text: "canceling statement due to user request",
};
const ABORTED: Failure = Failure::Error {
    code: "25P02",
    text: "current transaction is aborted, commands ignored until end of transaction block",
};

const REFUSED_ROW: Failure = Failure::Error {
    code: "23514",
    text: "new row violates check constraint",
};

/// The connection has ended, from either side.
pub(super) struct Ended;

/// One connection, as its server sees it.
pub(super) struct Session {
    // Above the pipe, so that a client that sees the end finds it counted.
    stream: OpenStream,
    pipe: DuplexStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Notified by cancel requests.
    cancel_signal: Arc<Notify>,
    tenant: String,
    /// The time at which the client was let in.
    admitted: Instant,
    /// Transaction status: `I` idle, `T` in a transaction, `E` in a failed one.
    status: u8,
    /// Prepared statements by name, and portals, which are named apart.
    statements: HashMap<String, String>,
    portals: HashMap<String, String>,
    /// `true` once anything has come since the last ReadyForQuery.
    busy: bool,
    /// `true` while all is ignored until the next Sync.
    skipping: bool,
}

impl Session {
    pub(super) fn new(pipe: DuplexStream, stream: OpenStream, cancel_signal: Arc<Notify>) -> Self {
        Self {
            stream,
            pipe,
            input: Vec::new(),
            output: Vec::new(),
            cancel_signal,
            tenant: String::new(),
            admitted: Instant::now(),
            status: b'I',
            statements: HashMap::new(),
            portals: HashMap::new(),
            busy: false,
            skipping: false,
        }
    }

    /// Serves until either side ends it.
    ///
    /// As behind a proxy, a client that has gone ends what its session waits for.
    pub(super) async fn run(mut self) {
        let Ended = self.serve().await;
    }

    async fn serve(&mut self) -> Ended {
        if let Err(ended) = self.log_in().await {
            return ended;
        }
        loop {
            let answered = match self.message(true).await {
                Ok((tag, body)) => self.answer(tag, &body).await,
                Err(ended) => return ended,
            };
            if let Err(ended) = answered {
                return ended;
            }
        }
    }

    async fn log_in(&mut self) -> Result<(), Ended> {
        let (_, body) = self.message(false).await?;
        match int(&body) {
            Some(VERSION_3) => {}
            Some(CANCEL) => {
                if let Some(pid) = body.get(4..).and_then(int) {
                    self.backend().cancel(pid);
                }
                return Err(Ended);
            }
            _ => return Err(Ended),
        }
        let words: Vec<_> = strings(&body[4..]).collect();
        let database = words.chunks(2).find(|pair| pair[0] == "database");
        database
            .map_or("", |pair| pair[1])
            .clone_into(&mut self.tenant);
        self.stream.count_login();
        // In this order, as at Neon: who has the wrong password wakes nothing.
        let mut passed = self.check_password().await?;
        if passed.is_ok() {
            passed = self.pass(Step::Login).await?;
        }
        if let Err(failure) = passed {
            self.fail(failure, None).await?;
            self.flush().await?;
            return Err(Ended);
        }
        self.admitted = Instant::now();
        self.backend()
            .update_counts(|counts| counts.logins_done += 1);
        self.reply(b'R', &0_i32.to_be_bytes());
        self.reply(b'S', b"server_version\x0017.0\0");
        let key = [self.stream.pid.to_be_bytes(), [0; 4]].concat();
        self.reply(b'K', &key);
        self.ready().await
    }

    /// Asks for the password, in clear text, where there is one.
    async fn check_password(&mut self) -> Result<Result<(), Failure>, Ended> {
        let db = match &self.stream.db {
            Ok(Some(db)) => Arc::clone(db),
            Ok(None) => return Ok(Ok(())),
            Err(failure) => return Ok(Err(*failure)),
        };
        self.reply(b'R', &3_i32.to_be_bytes());
        self.flush().await?;
        let (_, body) = self.message(true).await?;
        let password = strings(&body).next().unwrap_or_default();
        Ok(db.check_login(password, self.stream.opened))
    }

    async fn answer(&mut self, tag: u8, body: &[u8]) -> Result<(), Ended> {
        if self.skipping && tag != b'S' {
            return Ok(());
        }
        let mut words = strings(body);
        let mut next_word = || words.next().unwrap_or_default().to_owned();
        match tag {
            b'Q' => return self.simple(&next_word()).await,
            b'S' => return self.sync().await,
            b'P' => {
                self.statements.insert(next_word(), next_word());
                self.reply(b'1', &[]);
            }
            b'B' => {
                let (portal, name) = (next_word(), next_word());
                let sql = self.statements.get(&name).cloned().unwrap_or_default();
                self.portals.insert(portal, sql);
                self.reply(b'2', &[]);
            }
            b'D' => self.describe(body.first() == Some(&b'S'), &next_word()[1..]),
            b'E' => {
                let sql = self.portals.get(&next_word()).cloned().unwrap_or_default();
                self.count_query(&sql);
                self.skipping = !self.execute(&sql).await?;
            }
            b'C' => {
                if body.first() == Some(&b'S') {
                    self.statements.remove(&next_word()[1..]);
                }
                self.reply(b'3', &[]);
            }
            b'X' => {
                self.backend()
                    .update_counts(|counts| counts.terminates += 1);
                return Err(Ended);
            }
            _ => {}
        }
        self.busy = true;
        Ok(())
    }

    async fn simple(&mut self, text: &str) -> Result<(), Ended> {
        self.count_query(text);
        let mut all = text.split(';').map(str::trim).filter(|sql| !sql.is_empty());
        let Some(first) = all.next() else {
            match self.pass(Step::Verify).await? {
                Ok(()) => self.reply(b'I', &[]),
                Err(failure) => self.fail(failure, None).await?,
            }
            return self.ready().await;
        };
        for sql in std::iter::once(first).chain(all) {
            if Statement::parse(sql) == Statement::Rows {
                self.describe_row();
            }
            if !self.execute(sql).await? {
                break;
            }
        }
        self.ready().await
    }

    async fn sync(&mut self) -> Result<(), Ended> {
        // By itself it is how tokio-postgres asks whether a connection lives.
        if !self.busy
            && let Err(failure) = self.pass(Step::Verify).await?
        {
            self.fail(failure, None).await?;
        }
        self.ready().await
    }

    /// Runs one statement; says whether it went well.
    async fn execute(&mut self, sql: &str) -> Result<bool, Ended> {
        let statement = Statement::parse(sql);
        let ends = matches!(
            statement,
            Statement::Commit
                | Statement::CommitAndChain
                | Statement::Rollback
                | Statement::RollbackTo
        );
        // `CALL refuse('acme', 'globex')` fails in the databases of these tenants.
        let refuses =
            sql.starts_with("CALL refuse(") && sql.contains(&format!("'{}'", self.tenant));
        let passed = if self.status == b'E' && !ends {
            Err(ABORTED)
        } else if refuses {
            Err(REFUSED_ROW)
        } else if let Some(step) = statement.step() {
            self.pass(step).await?
        } else {
            Ok(())
        };
        match passed {
            Ok(()) => self.apply(&statement, sql),
            Err(failure) => self.fail(failure, Some((&statement, sql))).await?,
        }
        Ok(passed.is_ok())
    }

    fn apply(&mut self, statement: &Statement, sql: &str) {
        let before = self.status;
        let of_migration = self.backend().answer_migration(&self.tenant, sql);
        let row = of_migration.unwrap_or_else(|| match &self.stream.db {
            Ok(Some(db)) => db.answer(sql, self.admitted),
            Ok(None) | Err(_) => self.tenant.clone(),
        });
        self.status = match statement {
            Statement::Begin(_) | Statement::RollbackTo | Statement::CommitAndChain => b'T',
            Statement::Commit | Statement::Rollback => b'I',
            Statement::Rows | Statement::Set | Statement::Other(_) => before,
        };
        let commits = matches!(statement, Statement::Commit | Statement::CommitAndChain);
        if commits && before == b'T' {
            self.backend().update_counts(|counts| counts.commits += 1);
        }
        if *statement == Statement::Rows {
            let length = i32::try_from(row.len()).unwrap().to_be_bytes();
            let row = [&1_i16.to_be_bytes(), &length[..], row.as_bytes()].concat();
            self.reply(b'D', &row);
        }
        let tag = format!("{}\0", statement.tag(before));
        self.reply(b'C', tag.as_bytes());
    }

    async fn fail(
        &mut self,
        failure: Failure,
        asked: Option<(&Statement, &str)>,
    ) -> Result<(), Ended> {
        match failure {
            Failure::Error { code, text } => {
                self.error("ERROR", code, text);
                self.flush().await?;
                yield_now().await; // as a proxy may cut its answer
                let commits = asked.is_some_and(|(it, _)| *it == Statement::Commit);
                let over = self.status == b'I' || commits;
                self.status = if over { b'I' } else { b'E' };
                Ok(())
            }
            Failure::Fatal { code, text } => {
                self.error("FATAL", code, text);
                self.flush().await?;
                yield_now().await; // what it said arrives before the end does
                Err(Ended)
            }
            Failure::Cut => Err(Ended),
            Failure::Lost => {
                if let Some((statement, sql)) = asked {
                    self.apply(statement, sql);
                }
                Err(Ended)
            }
        }
    }

    /// Waits at the gate of `step`, until it lets the connection through, or a cancel request or its client's end
    /// comes first.
    async fn pass(&mut self, step: Step) -> Result<Result<(), Failure>, Ended> {
        let (backend, passed) = (self.backend().clone(), self.stream.pass(step));
        let _waiting = backend.arrive(step);
        let gone = async {
            while self
                .pipe
                .read_buf(&mut self.input)
                .await
                .is_ok_and(|n| n > 0)
            {}
        };
        tokio::select! {
            biased;
            passed = passed => return Ok(passed),
            () = self.cancel_signal.notified(), if step != Step::Login => return Ok(Err(CANCELLED)),
            () = gone => {}
        }
        while let Some((tag, _)) = cut(&mut self.input, true) {
            if tag == b'X' {
                backend.update_counts(|counts| counts.terminates += 1);
            }
        }
        Err(Ended)
    }

    fn count_query(&self, sql: &str) {
        self.backend()
            .update_counts(|counts| *counts.queries.entry(sql.to_owned()).or_default() += 1);
    }

    fn describe(&mut self, is_statement: bool, name: &str) {
        let known = if is_statement {
            &self.statements
        } else {
            &self.portals
        };
        let sql = known.get(name).cloned().unwrap_or_default();
        if is_statement {
            let last = (0..10).rev().find(|n| sql.contains(&format!("${n}")));
            let count = last.unwrap_or_default();
            let texts = TEXT.to_be_bytes().repeat(count);
            let body = [&i16::try_from(count).unwrap().to_be_bytes(), &texts[..]].concat();
            self.reply(b't', &body);
        }
        if Statement::parse(&sql) == Statement::Rows {
            self.describe_row();
        } else {
            self.reply(b'n', &[]);
        }
    }

    fn describe_row(&mut self) {
        self.reply(b'T', &text_column());
    }

    fn error(&mut self, severity: &str, code: &str, text: &str) {
        let body = format!("S{severity}\0V{severity}\0C{code}\0M{text}\0\0");
        self.reply(b'E', body.as_bytes());
    }

    async fn ready(&mut self) -> Result<(), Ended> {
        (self.busy, self.skipping) = (false, false);
        self.reply(b'Z', &[self.status]);
        self.flush().await
    }

    fn reply(&mut self, tag: u8, body: &[u8]) {
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        self.output.push(tag);
        self.output.extend(length);
        self.output.extend(body);
    }

    async fn flush(&mut self) -> Result<(), Ended> {
        let sent = self.pipe.write_all(&self.output).await;
        self.output.clear();
        sent.map_err(|_| Ended)
    }

    /// The next message. The first one has no tag.
    async fn message(&mut self, tagged: bool) -> Result<(u8, Vec<u8>), Ended> {
        loop {
            if let Some(message) = cut(&mut self.input, tagged) {
                return Ok(message);
            }
            match self.pipe.read_buf(&mut self.input).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Err(Ended),
            }
        }
    }

    fn backend(&self) -> &Backend {
        &self.stream.backend
    }
}
