//! Cases about leases.

use futures_util::future::join_all;

use tokio::time::{Instant, sleep};

use super::{LEASE, Outcome, SHORT, Stage, equal, holds, tenant, until};
use crate::catalog::{AfterWrite, Catalog, Lease, Leased, State};

pub(super) async fn one_owner<R: Catalog>(stage: &Stage<R>) -> Outcome {
    let acme = tenant("acme");
    holds(
        stage.records.find(&acme).await?.is_none(),
        "a record exists before the first lease",
    )?;
    let (_, record) = stage.granted(&acme, "one", LEASE).await?;
    let fresh =
        matches!(record.state, State::Claimed | State::Creating) && record.attempt.is_none();
    holds(
        fresh,
        "a new record must be claimed or creating, and have no attempt",
    )?;
    let left = stage.held(&acme, "other").await?;
    holds(
        !left.is_zero() && left <= LEASE,
        &format!("a lease of {LEASE:?} has {left:?} left"),
    )?;
    let seen = stage.found(&acme).await?.leased_for;
    holds(
        seen.is_some_and(|it| it <= LEASE && it > LEASE / 2),
        &format!("the record says that the lease has {seen:?} left"),
    )?;
    stage.granted(&tenant("other"), "other", LEASE).await?;
    Ok(())
}

pub(super) async fn renewal<R: Catalog>(stage: &Stage<R>) -> Outcome {
    let acme = tenant("acme");
    let (first, _) = stage.granted(&acme, "one", LEASE / 2).await?;
    // A caller that did not get the answer also asks again like this.
    let (renewed, _) = stage.granted(&acme, "one", LEASE).await?;
    equal("the token of a renewed lease", &renewed.token, &first.token)?;
    let left = stage.held(&acme, "other").await?;
    holds(
        left > LEASE / 2,
        &format!("a renewed lease has only {left:?} left"),
    )?;
    let (shorter, _) = stage.granted(&acme, "one", SHORT).await?;
    equal("the token of a renewed lease", &shorter.token, &first.token)?;
    let left = stage.found(&acme).await?.leased_for.unwrap_or_default();
    holds(
        left <= SHORT,
        &format!("a lease that was renewed for {SHORT:?} has {left:?} left"),
    )
}

pub(super) async fn expiry<R: Catalog>(stage: &Stage<R>) -> Outcome {
    let acme = tenant("acme");
    let (first, _) = stage.granted(&acme, "one", SHORT).await?;
    let began = Instant::now();
    let mut held = 0;
    let second = loop {
        match stage.records.lease(&acme, "other", LEASE).await? {
            Leased::Granted(lease, _) => break lease,
            Leased::Held(left) => {
                holds(
                    left <= SHORT,
                    &format!("a lease of {SHORT:?} has {left:?} left"),
                )?;
                holds(began.elapsed() < super::LONG, "a lease never expires")?;
                held += 1;
                sleep(left.min(SHORT / 10)).await;
            }
        }
    };
    holds(held > 0, "a lease expires at once")?;
    holds(
        second.token > first.token,
        "the token does not rise when the lease goes to another owner",
    )?;
    stage.held(&acme, "one").await.map(drop)
}

pub(super) async fn release<R: Catalog>(stage: &Stage<R>) -> Outcome {
    let (records, acme) = (&stage.records, tenant("acme"));
    let (first, record) = stage.granted(&acme, "one", LEASE).await?;
    records
        .release(&Lease::new(acme.clone(), "other", first.token))
        .await?;
    records
        .release(&Lease::new(acme.clone(), "one", first.token + 1))
        .await?;
    stage.held(&acme, "other").await?;
    records.release(&first).await?;
    equal(
        "the time left of a released lease",
        &stage.found(&acme).await?.leased_for,
        &None,
    )?;
    let (second, _) = stage.granted(&acme, "other", LEASE).await?;
    holds(
        second.token > first.token,
        "the token does not rise when the lease goes to another owner",
    )?;
    records.release(&first).await?;
    stage.held(&acme, "one").await?;
    // A write may release the lease, too.
    stage.wrote(&second, &record, AfterWrite::Release).await?;
    stage.granted(&acme, "third", LEASE).await?;
    records
        .release(&Lease::new(tenant("nobody"), "one", 1))
        .await
}

pub(super) async fn race<R: Catalog>(stage: &Stage<R>) -> Outcome {
    for round in 0..5 {
        let id = tenant(&format!("tenant-{round}"));
        let owners: Vec<_> = (0..16).map(|owner| format!("owner-{owner}")).collect();
        let asked = owners
            .iter()
            .map(|owner| stage.records.lease(&id, owner, LEASE));
        let mut granted = 0;
        for answer in join_all(asked).await {
            granted += usize::from(matches!(answer?, Leased::Granted(..)));
        }
        equal(
            "the number of callers (of 16) that were granted the lease",
            &granted,
            &1,
        )?;
    }
    Ok(())
}

pub(super) async fn fencing<R: Catalog>(stage: &Stage<R>) -> Outcome {
    let (records, acme) = (&stage.records, tenant("acme"));
    let (late, mut record) = stage.granted(&acme, "one", SHORT).await?;
    let lapsed = || async { Ok(stage.found(&acme).await?.leased_for.is_none()) };
    until("a lease never expires", lapsed).await?;
    record.plan = Some("late".into());
    let wrote = records.write(&late, &record, AfterWrite::Keep).await?;
    holds(!wrote, "a write was accepted after its lease had expired")?;
    let (present, mut good) = stage.granted(&acme, "other", LEASE).await?;
    let wrote = records.write(&late, &record, AfterWrite::Release).await?;
    holds(
        !wrote,
        "a write was accepted under a lease that another owner has now",
    )?;
    for forged in [
        Lease::new(acme.clone(), "one", present.token),
        Lease::new(acme.clone(), "other", present.token + 1),
        Lease::new(tenant("nobody"), "other", present.token),
    ] {
        record.tenant = forged.tenant.clone();
        let wrote = records.write(&forged, &record, AfterWrite::Keep).await?;
        holds(!wrote, "a write was accepted under a forged lease")?;
    }
    record.tenant = acme.clone();
    equal(
        "the plan after a write under an expired lease",
        &stage.found(&acme).await?.plan,
        &None,
    )?;
    let mut astray = good.clone();
    astray.tenant = tenant("beta");
    let wrote = records.write(&present, &astray, AfterWrite::Keep).await;
    holds(
        !matches!(wrote, Ok(true)),
        "a lease on one tenant's record allowed a write to another tenant's",
    )?;
    good.plan = Some("good".into());
    stage.wrote(&present, &good, AfterWrite::Release).await?;
    let wrote = records.write(&present, &record, AfterWrite::Keep).await?;
    holds(!wrote, "a write was accepted under a released lease")?;
    equal(
        "the plan that the current owner wrote",
        &stage.found(&acme).await?.plan,
        &Some("good".into()),
    )
}
