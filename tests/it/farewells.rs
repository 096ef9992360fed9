//! Transactions whose connection the server ends for what was done in them: the caller hears why.

use std::time::Duration;

use tenantry::{Error, ErrorKind, Stage as CallStage, TransactionOptions, Tx};

use super::support::{Backend, Failure, Gate, Stage, Step, eventually};

const SECOND: Duration = Duration::from_secs(1);

/// The last words of a server that ends a connection for what its user did.
const LAST_WORDS: [(&str, &str); 7] = [
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
async fn a_transaction_that_idled_for_too_long_says_so_though_its_closure_asked_once_more() {
    let stage = Stage::new().await;
    let router = stage.router();
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
        (ErrorKind::Connect, Some(CallStage::Query)),
        "{err}"
    );
    assert!(err.to_string().contains("25P03"), "{err}");
    assert_eq!(
        (err.retry_after(), runs),
        (None, 1),
        "it would end the same way"
    );
}

async fn asks_twice(tx: Tx) -> Result<(), Error> {
    let _ = tx.simple_query("SELECT 1").await;
    tx.simple_query("SELECT 2").await?;
    Ok(())
}

async fn asks_once(tx: Tx) -> Result<(), Error> {
    tx.simple_query("SELECT 1").await?;
    Ok(())
}

async fn fails_by_itself(tx: Tx) -> Result<(), Error> {
    let _ = tx.simple_query("SELECT 1").await;
    Err(tenantry::TenantId::parse("").unwrap_err().into())
}

#[tokio::test(start_paused = true)]
async fn whatever_the_closure_makes_of_it_the_servers_last_words_come_out() {
    for (code, text) in LAST_WORDS {
        for way in 0..3 {
            let backend = Backend::default();
            let router = backend.router().build().unwrap();
            backend.set(Step::Query, Gate::Fail(Failure::Fatal { code, text }));
            let mut runs = 0;
            let ended = router.transaction("acme", |tx| {
                runs += 1;
                async move {
                    match way {
                        0 => asks_once(tx).await,
                        1 => asks_twice(tx).await,
                        _ => fails_by_itself(tx).await,
                    }
                }
            });
            let err = ended.await.unwrap_err();
            let case = format!("{code} {text:?}, {way}: {err:?}");
            assert_eq!(err.kind(), ErrorKind::Connect, "{case}");
            let said = err.to_string();
            assert!(said.contains(code) && said.contains(text), "{case}");
            assert_eq!(runs, 1, "{case}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_closure_that_waits_on_after_its_connection_was_ended_hears_why_when_its_time_is_over() {
    let backend = Backend::default();
    let router = backend.router().build().unwrap();
    let (code, text) = LAST_WORDS[0];
    backend.set(Step::Query, Gate::Fail(Failure::Fatal { code, text }));
    let options = TransactionOptions::new().timeout(SECOND);
    let ended: Result<(), Error> = router
        .transaction_with("acme", &options, |tx| async move {
            let _ = tx.simple_query("SELECT 1").await;
            std::future::pending().await
        })
        .await;
    let err = ended.unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Timeout(CallStage::Query));
    let source = std::error::Error::source(&err).map(ToString::to_string);
    assert!(
        source.as_ref().is_some_and(|it| it.contains(code)),
        "{source:?}"
    );
}
