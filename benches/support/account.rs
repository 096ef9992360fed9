//! Projects that cost money: no more of them than was said, for no longer than was said, and deleted whatever happens.

use std::{
    collections::BTreeSet,
    error::Error,
    future::pending,
    io::{self, Write},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tenantry::{BoxError, ErrorKind};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, sleep, timeout},
};
use tokio_util::task::TaskTracker;

use super::neon_service::NeonService;

/// Longest wait for the end of what goes on when a run is stopped.
const STOP_TIMEOUT: Duration = Duration::from_secs(90);
/// Longest time in which a deletion is tried again.
const DELETION: Duration = Duration::from_secs(120);
/// Longest search for a project whose creation had no answer.
const SEARCH: Duration = Duration::from_secs(10);
/// The wait between two tries.
const WAIT: Duration = Duration::from_secs(2);

/// The projects that one run has created.
pub(crate) struct Account {
    pub(crate) service: NeonService,
    /// The prefix of the names of all such runs' projects.
    kind: &'static str,
    /// The prefix of the names of this run's projects; no other run has it.
    tag: String,
    budget: Budget,
    creations: TaskTracker,
    // Held for a look or a change.
    created: Mutex<Created>,
}

#[derive(Default)]
struct Created {
    /// Creations that were begun.
    begun: usize,
    ids: BTreeSet<String>,
}

/// The most that a run uses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    pub(crate) projects: usize,
    pub(crate) time: Duration,
}

impl Account {
    /// Nothing is created yet. Names begin with `kind`.
    pub(crate) fn new(service: NeonService, kind: &'static str, budget: Budget) -> Arc<Self> {
        let id = uuid::Uuid::new_v4().simple().to_string();
        Arc::new(Self {
            service,
            kind,
            tag: format!("{kind}-{}", &id[..12]),
            budget,
            creations: TaskTracker::new(),
            created: Mutex::default(),
        })
    }

    /// Creates a project by `create`, which gets its name and returns its id. It goes on if the caller is dropped, so
    /// that its outcome is known.
    pub(crate) async fn create<T, Fut>(
        self: &Arc<Self>,
        create: impl FnOnce(String) -> Fut,
    ) -> Result<T, BoxError>
    where
        T: Send + 'static,
        Fut: Future<Output = Result<(String, T), BoxError>> + Send + 'static,
    {
        let number = {
            let mut created = self.created();
            if created.begun >= self.budget.projects || self.creations.is_closed() {
                let budget = match self.budget.projects {
                    1 => "1 project".to_owned(),
                    count => format!("{count} projects"),
                };
                return Err(format!("the budget of {budget} is used up").into());
            }
            created.begun += 1;
            created.begun
        };
        let create = create(format!("{}-{number}", self.tag));
        let account = Arc::clone(self);
        let creation = self.creations.spawn(async move {
            let (id, answer) = create.await?;
            say(&format!("created  project {id}"));
            account.created().ids.insert(id);
            Ok::<_, BoxError>(answer)
        });
        creation.await?
    }

    /// Deletes a project at the end that was created by chance.
    #[allow(dead_code, reason = "a benchmark creates none by chance")]
    pub(crate) fn adopt(&self, id: &str) {
        self.created().ids.insert(id.to_owned());
    }

    /// Runs `work` until it ends, panics, its time is over, or the process is told to end (Ctrl-C, SIGTERM, SIGHUP).
    /// Then deletes every project, and returns when they are gone.
    ///
    /// # Errors
    /// That of `work`, or what stopped it, or which projects could not be deleted.
    pub(crate) async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl Future<Output = Result<T, BoxError>> + Send + 'static,
    ) -> Result<T, BoxError> {
        let mut stop = Stop::listen()?;
        self.leftovers().await?;
        let mut task = tokio::spawn(work);
        let stopped = tokio::select! {
            done = &mut task => Ok(done),
            signal = stop.wait() => Err(format!("stopped by {signal}")),
            () = sleep(self.budget.time) => Err(format!("stopped: the {} are over", minutes(self.budget.time))),
        };
        let ended = match stopped {
            Ok(done) => done.unwrap_or_else(|panic| Err(panic.into())),
            Err(why) => {
                say(&format!("{why}; projects are deleted first"));
                task.abort();
                drop(timeout(STOP_TIMEOUT, task).await);
                Err(why.into())
            }
        };
        // Signals are still caught: another one does not keep a deletion from its end.
        let deleted = self.delete_all().await;
        match (ended, deleted) {
            (ended, Ok(())) => ended,
            (Ok(_), Err(left)) => Err(left),
            (Err(err), Err(left)) => Err(format!("{err}; {left}").into()),
        }
    }

    /// Tells of projects that a run before this one has left: a process that is killed deletes nothing. Also shows,
    /// before anything is created, whether the API takes the key.
    async fn leftovers(&self) -> Result<(), BoxError> {
        for project in self.service.neon.projects_like(self.kind).await? {
            say(&format!(
                "found    project {} ({}) of another run; delete it by hand if that has ended",
                project.id, project.name
            ));
        }
        Ok(())
    }

    async fn delete_all(&self) -> Result<(), BoxError> {
        self.creations.close();
        drop(timeout(STOP_TIMEOUT, self.creations.wait()).await);
        let mut ids = self.created().ids.clone();
        if self.created().begun > ids.len() {
            ids.extend(self.unanswered().await);
        }
        let mut left = Vec::new();
        for id in ids {
            match self.delete(&id).await {
                Ok(()) => say(&format!("deleted  project {id}")),
                Err(err) => left.push(format!(
                    "project {id} is NOT deleted ({}); delete it by hand",
                    error_chain(&*err)
                )),
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        Err(left.join("; ").into())
    }

    /// The projects of this run that the search finds: a creation had no answer. It may have failed.
    async fn unanswered(&self) -> Vec<String> {
        say("looking for a project whose creation had no answer");
        let start = Instant::now();
        loop {
            match self.service.neon.projects_like(&self.tag).await {
                Ok(found) if found.is_empty() && start.elapsed() < SEARCH => {}
                Ok(found) => return found.into_iter().map(|it| it.id).collect(),
                Err(err) => {
                    say(&format!("cannot look for it: {}", error_chain(&err)));
                    return Vec::new();
                }
            }
            sleep(WAIT).await;
        }
    }

    async fn delete(&self, id: &str) -> Result<(), BoxError> {
        let start = Instant::now();
        loop {
            match self.service.neon.delete_project(id).await {
                Ok(_) => return Ok(()),
                Err(err) if err.kind() == ErrorKind::NotFound => return Ok(()), // gone already
                Err(err) if err.kind() == ErrorKind::Refused || start.elapsed() > DELETION => {
                    return Err(err.into());
                }
                Err(err) => say(&format!(
                    "deleting project {id}: {}; again",
                    error_chain(&err)
                )),
            }
            sleep(WAIT).await;
        }
    }

    fn created(&self) -> MutexGuard<'_, Created> {
        self.created.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The signals that ask a process to end.
struct Stop(Vec<(&'static str, Signal)>);

impl Stop {
    fn listen() -> io::Result<Self> {
        let all = [
            ("Ctrl-C", SignalKind::interrupt()),
            ("SIGTERM", SignalKind::terminate()),
            ("SIGHUP", SignalKind::hangup()),
        ];
        let all = all.map(|(name, kind)| Ok((name, signal(kind)?)));
        all.into_iter().collect::<io::Result<_>>().map(Self)
    }

    /// The name of the first that comes.
    async fn wait(&mut self) -> &'static str {
        let each = self.0.iter_mut().map(|(name, signal)| {
            Box::pin(async move {
                if signal.recv().await.is_none() {
                    pending::<()>().await;
                }
                *name
            })
        });
        futures_util::future::select_all(each).await.0
    }
}

/// Prints a line, and ignores that no process reads it: a closed pipe must not keep a project from being deleted.
pub(crate) fn say(line: &str) {
    let mut out = io::stdout();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// An error and what it comes from.
pub(crate) fn error_chain(err: &(dyn Error + 'static)) -> String {
    let mut text = err.to_string();
    let mut source = err.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// A time in minutes, rounded up.
pub(crate) fn minutes(time: Duration) -> String {
    match time.as_secs().div_ceil(60) {
        1 => "1 minute".to_owned(),
        count => format!("{count} minutes"),
    }
}

/// Dollars of a quarter of a compute unit that is awake for `time`, at the rates of two of Neon's plans (2026-11).
pub(crate) fn cost(time: Duration) -> String {
    const LAUNCH: f64 = 0.106;
    const SCALE: f64 = 0.222;
    let hours = time.as_secs_f64() / 3600.0 * 0.25;
    format!(
        "{hours:.3} compute-hours ({:.3} $ on the Launch plan, {:.3} $ on Scale, within the free ones on Free)",
        hours * LAUNCH,
        hours * SCALE
    )
}
