//! One call, what it meets, and what has to be true afterwards.

use std::{future::poll_fn, task::Poll, time::Duration};

use tenantry::{
    DirectClient, Error, TenantClient, TenantId, TenantRouter, Tx, deadpool_postgres::Client,
    tokio_postgres,
};
use tokio::{
    runtime::Handle,
    time::{Instant, sleep, timeout},
};

use super::{
    backend::{Backend, Counts},
    gate::{Gate, Step},
    projects::Projects,
};

const SECOND: Duration = Duration::from_secs(1);
/// Enough for all that takes no time.
const MOMENT: Duration = Duration::from_millis(1);
const WHO: &str = "SELECT current_database()";

/// What a caller asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Call {
    Get,
    Read,
    Transaction,
    Warm,
    Direct,
    /// The same while the tenant is awake.
    DirectAwake,
}

/// Where it meets something.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Place {
    At(Step),
    /// In the queue for the one connection there may be.
    Queue,
}

/// A call, and what it meets where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) call: Call,
    pub(crate) place: Place,
    pub(crate) gate: Gate,
}

impl Call {
    pub(crate) const ALL: [Self; 6] = [
        Self::Get,
        Self::Read,
        Self::Transaction,
        Self::Warm,
        Self::Direct,
        Self::DirectAwake,
    ];

    /// Whether its caller runs the query, and waits for it as long as it likes.
    pub(crate) fn is_by_hand(self) -> bool {
        matches!(self, Self::Get | Self::Direct | Self::DirectAwake)
    }

    pub(crate) fn is_in_transaction(self) -> bool {
        matches!(self, Self::Read | Self::Transaction)
    }

    /// Whether it ever comes to `place`.
    pub(crate) fn comes_to(self, place: Place) -> bool {
        match place {
            Place::At(Step::Lookup | Step::Create) => self != Self::DirectAwake,
            // In the queue that one would be no other case; and who wants the database awake takes no connection.
            Place::Queue => !matches!(self, Self::Warm | Self::DirectAwake),
            Place::At(Step::Open | Step::Login) => true,
            Place::At(Step::Verify) => {
                !matches!(self, Self::Warm | Self::Direct | Self::DirectAwake)
            }
            Place::At(Step::Query) => self != Self::Warm,
            Place::At(Step::Begin | Step::Commit | Step::Rollback) => self.is_in_transaction(),
        }
    }
}

/// What holds the one connection that the call waits for.
#[expect(dead_code, reason = "held until it is dropped")]
enum Held {
    Pooled(TenantClient),
    Direct(Box<DirectClient>),
}

/// A router with one tenant, which may have one connection of each kind, just before the call.
pub(crate) struct Scene {
    case: Case,
    tasks: usize,
    backend: Backend,
    router: TenantRouter,
    held: Option<Held>,
}

impl Scene {
    pub(crate) async fn before(case: Case) -> Self {
        let tasks = tasks();
        let backend = Backend::default();
        let builder = if case.place == Place::At(Step::Create) {
            Projects::router(&backend)
        } else {
            backend.router()
        };
        let router = builder.pool_size(1).direct_connections(1).build().unwrap();
        if case.call == Call::DirectAwake {
            drop(router.get("acme").await.unwrap());
        }
        if case.place == Place::At(Step::Verify) {
            drop(router.get("acme").await.unwrap());
            sleep(31 * SECOND).await;
        }
        let mut scene = Self {
            case,
            tasks,
            backend,
            router,
            held: None,
        };
        match case.place {
            Place::At(step) => scene.backend.set(step, case.gate),
            Place::Queue if case.gate == Gate::Open => {}
            Place::Queue => scene.held = Some(scene.hold().await),
        }
        scene
    }

    async fn hold(&self) -> Held {
        match self.case.call {
            Call::Direct => Held::Direct(Box::new(self.router.direct("acme").await.unwrap())),
            _ => Held::Pooled(self.router.get("acme").await.unwrap()),
        }
    }

    /// What the caller is told if it stays, and how long that takes.
    pub(crate) async fn stays(&mut self) -> (Option<Result<(), Error>>, Duration) {
        let began = Instant::now();
        let call = call(self.case, self.router.clone());
        let served = async { tokio::join!(call, self.serve_queue()).0 };
        let told = timeout(60 * SECOND, served).await;
        (told.ok(), began.elapsed())
    }

    /// The caller leaves when it has come to the place.
    pub(crate) async fn leaves(&mut self) {
        let (backend, case) = (self.backend.clone(), self.case);
        let before = backend.counts();
        let reached = async {
            match case.place {
                Place::Queue => sleep(MOMENT).await,
                Place::At(step) => {
                    let reached = |now: &Counts| now.reached(step) > before.reached(step);
                    backend.until("it comes to the place", reached).await;
                }
            }
        };
        tokio::select! {
            biased;
            _ = call(case, self.router.clone()) => {}
            () = reached => {}
        }
        self.serve_queue().await;
    }

    /// The caller leaves after so many turns of its task, which has one whenever every other task that can run has had
    /// one; says whether it was served by then. Another one, who has come right after it, is served in any case.
    pub(crate) async fn leaves_after(&mut self, mut turns: usize) -> bool {
        let (call, other) = (call(self.case, self.router.clone()), self.router.clone());
        let leave = poll_fn(move |cx| {
            if turns == 0 {
                return Poll::Ready(());
            }
            turns -= 1;
            cx.waker().wake_by_ref();
            Poll::Pending
        });
        let caller = tokio::spawn(async {
            tokio::select! {
                biased;
                _ = call => true,
                () = leave => false,
            }
        });
        let other = tokio::spawn(async move { asks(&other.get("acme").await.unwrap()).await });
        assert_eq!(other.await.unwrap().unwrap(), "acme", "{:?}", self.case);
        caller.await.unwrap()
    }

    /// Lets go of what the call waits for, as the gate says.
    async fn serve_queue(&mut self) {
        match (&self.held, self.case.gate) {
            (None, _) | (_, Gate::Open | Gate::Stuck) => return,
            (_, Gate::Slow(time)) => sleep(time).await,
            (_, Gate::Fail(_)) => {
                sleep(MOMENT).await;
                self.backend.suspend();
                sleep(MOMENT).await; // by then the router knows
            }
        }
        self.held = None;
    }

    /// When all works again, the next callers are served, and what was opened can be closed: nothing else is there.
    pub(crate) async fn ends_in_order(self) {
        let Self {
            case,
            tasks: before,
            backend,
            router,
            held,
        } = self;
        for step in Step::ALL {
            backend.set(step, Gate::Open);
        }
        drop(held);
        let done = || (router.status().flights, router.status().attempts) == (0, 0);
        soon("nothing is under way", case, done).await;

        // Each has but one place.
        let client = router.get("acme").await;
        let client = client.unwrap_or_else(|err| panic!("{case:?}: {err:?}"));
        assert_eq!(asks(&client).await.unwrap(), "acme", "{case:?}");
        drop(client);
        let client = router.direct("acme").await;
        let client = client.unwrap_or_else(|err| panic!("{case:?}: {err:?}"));
        assert_eq!(asks(&client).await.unwrap(), "acme", "{case:?}");
        drop(client);
        let created = u64::from(case.place == Place::At(Step::Create));
        assert_eq!(backend.counts().created, created, "{case:?}");

        router.evict("acme");
        soon("nothing is open", case, || backend.counts().is_empty()).await;
        let status = router.status();
        assert_eq!((status.connections, status.pools), (0, 0), "{case:?}");
        drop(router);
        sleep(MOMENT).await;
        assert_eq!(tasks(), before, "{case:?}");
    }
}

/// Does what the caller asks for. At a rollback, its closure fails for a reason of its own.
async fn call(case: Case, router: TenantRouter) -> Result<(), Error> {
    let fails = case.place == Place::At(Step::Rollback);
    let work = |tx: Tx| async move {
        asks(&tx).await?;
        if fails {
            return Err(TenantId::parse("").unwrap_err().into());
        }
        Ok::<_, Error>(())
    };
    match case.call {
        Call::Get => drop(asks(&*router.get("acme").await?).await?),
        Call::Read => router.read("acme", work).await?,
        Call::Transaction => router.transaction("acme", work).await?,
        Call::Warm => router.warm("acme").wait().await?,
        Call::Direct | Call::DirectAwake => {
            drop(asks(&*router.direct("acme").await?).await?);
        }
    }
    Ok(())
}

/// Whose database it is, by the server's own word.
async fn asks(client: &Client) -> Result<String, tokio_postgres::Error> {
    let rows = client.query_typed(WHO, &[]).await?;
    Ok(rows[0].get(0))
}

/// Tasks of the runtime that have not ended.
fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

/// Waits until `condition` holds, for 10 seconds at most.
async fn soon(what: &str, case: Case, condition: impl Fn() -> bool) {
    let holds = async {
        while !condition() {
            sleep(MOMENT).await;
        }
    };
    let held = timeout(10 * SECOND, holds).await.is_ok();
    assert!(held, "{case:?}: never: {what}");
}
