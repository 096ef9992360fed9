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
    fake_control_plane::FakeControlPlane,
    gate::{Gate, Step},
};

const SECOND: Duration = Duration::from_secs(1);
/// Enough for all that takes no time.
const MOMENT: Duration = Duration::from_millis(1);
const CURRENT_DATABASE: &str = "SELECT current_database()";

/// A call of the router.
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

/// The point at which a call meets its gate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum FaultPoint {
    At(Step),
    /// In the queue for the one connection there may be.
    Queue,
}

/// A call, and what it meets where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) call: Call,
    pub(crate) point: FaultPoint,
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

    /// Returns whether its caller runs the query, and waits for it as long as it likes.
    pub(crate) fn hands_out_client(self) -> bool {
        matches!(self, Self::Get | Self::Direct | Self::DirectAwake)
    }

    pub(crate) fn is_in_transaction(self) -> bool {
        matches!(self, Self::Read | Self::Transaction)
    }

    /// Returns whether it ever comes to `point`.
    pub(crate) fn reaches(self, point: FaultPoint) -> bool {
        match point {
            FaultPoint::At(Step::Lookup | Step::Create) => self != Self::DirectAwake,
            // In the queue that one would be no other case; and who wants the database awake takes no connection.
            FaultPoint::Queue => !matches!(self, Self::Warm | Self::DirectAwake),
            FaultPoint::At(Step::Open | Step::Login) => true,
            FaultPoint::At(Step::Verify) => {
                !matches!(self, Self::Warm | Self::Direct | Self::DirectAwake)
            }
            FaultPoint::At(Step::Query) => self != Self::Warm,
            FaultPoint::At(Step::Begin | Step::Commit | Step::Rollback) => self.is_in_transaction(),
        }
    }
}

/// The holder of the one connection that the call waits for.
#[expect(dead_code, reason = "held until it is dropped")]
enum Held {
    Pooled(TenantClient),
    Direct(Box<DirectClient>),
}

/// A router with one tenant, which may have one connection of each kind, just before the call.
pub(crate) struct CallTest {
    case: Case,
    tasks: usize,
    backend: Backend,
    router: TenantRouter,
    held: Option<Held>,
}

impl CallTest {
    pub(crate) async fn new(case: Case) -> Self {
        let tasks = alive_tasks();
        let backend = Backend::default();
        let builder = if case.point == FaultPoint::At(Step::Create) {
            FakeControlPlane::router(&backend)
        } else {
            backend.router()
        };
        let router = builder.pool_size(1).direct_connections(1).build().unwrap();
        if case.call == Call::DirectAwake {
            drop(router.get("acme").await.unwrap());
        }
        if case.point == FaultPoint::At(Step::Verify) {
            drop(router.get("acme").await.unwrap());
            sleep(31 * SECOND).await;
        }
        let mut call_test = Self {
            case,
            tasks,
            backend,
            router,
            held: None,
        };
        match case.point {
            FaultPoint::At(step) => call_test.backend.set(step, case.gate),
            FaultPoint::Queue if case.gate == Gate::Open => {}
            FaultPoint::Queue => call_test.held = Some(call_test.hold().await),
        }
        call_test
    }

    async fn hold(&self) -> Held {
        match self.case.call {
            Call::Direct => Held::Direct(Box::new(self.router.direct("acme").await.unwrap())),
            _ => Held::Pooled(self.router.get("acme").await.unwrap()),
        }
    }

    /// Makes the call, and returns what the caller is told if it stays, and how long that takes.
    pub(crate) async fn run(&mut self) -> (Option<Result<(), Error>>, Duration) {
        let began = Instant::now();
        let call = call(self.case, self.router.clone());
        let served = async { tokio::join!(call, self.release_connection()).0 };
        let outcome = timeout(60 * SECOND, served).await;
        (outcome.ok(), began.elapsed())
    }

    /// The caller leaves when it has come to the place.
    pub(crate) async fn cancel_at_point(&mut self) {
        let (backend, case) = (self.backend.clone(), self.case);
        let before = backend.counts();
        let reached = async {
            match case.point {
                FaultPoint::Queue => sleep(MOMENT).await,
                FaultPoint::At(step) => {
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
        self.release_connection().await;
    }

    /// The caller leaves after so many turns of its task, which has one whenever every other task that can run has had
    /// one; says whether it was served by then. Another one, who has come right after it, is served in any case.
    pub(crate) async fn cancel_after_polls(&mut self, mut polls: usize) -> bool {
        let (call, other) = (call(self.case, self.router.clone()), self.router.clone());
        let leave = poll_fn(move |cx| {
            if polls == 0 {
                return Poll::Ready(());
            }
            polls -= 1;
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
        let other =
            tokio::spawn(async move { current_database(&other.get("acme").await.unwrap()).await });
        assert_eq!(other.await.unwrap().unwrap(), "acme", "{:?}", self.case);
        caller.await.unwrap()
    }

    /// Lets go of what the call waits for, as the gate says.
    async fn release_connection(&mut self) {
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

    /// Lets everything work again, and checks that the next callers are served and that nothing is left in the end.
    pub(crate) async fn assert_clean_end(self) {
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
        wait_until("nothing is under way", case, done).await;

        // Each has but one place.
        let client = router.get("acme").await;
        let client = client.unwrap_or_else(|err| panic!("{case:?}: {err:?}"));
        assert_eq!(current_database(&client).await.unwrap(), "acme", "{case:?}");
        drop(client);
        let client = router.direct("acme").await;
        let client = client.unwrap_or_else(|err| panic!("{case:?}: {err:?}"));
        assert_eq!(current_database(&client).await.unwrap(), "acme", "{case:?}");
        drop(client);
        let created = u64::from(case.point == FaultPoint::At(Step::Create));
        assert_eq!(backend.counts().created, created, "{case:?}");

        router.evict("acme");
        wait_until("nothing is open", case, || backend.counts().is_empty()).await;
        let status = router.status();
        assert_eq!((status.connections, status.pools), (0, 0), "{case:?}");
        drop(router);
        sleep(MOMENT).await;
        assert_eq!(alive_tasks(), before, "{case:?}");
    }
}

/// Does what the caller asks for. At a rollback, its closure fails for a reason of its own.
async fn call(case: Case, router: TenantRouter) -> Result<(), Error> {
    let fails = case.point == FaultPoint::At(Step::Rollback);
    let work = |tx: Tx| async move {
        current_database(&tx).await?;
        if fails {
            return Err(TenantId::parse("").unwrap_err().into());
        }
        Ok::<_, Error>(())
    };
    match case.call {
        Call::Get => drop(current_database(&*router.get("acme").await?).await?),
        Call::Read => router.read("acme", work).await?,
        Call::Transaction => router.transaction("acme", work).await?,
        Call::Warm => router.warm("acme").wait().await?,
        Call::Direct | Call::DirectAwake => {
            drop(current_database(&*router.direct("acme").await?).await?);
        }
    }
    Ok(())
}

/// Returns the tenant whose database `client` is connected to, by the server's own word.
async fn current_database(client: &Client) -> Result<String, tokio_postgres::Error> {
    let rows = client.query_typed(CURRENT_DATABASE, &[]).await?;
    Ok(rows[0].get(0))
}

/// Tasks of the runtime that have not ended.
fn alive_tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

/// Waits until `condition` holds, for 10 seconds at most.
async fn wait_until(what: &str, case: Case, condition: impl Fn() -> bool) {
    let holds = async {
        while !condition() {
            sleep(MOMENT).await;
        }
    };
    let held = timeout(10 * SECOND, holds).await.is_ok();
    assert!(held, "{case:?}: never: {what}");
}
