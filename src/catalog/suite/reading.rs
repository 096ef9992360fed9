//! Cases about lists, changes and look-ups.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
};

use futures_util::future::{join, try_join_all};

use super::{LEASE, Outcome, Stage, equal, holds, tenant};
use crate::{
    catalog::{AfterWrite, Catalog, State},
    model::tenant::TenantId,
};

/// Checks that many records are found as each by itself, in order, and that ids without a record do no harm.
pub(super) async fn find_many<R: Catalog>(stage: &Stage<R>) -> Outcome {
    let records = &stage.records;
    let found = records.find_many(&[]).await?;
    equal("the number of answers about no tenant", &found.len(), &0)?;
    for number in (0..1000).step_by(100) {
        let id = tenant(&format!("tenant-{number}"));
        stage.ready(&id, &format!("p{number}")).await?;
    }
    let all: Vec<_> = (0..1000)
        .rev()
        .map(|number| tenant(&format!("tenant-{number}")))
        .chain([tenant("tenant-0"), tenant("TENANT-0")])
        .collect();
    let found = records.find_many(&all).await?;
    equal("the number of answers", &found.len(), &all.len())?;
    for (id, found) in all.iter().zip(found) {
        let alone = records.find(id).await?;
        holds(
            found.is_ok_and(|found| found == alone),
            &format!("the record of {id} is another among many than by itself"),
        )?;
    }
    Ok(())
}

pub(super) async fn list<R: Catalog>(stage: &Stage<R>) -> Outcome {
    let records = &stage.records;
    equal("an empty list", &records.list(None, 10).await?.len(), &0)?;
    let ids: Vec<_> = (0..25)
        .map(|number| tenant(&format!("tenant-{number:02}")))
        .collect();
    for id in ids.iter().rev() {
        stage.granted(id, "one", LEASE).await?;
    }
    let (mut listed, mut after) = (Vec::new(), None);
    loop {
        let page = records.list(after.as_ref(), 7).await?;
        holds(page.len() <= 7, "a page is longer than the limit")?;
        let Some(last) = page.last() else { break };
        after = Some(last.tenant.clone());
        listed.extend(page.into_iter().map(|it| it.tenant));
    }
    equal("all pages together", &listed, &ids)?;
    // A list may start after an id that has no record.
    let from_gap = records.list(Some(&tenant("tenant-03x")), 1).await?;
    let first = from_gap.first().map(|it| it.tenant.as_str());
    equal("the tenant after tenant-03x", &first, &Some("tenant-04"))?;
    equal(
        "the number of tenants after the last one",
        &records.list(Some(&tenant("z")), 7).await?.len(),
        &0,
    )
}

pub(super) async fn changes<R: Catalog>(stage: &Stage<R>) -> Outcome {
    let records = &stage.records;
    let start = records.changes(None, 10).await?;
    holds(
        start.tenants.is_empty() && !start.reset && !start.more,
        "it reports changes although no version was given",
    )?;
    let idle = records.changes(Some(start.version), 10).await?;
    equal("the report when nothing changed", &idle, &start)?;
    let ids: Vec<_> = ["c", "a", "b"].map(tenant).into();
    for (at, id) in ids.iter().enumerate() {
        stage.ready(id, &format!("p{at}")).await?;
    }
    let (mut told, mut since) = (BTreeSet::new(), start.version);
    loop {
        let page = records.changes(Some(since), 1).await?;
        holds(
            page.tenants.len() <= 1 && !page.reset,
            "a page is longer than the limit",
        )?;
        holds(page.version >= since, "versions go back")?;
        holds(
            page.version > since || !page.more,
            "there are more pages, but the version stays the same",
        )?;
        equal("the incarnation", &page.incarnation, &start.incarnation)?;
        since = page.version;
        told.extend(page.tenants);
        if !page.more {
            break;
        }
    }
    equal(
        "the changed tenants of all pages together",
        &told,
        &ids.iter().cloned().collect(),
    )?;
    equal(
        "the version at the end",
        &records.changes(None, 1).await?.version,
        &since,
    )?;
    let ahead = records.changes(Some(since + 1000), 10).await?;
    holds(
        ahead.reset,
        "a version that does not exist yet causes no reset",
    )?;
    equal("the version after a reset", &ahead.version, &since)
}

/// Checks that every change is reported once it can be read, also beside concurrent writers.
pub(super) async fn changes_beside_writers<R: Catalog>(stage: &Stage<R>) -> Outcome {
    const TURNS: i64 = 20;
    let ids: Vec<_> = (0..8)
        .map(|number| tenant(&format!("tenant-{number}")))
        .collect();
    let since = stage.records.changes(None, 1).await?.version;
    let done = Cell::new(false);
    let writers = async {
        let written = try_join_all(ids.iter().map(|id| write_on(stage, id, TURNS))).await;
        done.set(true);
        written
    };
    let (written, seen) = join(writers, follow(stage, since, &done)).await;
    written?;
    let expected: BTreeMap<_, _> = ids.into_iter().map(|id| (id, TURNS)).collect();
    equal(
        "the last change of each tenant that a follower saw",
        &seen?,
        &expected,
    )
}

async fn write_on<R: Catalog>(stage: &Stage<R>, id: &TenantId, turns: i64) -> Outcome {
    let (lease, mut record) = stage.granted(id, "one", LEASE).await?;
    for turn in 1..=turns {
        record.schema.version = turn;
        stage.wrote(&lease, &record, AfterWrite::Keep).await?;
    }
    Ok(())
}

/// Reads every record that is reported as changed, to the last page that follows the last write.
async fn follow<R: Catalog>(
    stage: &Stage<R>,
    mut since: u64,
    done: &Cell<bool>,
) -> Outcome<BTreeMap<TenantId, i64>> {
    let mut seen = BTreeMap::new();
    loop {
        let last = done.get();
        let page = stage.records.changes(Some(since), 3).await?;
        since = page.version;
        for id in page.tenants {
            let version = stage.found(&id).await?.schema.version;
            seen.insert(id, version);
        }
        if last && !page.more {
            return Ok(seen);
        }
        tokio::task::yield_now().await;
    }
}

pub(super) async fn served<R: Catalog>(stage: &Stage<R>) -> Outcome {
    let unknown = stage.records.lookup(&tenant("nobody")).await?;
    equal("the endpoint of an unknown tenant", &unknown, &None)?;
    for &state in State::ALL {
        let id = tenant(state.as_str());
        let (lease, mut record) = stage.brought(&id, state, &format!("p-{id}")).await?;
        record.max_connections = Some(7);
        stage.wrote(&lease, &record, AfterWrite::Keep).await?;
        if state != State::Ready {
            let looked_up = stage.records.lookup(&id).await?;
            holds(
                looked_up.is_none(),
                &format!("a tenant is served although its record is {id}"),
            )?;
        } else if stage.with_passwords {
            let looked_up = stage.records.lookup(&id).await?;
            let served = record.endpoint.map(|it| it.max_connections(7));
            holds(
                looked_up == served,
                "a tenant is not served from its record",
            )?;
        }
    }
    Ok(())
}
