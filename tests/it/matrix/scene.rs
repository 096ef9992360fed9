//! Three tenants of one router, each asked in its own way while the same happens to all of them.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use tenantry::{
    ErrorKind, TenantRouter, TransactionOptions, Tx,
    emulator::{Fault, Stop, Witness},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::{
    call::{Failed, whose},
    table::{Cells, Event, Row, State, Verb},
};
use crate::support::{LONG, Stage, eventually};

/// How long one attempt to connect lasts, where calls are shorter: the call after them meets a new one.
const ATTEMPT: Duration = Duration::from_secs(2);
/// A freeze that is over before anybody's time is.
const BRIEFLY: Duration = Duration::from_millis(500);

/// An emulator, and a router with a tenant for each verb.
pub(super) struct Ground {
    pub(super) stage: Stage,
    pub(super) router: TenantRouter,
    pub(super) patience: Duration,
}

impl Ground {
    /// Tenants that are called after the verbs, and have a row that says so.
    pub(super) async fn new(patience: Duration) -> Self {
        let stage = Stage::new().await;
        let mut builder = stage.builder("matrix").get_timeout(patience);
        if patience < ATTEMPT {
            builder = builder.wake_timeout(ATTEMPT);
        }
        let ground = Self {
            router: builder.build().unwrap(),
            patience,
            stage,
        };
        join_all(Verb::ALL.map(|verb| ground.seed(verb))).await;
        ground
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
pub(super) struct Scene {
    pub(super) ground: Arc<Ground>,
    pub(super) options: TransactionOptions,
    pub(super) row: &'static Row,
    pub(super) event: &'static Event,
}

impl Scene {
    pub(super) fn new(ground: Arc<Ground>, row: &'static Row, event: &'static Event) -> Self {
        Self {
            options: TransactionOptions::new().timeout(ground.patience),
            ground,
            row,
            event,
        }
    }

    /// What a read says before or after what happens; made again while a short time is too short for it.
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
            match self.ground.router.read(verb.tenant(), &mut work).await {
                Err(Failed::Ours(err))
                    if matches!(err.kind(), ErrorKind::Timeout(_))
                        && self.ground.patience < ATTEMPT
                        && start.elapsed() < LONG => {}
                read => return read,
            }
        }
    }

    /// Plays the event in one state, and holds every call against what is expected of it.
    pub(super) async fn play(&self, state: State, expected: Cells) {
        self.prepare(state).await;
        let (there, arrivals) = watch::channel(0);
        let calls = Verb::ALL.map(|verb| self.call(verb, state, &there));
        let happens = async {
            if state.is_mid_query() {
                let mut arrivals = arrivals;
                let all = arrivals.wait_for(|there| *there == Verb::ALL.len());
                let all = timeout(LONG, all).await.is_ok();
                assert!(all, "{}: not in the middle", self.case(state));
                self.happen(state).await;
            }
            if matches!(self.event, Event::FreezeBriefly) {
                sleep(BRIEFLY).await;
                self.thaw();
            }
        };
        if !state.is_mid_query() {
            self.happen(state).await;
        }
        let (seen, ()) = tokio::join!(join_all(calls), happens);
        let case = self.case(state);
        assert_eq!(seen, expected, "{case}: get + query, read, transaction");
        self.mend(state, expected).await;
    }

    pub(super) fn case(&self, state: State) -> String {
        format!("{:?}, {state:?}", self.event)
    }

    fn witnesses(&self) -> [Witness; 3] {
        Verb::ALL.map(|verb| self.ground.stage.witness(verb.tenant()))
    }

    pub(super) fn ids(&self) -> [String; 3] {
        self.witnesses().map(|it| it.endpoint_id)
    }

    /// A connection for each tenant that lies idle; then sleep, if that is the state.
    async fn prepare(&self, state: State) {
        for verb in Verb::ALL {
            let warm = self.read(verb, async |tx| whose(&tx).await).await;
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
            self.ground.router.status().connections == 0
        })
        .await;
    }

    async fn stop(&self, how: Stop) {
        let ids = self.ids();
        let stops = ids
            .iter()
            .map(|id| self.ground.stage.emulator.stop(id, how));
        assert!(join_all(stops).await.iter().all(|was_awake| *was_awake));
    }

    fn crash(&self) {
        for id in self.ids() {
            self.ground.stage.emulator.crash(&id);
        }
    }

    pub(super) fn thaw(&self) {
        for id in self.ids() {
            self.ground.stage.emulator.thaw(&id);
        }
    }

    async fn happen(&self, state: State) {
        let emulator = &self.ground.stage.emulator;
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
                    self.start().await; // nothing is there to be frozen unless somebody else has woken it
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
        }
    }

    /// Starts the computes through the API, without a session.
    async fn start(&self) {
        let neon = self.ground.stage.neon();
        for it in self.witnesses() {
            let started = neon.start_project_endpoint(&it.project_id, &it.endpoint_id);
            started.await.unwrap();
            neon.wait_for_operations(&it.project_id).await.unwrap();
        }
    }
}
