//! What must hold when it is over: the next call works, and nothing was written twice.

use tenantry::{ErrorKind, emulator::Reason};
use tokio::sync::watch;

use super::{
    call::{Failed, Middle, SLACK, whose},
    scene::Scene,
    table::{Cells, Event, Outcome, State, Verb},
};

impl Scene {
    /// Ends what goes wrong, and looks at what it has left.
    pub(super) async fn mend(&self, state: State, outcomes: Cells) {
        let outcomes = || Verb::ALL.into_iter().zip(outcomes);
        for (verb, outcome) in outcomes().filter(|(_, it)| it.is_refusal()) {
            self.ask_again(verb, state, outcome).await;
        }
        for id in self.ids() {
            self.ground.stage.emulator.set_fault(&id, None);
        }
        self.thaw();
        if self.is_repeated() && outcomes().any(|(_, it)| matches!(it, Outcome::Fails(..))) {
            self.ground.stage.emulator.restart_proxy();
        }
        for (verb, outcome) in outcomes() {
            if outcome.is_refusal() {
                self.ground.router.evict(verb.tenant());
            }
            self.look(verb, state, outcome).await;
        }
    }

    /// A refusal is told again at once, without another login, until somebody says that it may be over.
    async fn ask_again(&self, verb: Verb, state: State, outcome: Outcome) {
        let attempts = || self.ground.stage.witness(verb.tenant()).auth_attempts.len();
        let before = attempts();
        let (there, _arrivals) = watch::channel(0);
        let middle = Middle::new(self.event, State::Asleep, &there);
        let again = self.once(verb, state, &middle, SLACK).await;
        let case = format!("{}: {verb:?} again", self.case(state));
        assert_eq!((again, attempts()), (outcome, before), "{case}");
    }

    /// The next call works, and finds as often as it must what the call before has written.
    async fn look(&self, verb: Verb, state: State, outcome: Outcome) {
        let case = format!("{}: after {verb:?}", self.case(state));
        let count = "SELECT count(*) FROM keys WHERE key = $1";
        let next = self.read(verb, async |tx| {
            let count: i64 = tx.query_one(count, &[&self.case(state)]).await?.get(0);
            Ok::<_, Failed>((whose(&tx).await?, count))
        });
        let (whose, count) = next.await.expect(&case);
        assert_eq!(whose, verb.tenant(), "{case}: the wrong tenant");
        let allowed = match outcome {
            Outcome::Rows if verb == Verb::Transaction => 1..=1,
            Outcome::Fails(ErrorKind::CommitUnknown, _) => 0..=1,
            _ => 0..=0,
        };
        assert!(allowed.contains(&count), "{case}: written {count} times");
    }

    /// Whether the proxy goes on telling it for a while after it is over.
    fn is_repeated(&self) -> bool {
        let Event::Refused(reason, _) = self.event else {
            return false;
        };
        !matches!(
            reason,
            Reason::RunningOperations
                | Reason::ConcurrencyLimitReached
                | Reason::LockAlreadyTaken
                | Reason::EndpointIdle
                | Reason::ProjectUnderMaintenance
        )
    }
}
