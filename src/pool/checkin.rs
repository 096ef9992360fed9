//! Check-in: returning connections to their pool, and removing them when they end.

use std::{
    sync::{Arc, MutexGuard},
    time::Duration,
};

use tokio::time::Instant;

use super::{Pool, State, cleanup::Cleanup, loan::Loan, shared::Shared};
use crate::{
    connection::{Connection, status::ConnectionStatus},
    telemetry::stats::count,
};

/// Lifetime below which an unused connection counts as an early end: the next ones will probably end early too.
const EARLY_END: Duration = Duration::from_secs(1);

impl Pool {
    /// Takes a connection back from its caller.
    pub(super) fn check_in(self: &Arc<Self>, connection: Connection) {
        let status = &connection.status;
        if status.take_mutable() && !connection.has_original_client() {
            // The caller has swapped its client with that of another tenant's connection.
            return connection.close();
        }
        if status.is_clean() {
            let mut state = self.state_of_idle();
            // Under the lock, or else its task might end unseen in between.
            if status.is_unmarked() {
                status.mark_served();
                if self.only_keeps(&mut state) {
                    return state.push_clean(connection);
                }
                return self.hand_out_by(state, connection);
            }
        }
        self.check_in_closely(connection);
    }

    /// Takes a connection back that is not clean, or that is marked.
    #[cold]
    fn check_in_closely(self: &Arc<Self>, connection: Connection) {
        self.return_used_hint(&connection.status);
        if connection.status.has_ended() {
            return; // its task does the rest
        }
        if !connection.status.is_idle() {
            return self.clean_up(connection);
        }
        connection.status.mark_served();
        if connection.status.session.needs_reset() {
            return self.clean_up(connection);
        }
        self.hand_out(connection);
    }

    /// Returns whether a clean, unmarked connection that comes back can only be kept: no caller waits for it, and there
    /// is no reason to close it or to learn from it. Whatever changes that takes the lock of the pool afterwards, or
    /// holds it.
    fn only_keeps(&self, state: &mut State) -> bool {
        let Shared {
            config,
            dialer,
            life,
            ..
        } = &*self.shared;
        let is_needed = self.clearing.is_clearing_due() || dialer.budget.is_contended();
        state.is_usual(config) && !is_needed && !life.is_stopping()
    }

    /// Gives the hint budget its unit back if a hint opened the connection: its first use proves that the hint was
    /// right.
    fn return_used_hint(&self, status: &ConnectionStatus) {
        if let Some(hinted_at) = status.take_hint_used() {
            self.shared.hints.give_back(hinted_at);
        }
    }

    /// Hands a connection to the longest waiter, or keeps it idle; closes it if it must not be used again.
    pub(crate) fn hand_out(self: &Arc<Self>, connection: Connection) {
        self.hand_out_by(self.state(), connection);
    }

    /// Does the same as [`hand_out`](Self::hand_out), under a lock that is held already.
    fn hand_out_by(self: &Arc<Self>, mut state: MutexGuard<'_, State>, connection: Connection) {
        state.note_access();
        if connection.status.has_ended() {
            drop(state);
            self.request_statement_clearing_for(&connection);
            // The connection's task has reported its end. But a waiter may have counted on this connection.
            return self.start_due_attempts();
        }
        state.note_alive(&connection.status);
        // After a loss, a login in progress answers the wake waiters, because it proves more than this connection.
        if state.has_wake_waiters() && (state.lost.is_none() || state.dialing == 0) {
            self.tell_awake(&mut state, &connection.status);
        }
        let status = &connection.status;
        if self.clearing.is_clearing_due() {
            status.suspect(); // so that the next caller checks whether the statements are cleared
        }
        // A cancel request may still be in flight. The next waiter could not use the connection, and would lose its
        // turn.
        let must_close =
            status.is_expired() || status.was_cancelled() || self.shared.life.is_terminated();
        let surplus = state.surplus(&self.shared.config) > 0;
        let must_close = must_close || surplus || state.condemns(&connection);
        if must_close || self.gives_way(&state, &connection) {
            status.mark_closing(); // now, so that `surplus` does not count it as one that stays
            drop(state);
            self.request_statement_clearing_for(&connection);
            return connection.close();
        }
        if let Some(waiter) = state.next_waiter() {
            state.lent += 1;
            connection.status.lend(None);
            let loan = Loan::new(connection, Arc::clone(self));
            drop(state); // before the loan can come back, which takes the lock
            // If the waiter has just left, the loan is dropped here, and the connection goes to the next waiter.
            drop(waiter.sender.send(Ok(loan)));
        } else if state.retired || self.shared.life.is_stopping() {
            drop(state);
            connection.close();
        } else if let Err(stray) = state.push_idle(connection) {
            drop(state);
            self.clean_up(stray);
        }
    }

    /// Takes an idle connection out of the pool after a request turned up on it.
    pub(super) fn remove_stray(self: &Arc<Self>, status: &Arc<ConnectionStatus>) {
        if let Some(connection) = self.take_idle(status) {
            self.clean_up(connection);
        }
    }

    /// Starts the cleanup of a connection that came back busy or with a session to reset, in its own task.
    pub(super) fn clean_up(self: &Arc<Self>, connection: Connection) {
        self.request_statement_clearing_for(&connection); // now, or the next caller could meet the same refusal
        let cleanup = Cleanup::new(connection, self);
        self.shared.runtime.spawn(cleanup.run());
    }

    /// Marks a connection as one whose query is cancelled. Returns `false` if `loan` is over, so that the request would
    /// hit another caller's query.
    pub(crate) fn mark_cancelled(&self, status: &ConnectionStatus, loan: u64) -> bool {
        let _held = self.state(); // no connection is lent or comes back in between
        status.mark_cancelled(loan)
    }

    fn take_idle(&self, status: &Arc<ConnectionStatus>) -> Option<Connection> {
        let is_it = |idle: &Connection| Arc::ptr_eq(&idle.status, status);
        self.state().take_idle(is_it).pop()
    }

    /// Notes that a connection's task has ended.
    pub(super) fn on_closed(self: &Arc<Self>, status: &Arc<ConnectionStatus>) {
        drop(self.take_idle(status));
        let mut state = self.state();
        state.remove_open(status);
        count(&self.shared.stats.closed);
        let closed_by_us = status.is_closing() && status.farewell().is_none();
        let is_early_end =
            !closed_by_us && !status.has_served() && status.opened().elapsed() < EARLY_END;
        if is_early_end {
            state.rare.make().early_ends += 1;
        } else {
            state.rare.reset(|rare| rare.early_ends = 0);
        }
        if !closed_by_us {
            count(&self.shared.stats.closed_by_peer);
            state.note_loss(status.died().unwrap_or_else(Instant::now));
        }
        drop(state);
        self.changed.notify_waiters(); // waiters may have no connection left to wait for
        self.start_due_attempts();
    }
}

#[cfg(test)]
mod tests {
    use std::{future::ready, thread, time::Duration};

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        sync::oneshot,
        task::yield_now,
        time::timeout,
    };

    use super::*;
    use crate::{
        model::{
            endpoint::{Endpoint, Route},
            error::Error,
            tenant::TenantId,
        },
        pool::{Unserved, state::Waiter},
        provision::source::OnMissing,
        router::TenantRouter,
    };

    /// Answers a login, and nothing else.
    async fn serve(mut stream: DuplexStream) {
        let length = stream.read_u32().await.unwrap_or(4);
        let mut startup = vec![0; length as usize - 4];
        let answer = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";
        if stream.read_exact(&mut startup).await.is_ok() && stream.write_all(answer).await.is_ok() {
            let _end = stream.read_to_end(&mut Vec::new()).await;
        }
    }

    /// A router with room for one connection, to any tenant.
    fn router() -> TenantRouter {
        let endpoint = || Endpoint::postgres("h", "d", "r", "p").without_tls();
        let builder = TenantRouter::builder(move |_: TenantId| ready(Ok(Some(endpoint()))));
        let builder = builder.open_streams(|_, _| {
            let (ours, its) = duplex(1024);
            tokio::spawn(serve(its));
            ready(Ok(ours))
        });
        builder.max_connections(1).build().unwrap()
    }

    /// Returns a pool, and a connection that was lent from it and that nothing speaks against.
    async fn lent(router: &TenantRouter) -> (Arc<Pool>, Connection) {
        let loan = router.inner.get("acme", OnMissing::AskPolicy, None).await;
        let pool = Arc::clone(loan.unwrap().pool());
        loop {
            let pop_clean = |mut state: MutexGuard<'_, State>| {
                let is_clean = state.next_idle().is_some_and(|it| it.status.is_clean());
                is_clean.then(|| state.pop_idle()).flatten()
            };
            if let Some(connection) = pop_clean(pool.state()) {
                return (pool, connection);
            }
            yield_now().await; // its task has not settled after the login
        }
    }

    /// Makes a pool, or its connection, special.
    type Change = fn(&Arc<Pool>, &ConnectionStatus);

    const SPECIAL: &[(&str, Change)] = &[
        ("too old", |_, status| status.expire()),
        ("ended", |_, status| status.mark_ended()),
        ("suspect", |_, status| status.suspect()),
        ("opened for a hint", |_, status| {
            status.mark_hinted(Instant::now());
        }),
        ("cancelled", |pool, status| {
            assert!(pool.mark_cancelled(status, status.loan_number()));
        }),
        ("of an earlier endpoint", |pool, _| {
            let moved = Endpoint::postgres("other", "d", "r", "p").without_tls();
            assert!(pool.set_endpoint(Arc::new(moved), true));
            pool.state().lost = None; // a login at the new endpoint has ended that
        }),
        ("one too many", |pool, _| {
            let config = &pool.shared.config;
            pool.state().set_max_connections(Some(0), config);
        }),
        ("to be cleared", |pool, _| pool.clear_statements()),
        ("wanted by a caller", |pool, _| {
            let (sender, _) = oneshot::channel();
            let until = Instant::now() + Duration::from_secs(1);
            pool.state().enqueue(Waiter { sender, until }, false);
        }),
        ("the first since a loss", |pool, _| {
            pool.state().note_asleep();
        }),
        ("not trusted", |pool, _| pool.condemn(Instant::now())),
        ("of a forbidden pool", |pool, _| {
            pool.forbid(&Unserved::relocate());
        }),
        ("of a pool that has failed", |pool, _| {
            pool.record_failure(Route::Pooled, Error::closed());
        }),
        ("of an evicted pool", |pool, _| {
            assert!(pool.retire().is_empty());
        }),
        ("of a router that ends", |pool, _| {
            pool.shared.life.stop_accepting();
        }),
    ];

    /// Returns whether check-in keeps a connection without a closer look.
    fn keeps(pool: &Pool, status: &ConnectionStatus) -> bool {
        status.is_clean() && status.is_unmarked() && pool.only_keeps(&mut pool.state_of_idle())
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_kept_without_a_closer_look_if_nothing_is_special() {
        let router = router();
        let (pool, connection) = lent(&router).await;
        assert!(keeps(&pool, &connection.status));
        pool.check_in(connection);
        assert_eq!(pool.state().idle(), 1);
        for (what, change) in SPECIAL {
            let router = self::router();
            let (pool, connection) = lent(&router).await;
            assert!(keeps(&pool, &connection.status), "before it is {what}");
            change(&pool, &connection.status);
            let kept = keeps(&pool, &connection.status);
            assert!(!kept, "a connection that is {what} is kept");
        }
        let (pool, _) = lent(&router).await;
        pool.clear_statements();
        let keeps_new_ones = pool.only_keeps(&mut pool.state_of_idle());
        assert!(!keeps_new_ones, "before the statements are cleared");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_another_tenant_lacks_is_not_kept_without_a_closer_look() {
        let router = router();
        let (pool, connection) = lent(&router).await;
        let mut other = Box::pin(router.inner.get("globex", OnMissing::AskPolicy, None));
        let waits = timeout(Duration::from_secs(1), &mut other).await;
        assert!(waits.is_err() && pool.shared.dialer.budget.is_contended());
        assert!(!keeps(&pool, &connection.status));
    }

    #[tokio::test]
    async fn a_connection_whose_task_has_not_settled_is_not_kept_without_a_closer_look() {
        let router = router();
        let (pool, connection) = lent(&router).await;
        {
            let mut query = Box::pin(connection.client.batch_execute("SELECT 1"));
            assert!(futures_util::poll!(&mut query).is_pending());
        }
        assert!(!keeps(&pool, &connection.status));
    }

    #[tokio::test]
    async fn a_connection_whose_client_was_swapped_is_closed() {
        let routers = [router(), router()];
        let get = |router: &TenantRouter| {
            let inner = Arc::clone(&router.inner);
            async move { inner.get("acme", OnMissing::AskPolicy, None).await.unwrap() }
        };
        let (mut one, mut other) = (get(&routers[0]).await, get(&routers[1]).await);
        std::mem::swap(
            &mut one.connection_mut().client,
            &mut other.connection_mut().client,
        );
        let pools = [Arc::clone(one.pool()), Arc::clone(other.pool())];
        drop((one, other));
        assert_eq!(pools.map(|pool| pool.state().idle()), [0, 0]);
    }

    #[tokio::test]
    async fn an_idle_connection_that_needs_a_check_is_left_to_a_caller_that_waits() {
        let router = router();
        let (pool, connection) = lent(&router).await;
        connection.status.suspect();
        pool.check_in(connection);
        let counts = || {
            let state = pool.state();
            (state.idle(), state.reused)
        };
        let before = counts();
        let pools = &router.inner.pools;
        assert!(
            pools
                .try_get_idle("acme")
                .is_err_and(|known| known.is_some())
        );
        assert_eq!((counts(), before.0), (before, 1));
    }

    #[tokio::test]
    async fn a_request_to_cancel_waits_while_its_connection_goes_to_another_caller() {
        let router = router();
        let (pool, connection) = lent(&router).await;
        let (status, loan) = (&connection.status, connection.status.loan_number());
        thread::scope(|scope| {
            let held = pool.state();
            let marked = scope.spawn(|| pool.mark_cancelled(status, loan));
            for _ in 0..10_000 {
                thread::yield_now(); // the other thread has all the time to mark what it must not mark
            }
            status.lend(None); // to the next caller, as `hand_out` does
            drop(held);
            assert!(!marked.join().unwrap());
        });
        assert!(!connection.status.was_cancelled());
    }
}
