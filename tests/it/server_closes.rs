//! Transactions whose connection the server ends for what was done in them: the error says why.

use std::time::Duration;

use tenantry::{Error, ErrorKind, Stage, TransactionOptions, Tx};

use super::support::{Backend, Failure, Gate, Step, TestEnv, eventually};

const SECOND: Duration = Duration::from_secs(1);

/// The last words of a server that ends a connection for what its user did.
const CLOSE_ERRORS: [(&str, &str); 7] = [
    (
        "25P03",
        "terminating connection due to idle-in-transaction timeout",
    ),
    ("25P04", "terminating connection due to transaction timeout"),
    ("57P04", "database was dropped"),
    (
        "57P05",
        "terminating connection due to idle-session timeout",
    ),
    ("08P01", "query_timeout"),
    ("08P01", "query timeout"),
    ("08P01", "idle transaction timeout"),
];

#[tokio::test]
async fn a_transaction_that_idled_for_too_long_says_so_though_its_closure_sent_another_query() {
    let env = TestEnv::new().await;
    let router = env.router();
    let mut runs = 0;
    let ended: Result<(), Error> = router
        .transaction("acme", |tx| {
            runs += 1;
            async move {
                let limit = "SET LOCAL idle_in_transaction_session_timeout = 1500";
                tx.batch_execute(limit).await?;
                tx.simple_query("SELECT 1").await?;
                eventually("the server ends it", || tx.is_closed()).await;
                tx.simple_query("SELECT 2").await?;
                Ok(())
            }
        })
        .await;
    let err = ended.unwrap_err();
    assert_eq!(
        (err.kind(), err.stage()),
        (ErrorKind::Connect, Some(Stage::Query)),
        "{err}"
    );
    assert!(err.to_string().contains("25P03"), "{err}");
    assert_eq!(
        (err.retry_after(), runs),
        (None, 1),
        "it would end the same way"
    );
}

async fn query_twice(tx: Tx) -> Result<(), Error> {
    let _ = tx.simple_query("SELECT 1").await;
    tx.simple_query("SELECT 2").await?;
    Ok(())
}

async fn query_once(tx: Tx) -> Result<(), Error> {
    tx.simple_query("SELECT 1").await?;
    Ok(())
}

async fn fail_with_own_error(tx: Tx) -> Result<(), Error> {
    let _ = tx.simple_query("SELECT 1").await;
    Err(tenantry::TenantId::parse("").unwrap_err().into())
}

#[tokio::test(start_paused = true)]
async fn the_servers_last_error_is_returned_whatever_the_closure_returns() {
    for (code, text) in CLOSE_ERRORS {
        for way in 0..3 {
            let backend = Backend::default();
            let router = backend.router().build().unwrap();
            backend.set(Step::Query, Gate::Fail(Failure::Fatal { code, text }));
            let mut runs = 0;
            let ended = router.transaction("acme", |tx| {
                runs += 1;
                async move {
                    match way {
                        0 => query_once(tx).await,
                        1 => query_twice(tx).await,
                        _ => fail_with_own_error(tx).await,
                    }
                }
            });
            let err = ended.await.unwrap_err();
            let case = format!("{code} {text:?}, {way}: {err:?}");
            assert_eq!(err.kind(), ErrorKind::Connect, "{case}");
            let message = err.to_string();
            assert!(message.contains(code) && message.contains(text), "{case}");
            assert_eq!(runs, 1, "{case}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_closure_that_outlasts_its_connection_times_out_with_the_servers_error_as_its_source() {
    let backend = Backend::default();
    let router = backend.router().build().unwrap();
    let (code, text) = CLOSE_ERRORS[0];
    backend.set(Step::Query, Gate::Fail(Failure::Fatal { code, text }));
    let options = TransactionOptions::new().timeout(SECOND);
    let ended: Result<(), Error> = router
        .transaction_with("acme", &options, |tx| async move {
            let _ = tx.simple_query("SELECT 1").await;
            std::future::pending().await
        })
        .await;
    let err = ended.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Timeout(Stage::Query));
    let source = std::error::Error::source(&err).map(ToString::to_string);
    assert!(
        source.as_ref().is_some_and(|it| it.contains(code)),
        "{source:?}"
    );
}
