//! Transactions that lose their connection, or their time, at exact moments: what is run again, and what never is.

use std::time::Duration;

use futures_util::join;
use tenantry::{Error, ErrorKind, Stage, TenantRouter, TransactionOptions};
use tokio::time::{Instant, advance, sleep};

use super::support::{Backend, Failure, Gate, Step, query_text};

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);
const CURRENT_DATABASE: &str = "SELECT current_database()";

fn backend_and_router() -> (Backend, TenantRouter) {
    let backend = Backend::default();
    let router = backend.router().build().expect("router");
    (backend, router)
}

fn with_timeout(limit: Duration) -> TransactionOptions {
    TransactionOptions::new().timeout(limit)
}

#[tokio::test(start_paused = true)]
async fn a_closure_that_committed_is_not_run_again_when_its_connection_is_lost_afterwards() {
    let (backend, router) = backend_and_router();
    let mut runs = 0;
    let ended = router.transaction("acme", |tx| {
        runs += 1;
        let backend = &backend;
        async move {
            tx.simple_query("INSERT").await?;
            tx.simple_query("COMMIT").await?;
            backend.set(Step::Query, Gate::Fail(Failure::Cut));
            tx.simple_query(CURRENT_DATABASE).await?;
            Ok::<_, Error>(())
        }
    });
    assert_eq!(ended.await.unwrap_err().kind(), ErrorKind::Misused);
    assert_eq!((runs, backend.counts().commits), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_closure_that_may_have_committed_is_not_run_again_when_the_answer_is_lost() {
    let long = format!("INSERT INTO t VALUES ('{}'); COMMIT", "x".repeat(1000));
    let texts = [
        ("COMMIT", true),
        ("COMMIT", false),
        ("INSERT; end", false),
        (&*long, false),
        ("INSERT INTO t VALUES ('a;-b'); COMMIT", false),
        ("INSERT INTO t VALUES ('a;/*b'); COMMIT", false),
    ];
    for (sql, prepared) in texts {
        let (backend, router) = backend_and_router();
        backend.set(Step::Commit, Gate::Fail(Failure::Lost));
        let mut runs = 0;
        let ended = router.transaction("acme", |tx| {
            runs += 1;
            async move {
                tx.simple_query("INSERT").await?;
                if prepared {
                    tx.execute(sql, &[]).await?;
                } else {
                    tx.batch_execute(sql).await?;
                }
                Ok::<_, Error>(())
            }
        });
        let err = ended.await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::CommitUnknown, "{sql}, {prepared}");
        assert_eq!(
            (runs, backend.counts().commits),
            (1, 1),
            "{sql}, {prepared}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_chained_transaction_is_not_run_again_and_one_with_a_savepoint_is() {
    for (sql, runs_wanted) in [("COMMIT AND CHAIN", 1), ("ROLLBACK TO s", 2)] {
        let (backend, router) = backend_and_router();
        let mut runs = 0;
        let ended = router.transaction("acme", |tx| {
            runs += 1;
            let fails = if runs == 1 {
                Gate::Fail(Failure::Cut)
            } else {
                Gate::Open
            };
            let backend = &backend;
            async move {
                backend.set(Step::Query, Gate::Open);
                tx.simple_query("INSERT").await?;
                tx.simple_query(sql).await?;
                backend.set(Step::Query, fails);
                tx.simple_query("INSERT").await?;
                Ok::<_, Error>(())
            }
        });
        assert_eq!(ended.await.is_ok(), runs_wanted == 2, "{sql}");
        assert_eq!((runs, backend.counts().commits), (runs_wanted, 1), "{sql}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_ends_connections_at_begin_is_not_dialed_again_without_a_pause() {
    let texts = [
        ("08P01", "server login has been failing, try again later"),
        (
            "57P01",
            "terminating connection due to administrator command",
        ),
    ];
    for (code, text) in texts {
        let (backend, router) = backend_and_router();
        backend.set(Step::Login, Gate::Slow(MILLISECOND));
        backend.set(Step::Begin, Gate::Fail(Failure::Fatal { code, text }));
        let (options, start) = (with_timeout(10 * SECOND), Instant::now());
        let ended = router.transaction_with("acme", &options, |tx| async move {
            drop(tx);
            Ok::<_, Error>(())
        });
        ended.await.unwrap_err();
        assert!(start.elapsed() <= 10 * SECOND, "{code}");
        let logins = backend.counts().logins_started;
        assert!(logins <= 12, "{code}: {logins} logins");
    }
}

#[tokio::test(start_paused = true)]
async fn a_transaction_that_notices_a_loss_late_does_not_end_the_wake_after_it() {
    let (backend, router) = backend_and_router();
    let both = (
        router.get("acme").await.unwrap(),
        router.get("acme").await.unwrap(),
    );
    drop(both);
    let start = Instant::now();
    let update = async |after: Duration| {
        let mut runs = 0;
        let updated = router.transaction("acme", |tx| {
            runs += 1;
            let wait = if runs == 1 { after } else { Duration::ZERO };
            async move {
                sleep(wait).await;
                tx.simple_query("UPDATE t").await?;
                Ok::<_, Error>(())
            }
        });
        updated.await.unwrap();
        assert_eq!(runs, 2);
    };
    backend.set(Step::Query, Gate::Fail(Failure::Cut));
    backend.set(Step::Login, Gate::Slow(3 * SECOND));
    join!(update(MILLISECOND), update(SECOND), async {
        sleep(3 * SECOND / 2).await;
        backend.set(Step::Query, Gate::Open);
    });
    assert!(start.elapsed() < 4 * SECOND, "{:?}", start.elapsed());
    assert_eq!(router.status().wakes_by_request.started, 2);
}

#[tokio::test(start_paused = true)]
async fn connections_opened_since_a_loss_stay_open_though_a_transaction_notices_it_late() {
    let (backend, router) = backend_and_router();
    let both = (
        router.get("acme").await.unwrap(),
        router.get("acme").await.unwrap(),
    );
    drop(both);
    let start = Instant::now();
    let update = async |busy: Duration| {
        let mut runs = 0;
        let updated = router.transaction("acme", |tx| {
            runs += 1;
            let busy = if runs == 1 { busy } else { Duration::ZERO };
            async move {
                let (updated, ()) = join!(tx.simple_query("UPDATE t"), sleep(busy));
                updated?;
                Ok::<_, Error>(())
            }
        });
        updated.await.unwrap();
    };
    backend.set(Step::Query, Gate::Fail(Failure::Cut));
    backend.set(Step::Login, Gate::Slow(3 * SECOND));
    join!(update(Duration::ZERO), update(5 * SECOND), async {
        sleep(SECOND).await;
        backend.set(Step::Query, Gate::Open);
    });
    assert_eq!(start.elapsed(), 5 * SECOND);
    assert_eq!(backend.counts().logins_done, 3);
    assert!(!router.hint("acme"), "it is known to be awake");
}

#[tokio::test(start_paused = true)]
async fn a_slow_begin_has_its_time_and_costs_no_other_connection() {
    let (backend, router) = backend_and_router();
    let held = router.get("acme").await.unwrap();
    backend.set(Step::Begin, Gate::Slow(6 * SECOND));
    let start = Instant::now();
    let done = router.transaction("acme", |tx| async move {
        tx.simple_query("INSERT").await?;
        Ok::<_, Error>(())
    });
    done.await.unwrap();
    assert_eq!(start.elapsed(), 11 * SECOND);
    assert_eq!(backend.counts().commits, 1);
    drop(held);
    sleep(2 * SECOND).await;
    let counts = backend.counts();
    assert_eq!((counts.logins_done, counts.open), (3, 2));
}

#[tokio::test(start_paused = true)]
async fn no_commit_is_sent_when_the_time_is_over() {
    let (backend, router) = backend_and_router();
    let options = with_timeout(SECOND);
    let late = router.transaction_with("acme", &options, |tx| async move {
        tx.simple_query("INSERT").await?;
        advance(2 * SECOND).await; // as if it had computed for so long
        Ok::<_, Error>(())
    });
    let err = late.await.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Timeout(Stage::Query));
    sleep(SECOND).await;
    let counts = backend.counts();
    assert_eq!((counts.query_count("COMMIT"), counts.commits), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_conflict_is_recognized_though_later_statements_were_ignored() {
    let (backend, router) = backend_and_router();
    let conflict = Failure::Error {
        code: "40001",
        text: "could not serialize access due to concurrent update",
    };
    backend.set(Step::Query, Gate::Fail(conflict));
    let options = TransactionOptions::new().retry_conflicts(true);
    for pipelined in [false, true] {
        let mut runs = 0;
        let ended = router.transaction_with("acme", &options, |tx| {
            runs += 1;
            async move {
                if pipelined {
                    let inserts = join!(tx.simple_query("INSERT a"), tx.simple_query("INSERT b"));
                    inserts.0.and(inserts.1)?;
                } else {
                    tx.simple_query("INSERT a").await?;
                }
                Ok::<_, Error>(())
            }
        });
        ended.await.unwrap_err();
        assert_eq!(runs, 3, "pipelined: {pipelined}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_conflict_after_a_commit_by_the_closure_is_not_run_again() {
    let conflict = Failure::Error {
        code: "40001",
        text: "could not serialize access due to concurrent update",
    };
    for step in [Step::Query, Step::Commit] {
        let (backend, router) = backend_and_router();
        let options = TransactionOptions::new().retry_conflicts(true);
        let mut runs = 0;
        let ended = router.transaction_with("acme", &options, |tx| {
            runs += 1;
            let backend = &backend;
            async move {
                tx.simple_query("INSERT a").await?;
                tx.simple_query("COMMIT AND CHAIN").await?;
                backend.set(step, Gate::Fail(conflict));
                tx.simple_query("INSERT b").await?;
                Ok::<_, Error>(())
            }
        });
        assert_eq!(ended.await.unwrap_err().kind(), ErrorKind::Query);
        assert_eq!((runs, backend.counts().commits), (1, 1), "{step:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_transaction_may_wait_for_its_connection_as_long_as_its_own_time_lasts() {
    let (backend, router) = backend_and_router();
    backend.set(Step::Login, Gate::Slow(25 * SECOND));
    let (options, start) = (with_timeout(60 * SECOND), Instant::now());
    let done = router.transaction_with("acme", &options, |tx| async move {
        drop(tx);
        Ok::<_, Error>(())
    });
    done.await.unwrap();
    assert_eq!(start.elapsed(), 25 * SECOND, "more than get_timeout");
    let client = router.get("acme").await.unwrap();
    assert_eq!(query_text(&client, CURRENT_DATABASE).await, "acme");
}
