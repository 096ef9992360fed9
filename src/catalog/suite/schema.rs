//! Cases about the state of a tenant's schema.

use std::time::Duration;

use tokio::time::Instant;

use super::{LEASE, Outcome, Stage, equal, holds, tenant, until};
use crate::{
    catalog::{AfterWrite, Catalog, SchemaFailure, State},
    model::error::BoxError,
};

/// A failure that is tried again after `retry`.
fn failure(step: i64, mark: i64, retry: Option<Duration>) -> SchemaFailure {
    let mut failure = SchemaFailure::new(step, mark, "no");
    failure.retry = retry;
    failure
}

pub(super) async fn retry<R: Catalog>(stage: &Stage<R>) -> Outcome {
    let acme = tenant("acme");
    let (lease, mut record) = stage.brought(&acme, State::Ready, "p").await?;
    let left = || async {
        let failure = stage.found(&acme).await?.schema.failure;
        Ok::<_, BoxError>(failure.ok_or("the failure is gone")?.retry)
    };
    record.schema.failure = Some(failure(3, 7, Some(LEASE)));
    stage.wrote(&lease, &record, AfterWrite::Keep).await?;
    let first = left().await?.unwrap_or_default();
    holds(
        first <= LEASE && first > LEASE / 2,
        &format!("of {LEASE:?} until the next try, {first:?} are left"),
    )?;
    until("the next try never comes nearer", || async {
        Ok(left().await?.is_some_and(|left| left < first))
    })
    .await?;
    record.schema.failure = Some(failure(3, 7, Some(Duration::from_millis(50))));
    stage.wrote(&lease, &record, AfterWrite::Keep).await?;
    until("the next try is never due", || async {
        Ok(left().await? == Some(Duration::ZERO))
    })
    .await?;
    record.schema.failure = Some(failure(3, 7, None));
    stage.wrote(&lease, &record, AfterWrite::Keep).await?;
    equal(
        "the next try of a step in quarantine",
        &left().await?,
        &None,
    )
}

pub(super) async fn tally<R: Catalog>(stage: &Stage<R>) -> Outcome {
    holds(
        stage.records.tally().await?.is_empty(),
        "an empty catalog counts tenants",
    )?;
    let failures = [
        None,
        None,
        Some(failure(1, 1, Some(LEASE))),
        Some(failure(2, 2, None)),
    ];
    for (at, failure) in failures.into_iter().enumerate() {
        let id = tenant(&format!("acme-{at}"));
        let (lease, mut record) = stage.brought(&id, State::Ready, &format!("p{at}")).await?;
        record.schema.version = 3;
        record.schema.failure = failure;
        stage.wrote(&lease, &record, AfterWrite::Release).await?;
    }
    let (_, _) = stage
        .brought(&tenant("new"), State::Preparing, "new")
        .await?;
    let mut found: Vec<_> = stage
        .records
        .tally()
        .await?
        .into_iter()
        .map(|it| {
            (
                it.state.as_str(),
                it.version,
                it.failed,
                it.quarantined,
                it.tenants,
            )
        })
        .collect();
    found.sort_unstable();
    let expected = vec![
        ("preparing", 0, false, false, 1),
        ("ready", 3, false, false, 2),
        ("ready", 3, true, false, 1),
        ("ready", 3, true, true, 1),
    ];
    equal("the number of tenants in each state", &found, &expected)
}

pub(super) async fn age<R: Catalog>(stage: &Stage<R>) -> Outcome {
    let acme = tenant("acme");
    let (lease, mut record) = stage.brought(&acme, State::Ready, "p").await?;
    let age = || async {
        let failure = stage.found(&acme).await?.schema.failure;
        Ok::<_, BoxError>(failure.ok_or("the failure is gone")?.age)
    };
    record.schema.failure = Some(failure(3, 7, None));
    stage.wrote(&lease, &record, AfterWrite::Keep).await?;
    let enough = Duration::from_millis(300);
    until("a failure never becomes older", || async {
        Ok(age().await? > enough)
    })
    .await?;
    // The next failure of the same step, with what the catalog is to ignore.
    let mut next = failure(3, 7, Some(LEASE));
    next.attempts = 2;
    next.age = Duration::ZERO;
    record.schema.failure = Some(next);
    stage.wrote(&lease, &record, AfterWrite::Keep).await?;
    holds(
        age().await? > enough,
        "the second failure of a step has made the first one younger",
    )?;
    for (step, mark) in [(4, 7), (4, 8)] {
        until("a failure never becomes older", || async {
            Ok(age().await? > enough)
        })
        .await?;
        let mut other = failure(step, mark, None);
        other.age = LEASE;
        record.schema.failure = Some(other);
        let began = Instant::now();
        stage.wrote(&lease, &record, AfterWrite::Keep).await?;
        let (now, elapsed) = (age().await?, began.elapsed());
        let why = format!("the failure of another step is {now:?} old after {elapsed:?}");
        holds(now <= elapsed + enough / 3, &why)?;
    }
    record.schema.failure = None;
    stage.wrote(&lease, &record, AfterWrite::Keep).await?;
    let found = stage.found(&acme).await?;
    equal("a failure that is mended", &found.schema.failure, &None)
}
