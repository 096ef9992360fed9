//! Checks after an event: the next call works, and nothing was written twice.

use tenantry::{ErrorKind, emulator::Reason};
use tokio::sync::watch;

use super::{
    call::{Failed, SLACK, SlowQuery, tenant_of_row},
    event_test::EventTest,
    table::{Cells, Event, Outcome, State, Verb},
};

impl EventTest {
    /// Ends what goes wrong, and looks at what it has left.
    pub(super) async fn check_recovery(&self, state: State, outcomes: Cells) {
        let outcomes = || Verb::ALL.into_iter().zip(outcomes);
        for (verb, outcome) in outcomes().filter(|(_, it)| it.is_refusal()) {
            self.check_repeated_refusal(verb, state, outcome).await;
        }
        for id in self.ids() {
            self.shared.env.emulator.set_fault(&id, None);
        }
        self.thaw();
        if self.is_repeated() && outcomes().any(|(_, it)| matches!(it, Outcome::Fails(..))) {
            self.shared.env.emulator.restart_proxy();
        }
        for (verb, outcome) in outcomes() {
            if outcome.is_refusal() {
                self.shared.router.evict(verb.tenant());
            }
            self.check_next_call(verb, state, outcome).await;
        }
    }

    /// A refusal is told again at once, without another login, until `evict` is called.
    async fn check_repeated_refusal(&self, verb: Verb, state: State, outcome: Outcome) {
        let attempts = || self.shared.env.witness(verb.tenant()).auth_attempts.len();
        let before = attempts();
        let (arrived, _arrivals) = watch::channel(0);
        let slow_query = SlowQuery::new(self.event, State::Asleep, &arrived);
        let again = self.call_once(verb, state, &slow_query, SLACK).await;
        let case = format!("{}: {verb:?} again", self.case(state));
        assert_eq!((again, attempts()), (outcome, before), "{case}");
    }

    /// The next call works, and finds as often as it must what the call before has written.
    async fn check_next_call(&self, verb: Verb, state: State, outcome: Outcome) {
        let case = format!("{}: after {verb:?}", self.case(state));
        let count = "SELECT count(*) FROM keys WHERE key = $1";
        let next = self.read(verb, async |tx| {
            let count: i64 = tx.query_one(count, &[&self.case(state)]).await?.get(0);
            Ok::<_, Failed>((tenant_of_row(&tx).await?, count))
        });
        let (found, count) = next.await.expect(&case);
        assert_eq!(found, verb.tenant(), "{case}: the wrong tenant");
        let allowed = match outcome {
            Outcome::Rows if verb == Verb::Transaction => 1..=1,
            Outcome::Fails(ErrorKind::CommitUnknown, _) => 0..=1,
            _ => 0..=0,
        };
        assert!(allowed.contains(&count), "{case}: written {count} times");
    }

    /// Returns whether the proxy repeats the refusal for a while after the event is over.
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
