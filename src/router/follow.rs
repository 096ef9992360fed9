//! Follows the catalog: a change by another process updates the entries of this process, and then its pools.
//!
//! It calls only the catalog: it opens no session to a tenant, and waits for no control plane. One task reads the
//! changes, invalidates the entries of changed tenants and queues these tenants. Another task reads the records of
//! queued tenants and updates their pools.

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    catalog::{
        Changes,
        cached::{Denial, Entry, Reading},
    },
    model::{
        error::{Error, ErrorKind},
        tenant::TenantId,
    },
    pool::{Unserved, cache::PoolCache, shared::Shared},
    provision::{ProvisionEngine, source::Source},
    sync::{lock, retry::chance, supervise::supervise},
    telemetry::stats::count,
};

/// Changes per call of the catalog.
const PAGE: usize = 500;
/// Shortest time from one question for changes to the next, so that notifications of many writes cost few questions.
/// The first one after a silence is followed at once.
const SPACING: Duration = Duration::from_millis(50);
/// Calls that read records concurrently.
const SIDE_BY_SIDE: usize = 8;
/// Records per call at first. Afterwards as many as the catalog reads in time, up to [`MOST_RECORDS`].
const FIRST_RECORDS: usize = 64;
const MOST_RECORDS: usize = 500;
/// Shortest wait after a failure.
const SHORTEST_REST: Duration = Duration::from_millis(250);

/// Starts the follower, if the router has a catalog of its own.
pub(crate) fn start(pools: &Arc<PoolCache>) {
    let shared = pools.shared();
    if shared.source.catalog().is_some() {
        let follower = Follower {
            pools: Arc::downgrade(pools),
            shared: Arc::clone(shared),
            seen: Mutex::default(),
        };
        shared.runtime.spawn(follower.run());
    }
}

struct Follower {
    // Weak, because the pools must end with the router.
    pools: Weak<PoolCache>,
    shared: Arc<Shared>,
    // The position up to which changes were applied. Kept here so that it survives a panic of the task. Held for a read
    // or a write.
    seen: Mutex<Seen>,
}

impl Follower {
    /// Runs until the router ends.
    async fn run(self) {
        let Source::Provisioning(provisioning) = &self.shared.source else {
            return;
        };
        let changes = supervise("follower of the catalog's changes", || {
            self.follow_changes(provisioning)
        });
        let refresh = supervise("refresh of the catalog's records", || {
            self.refresh_queued(provisioning)
        });
        tokio::select! {
            biased;
            () = self.shared.life.terminated() => {}
            () = changes => {}
            () = refresh => {}
        }
    }

    /// Reads and applies changes in a loop.
    async fn follow_changes(&self, provisioning: &ProvisionEngine) {
        loop {
            let asked_at = Instant::now();
            let heard = self.hear_changes(provisioning).await;
            provisioning.catalog.note_asked_for_changes();
            let next_at = match heard {
                Ok(()) => {
                    provisioning.catalog.note_heard();
                    self.news(provisioning).await;
                    asked_at + SPACING
                }
                Err(err) => {
                    tracing::debug!(%err, "cannot read the catalog's changes");
                    Instant::now() + rest_after(&err)
                }
            };
            sleep_until(next_at).await;
        }
    }

    /// Waits until the catalog may have changes, or the next poll is due.
    async fn news(&self, provisioning: &ProvisionEngine) {
        let interval = async {
            match self.shared.config.catalog_poll {
                Some(interval) => {
                    let more = interval / 5 * u32::from(chance()) / u32::from(u8::MAX);
                    sleep(interval / 10 * 9 + more).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = provisioning.catalog.changed() => {}
            () = interval => {}
        }
    }

    /// Reads and applies all changes after those in `seen`.
    async fn hear_changes(&self, provisioning: &ProvisionEngine) -> Result<(), Error> {
        let catalog = &provisioning.catalog;
        loop {
            catalog.refresh.has_room().await;
            let seen = *lock(&self.seen);
            let changes = catalog.changes(seen.version, PAGE).await?;
            if seen.is_of_another_catalog(&changes) {
                self.invalidate_all(provisioning);
            }
            self.apply_changes(provisioning, &changes);
            *lock(&self.seen) = Seen::after(&changes);
            if !changes.more {
                return Ok(());
            }
        }
    }

    /// Invalidates all entries. The records of tenants with a pool are read again now, because a busy pool causes no
    /// look-up.
    fn invalidate_all(&self, provisioning: &ProvisionEngine) {
        let catalog = &provisioning.catalog;
        catalog.entries.invalidate_all();
        let Some(pools) = self.pools.upgrade() else {
            return;
        };
        for pool in pools.all() {
            catalog.refresh.push(&pool.tenant);
        }
    }

    /// Invalidates the entries of one page of changes. The records of tenants that are known here are read again.
    fn apply_changes(&self, provisioning: &ProvisionEngine, changes: &Changes) {
        let catalog = &provisioning.catalog;
        let Some(pools) = self.pools.upgrade() else {
            return;
        };
        for tenant in &changes.tenants {
            let had_entry = catalog.entries.contains(tenant);
            // Unknown tenants too, because a look-up may be under way. An answer that it stores later is rejected as
            // old; one that it has stored by now is found below.
            catalog.entries.invalidate(tenant);
            let is_known = had_entry || catalog.entries.contains(tenant);
            if is_known || pools.live(tenant.as_str()).is_some() {
                count(&catalog.stats.changes);
                catalog.refresh.push(tenant);
            }
        }
    }

    /// Reads the records of queued tenants. While the catalog is down, all of them wait.
    async fn refresh_queued(&self, provisioning: &ProvisionEngine) {
        let refresh = &provisioning.catalog.refresh;
        let in_time = self.shared.config.catalog_timeout / 4;
        let (mut reads, mut rest_until) = (FuturesUnordered::new(), Instant::now());
        let mut most = FIRST_RECORDS;
        loop {
            let next = async {
                sleep_until(rest_until).await;
                refresh.pop(most).await
            };
            tokio::select! {
                biased;
                Some(read) = reads.next() => match read {
                    Ok((records, took)) if records == most && took <= in_time => {
                        most = (most * 2).min(MOST_RECORDS);
                    }
                    Ok(_) => {}
                    // One record at a time, until the catalog answers: perhaps it has failed over one of them.
                    Err(rest) => (most, rest_until) = (1, rest_until.max(Instant::now() + rest)),
                },
                batch = next, if reads.len() < SIDE_BY_SIDE => {
                    reads.push(self.refresh(provisioning, batch));
                }
            }
        }
    }

    /// Reads the records of some tenants, those without a fresh entry, and updates the tenants' pools. Returns the
    /// number of tenants and the time it took; after a failure, the time for which no other record is to be read.
    async fn refresh(
        &self,
        provisioning: &ProvisionEngine,
        batch: Vec<Reading<'_>>,
    ) -> Result<(usize, Duration), Duration> {
        let (began, id) = (Instant::now(), batch[0].tenant().as_str());
        // A panic over one tenant must not stop the others.
        let work = AssertUnwindSafe(self.refresh_batch(provisioning, &batch)).catch_unwind();
        let rest = match work.await {
            Ok(Ok(())) => return Ok((batch.len(), began.elapsed())),
            Ok(Err(err)) if err.kind() == ErrorKind::Catalog => {
                tracing::debug!(tenant = id, %err, "cannot read the tenant's record again");
                rest_after(&err)
            }
            // Each is read by itself next.
            Ok(Err(_)) | Err(_) if batch.len() > 1 => Duration::ZERO,
            Ok(Err(err)) => {
                tracing::warn!(tenant = id, %err, "cannot apply a change of the tenant");
                return Ok((1, began.elapsed()));
            }
            Err(_) => {
                tracing::error!(tenant = id, "a panic while the tenant's record was read");
                return Ok((1, began.elapsed()));
            }
        };
        for reading in &batch {
            provisioning.catalog.refresh.push(reading.tenant());
        }
        Err(rest)
    }

    async fn refresh_batch(
        &self,
        provisioning: &ProvisionEngine,
        batch: &[Reading<'_>],
    ) -> Result<(), Error> {
        let entries = &provisioning.catalog.entries;
        let stale = batch.iter().map(Reading::tenant);
        let stale: Vec<_> = stale.filter(|it| entries.is_stale(it)).cloned().collect();
        provisioning.refresh_entries(&stale).await?;
        if let Some(pools) = self.pools.upgrade() {
            for reading in batch {
                sync_pool(&pools, provisioning, reading.tenant());
            }
        }
        Ok(())
    }
}

/// Returns the rest after a failed call of the catalog.
fn rest_after(err: &Error) -> Duration {
    err.retry_after().unwrap_or_default().max(SHORTEST_REST)
}

/// The position in the changes of a catalog.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    version: Option<u64>,
    /// The catalog's server that gave this version.
    incarnation: u64,
}

impl Seen {
    fn after(changes: &Changes) -> Self {
        Self {
            version: Some(changes.version),
            incarnation: changes.incarnation,
        }
    }

    /// Returns whether `changes` may be incomplete: after a restore of the catalog, or after a fail-over that lost
    /// writes and has counted past them.
    fn is_of_another_catalog(&self, changes: &Changes) -> bool {
        let is_another = changes.incarnation != self.incarnation;
        changes.reset || self.version.is_none() || is_another
    }
}

/// Updates the pool of `tenant`, if there is one, from the tenant's entry.
fn sync_pool(pools: &PoolCache, provisioning: &ProvisionEngine, tenant: &TenantId) {
    let Some(pool) = pools.live(tenant.as_str()) else {
        return;
    };
    let entries = &provisioning.catalog.entries;
    loop {
        let asked_at = entries.stamp();
        match entries.get(tenant) {
            Some(Entry::Known(known)) if !known.freshness.is_untrusted => {
                pool.set_endpoint(Arc::clone(&known.endpoint), false);
                pool.set_standing(known.freshness.standing);
                if provisioning.agrees(tenant, &known.endpoint, asked_at) {
                    return; // otherwise the entry has changed since
                }
            }
            Some(Entry::Denied(denied)) => {
                return match denied.denial {
                    Denial::Refused(err) => close_pool(pools, tenant, &err.into()),
                    Denial::Unfinished => close_pool(pools, tenant, &Unserved::relocate()),
                    Denial::Unknown(_) | Denial::Broken(_) => {} // the pool keeps serving
                };
            }
            Some(Entry::Known(_)) | None => {
                return close_pool(pools, tenant, &Unserved::relocate());
            }
        }
    }
}

/// Closes the connections of a tenant whose database must not be used, those in use when they come back.
fn close_pool(pools: &PoolCache, tenant: &TenantId, why: &Unserved) {
    let (was_allowed, tenant) = (pools.forbid(tenant, why), tenant.as_str());
    match why {
        _ if !was_allowed => {}
        Unserved::Failed(_) => {
            tracing::info!(
                tenant,
                "the tenant was held or deleted; its connections are closed"
            );
        }
        Unserved::Relocate(_) => {
            tracing::debug!(
                tenant,
                "the tenant has to be looked up again; its connections are closed"
            );
        }
    }
}
