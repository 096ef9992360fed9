//! Three tenants of one router, each asked in its own way while the same happens to all of them.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use tenantry::{
    ErrorKind, TenantRouter, Tx,
    emulator::{Fault, Stop, Witness},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::{
    call::{Failed, tenant_of_row},
    table::{Cells, Event, Row, State, Verb},
};
use crate::support::{LONG, TestEnv, eventually};

/// The time that one attempt to connect lasts, where calls are shorter: the call after them meets a new one.
const WAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// A freeze that ends before any call's deadline.
const BRIEF_FREEZE: Duration = Duration::from_millis(500);

/// An emulator, and a router with a tenant for each verb.
pub(super) struct SharedEnv {
    pub(super) env: TestEnv,
    pub(super) router: TenantRouter,
    pub(super) deadline: Duration,
}

impl SharedEnv {
    /// Tenants that are called after the verbs, and have a row that says so.
    pub(super) async fn new(deadline: Duration) -> Self {
        let env = TestEnv::new().await;
        let mut builder = env.builder("matrix").get_timeout(deadline);
        if deadline < WAKE_TIMEOUT {
            builder = builder.wake_timeout(WAKE_TIMEOUT);
        }
        let shared = Self {
            router: builder.build().unwrap(),
            deadline,
            env,
        };
        join_all(Verb::ALL.map(|verb| shared.seed(verb))).await;
        shared
    }

    async fn seed(&self, verb: Verb) {
        let client = loop {
            if let Ok(client) = self.router.get(verb.tenant()).await {
                break client; // a short time may be too short for a creation
            }
        };
        let tables = format!(
            "CREATE TABLE identity AS SELECT '{}' AS tenant; CREATE TABLE keys (key text)",
            verb.tenant()
        );
        client.batch_execute(&tables).await.unwrap();
    }
}

/// An event of a row, and where it happens.
pub(super) struct EventTest {
    pub(super) shared: Arc<SharedEnv>,
    pub(super) row: &'static Row,
    pub(super) event: &'static Event,
}

impl EventTest {
    pub(super) fn new(shared: Arc<SharedEnv>, row: &'static Row, event: &'static Event) -> Self {
        Self { shared, row, event }
    }

    /// Returns what `work` reads before or after the event. Runs it again while a short deadline is too short for it.
    pub(super) async fn read<T, Fut>(
        &self,
        verb: Verb,
        mut work: impl FnMut(Tx) -> Fut,
    ) -> Result<T, Failed>
    where
        Fut: Future<Output = Result<T, Failed>> + Send,
    {
        let start = Instant::now();
        loop {
            match self.shared.router.read(verb.tenant(), &mut work).await {
                Err(Failed::Ours(err))
                    if matches!(err.kind(), ErrorKind::Timeout(_))
                        && self.shared.deadline < WAKE_TIMEOUT
                        && start.elapsed() < LONG => {}
                read => return read,
            }
        }
    }

    /// Runs the event in one state, and holds every call against what is expected of it.
    pub(super) async fn run(&self, state: State, expected: Cells) {
        self.prepare(state).await;
        let (arrived, arrivals) = watch::channel(0);
        let calls = Verb::ALL.map(|verb| self.call(verb, state, &arrived));
        let triggers = async {
            if state.is_mid_query() {
                let mut arrivals = arrivals;
                let all = arrivals.wait_for(|arrived| *arrived == Verb::ALL.len());
                let all = timeout(LONG, all).await.is_ok();
                assert!(all, "{}: not in the middle", self.case(state));
                self.trigger(state).await;
            }
            if matches!(self.event, Event::FreezeBriefly) {
                sleep(BRIEF_FREEZE).await;
                self.thaw();
            }
        };
        if !state.is_mid_query() {
            self.trigger(state).await;
        }
        let (seen, ()) = tokio::join!(join_all(calls), triggers);
        let case = self.case(state);
        assert_eq!(seen, expected, "{case}: get + query, read, transaction");
        self.check_recovery(state, expected).await;
    }

    pub(super) fn case(&self, state: State) -> String {
        format!("{:?}, {state:?}", self.event)
    }

    fn witnesses(&self) -> [Witness; 3] {
        Verb::ALL.map(|verb| self.shared.env.witness(verb.tenant()))
    }

    pub(super) fn ids(&self) -> [String; 3] {
        self.witnesses().map(|it| it.endpoint_id)
    }

    /// A connection for each tenant that lies idle; then sleep, if that is the state.
    async fn prepare(&self, state: State) {
        for verb in Verb::ALL {
            let warm = self.read(verb, async |tx| tenant_of_row(&tx).await).await;
            assert!(warm.is_ok(), "{}: {warm:?}", self.case(state));
        }
        if state != State::Asleep {
            return;
        }
        match self.event {
            Event::Stop(how) => self.stop(*how).await,
            Event::Crash => self.crash(),
            _ => self.stop(Stop::Neon).await,
        }
        eventually("the router has seen it fall asleep", || {
            self.shared.router.status().connections == 0
        })
        .await;
    }

    async fn stop(&self, how: Stop) {
        let ids = self.ids();
        let stops = ids.iter().map(|id| self.shared.env.emulator.stop(id, how));
        assert!(join_all(stops).await.iter().all(|was_awake| *was_awake));
    }

    fn crash(&self) {
        for id in self.ids() {
            self.shared.env.emulator.crash(&id);
        }
    }

    pub(super) fn thaw(&self) {
        for id in self.ids() {
            self.shared.env.emulator.thaw(&id);
        }
    }

    async fn trigger(&self, state: State) {
        let emulator = &self.shared.env.emulator;
        let ids = self.ids();
        match self.event {
            Event::Fault(fault) => {
                for id in &ids {
                    emulator.set_fault(id, fault.clone());
                }
            }
            Event::Refused(reason, times) => {
                for id in &ids {
                    emulator.set_fault(id, Fault::wake_refused(*reason, *times));
                }
            }
            Event::Stop(how) if state != State::Asleep => self.stop(*how).await,
            Event::Crash if state != State::Asleep => self.crash(),
            Event::Stop(_) | Event::Crash => {}
            Event::FreezeBriefly | Event::Freeze => {
                if state == State::Asleep {
                    self.start().await; // nothing is there to be frozen unless another client has woken it
                }
                for id in &ids {
                    emulator.freeze(id);
                }
            }
            Event::RestartProxy => emulator.restart_proxy(),
            Event::RotatePassword => {
                let rotated = ids.iter().map(|id| emulator.rotate_password(id));
                assert!(join_all(rotated).await.iter().all(Option::is_some));
            }
            Event::MoveEndpoint => {
                let moved = ids.iter().map(|id| emulator.move_endpoint(id));
                assert!(join_all(moved).await.iter().all(Option::is_some));
            }
        }
        if state == State::Suspended {
            self.stop(Stop::Neon).await;
            // The sockets are closed, and the router has not looked at them.
            let are_closed = || self.witnesses().iter().all(|it| it.open_sessions == 0);
            eventually("the sessions are closed", are_closed).await;
        }
    }

    /// Starts the computes through the API, without a session.
    async fn start(&self) {
        let neon = self.shared.env.neon();
        for it in self.witnesses() {
            let started = neon.start_project_endpoint(&it.project_id, &it.endpoint_id);
            started.await.unwrap();
            neon.wait_for_operations(&it.project_id).await.unwrap();
        }
    }
}
