//! Following the catalog: what other processes have changed reaches the pools of this one.
//!
//! It asks the catalog and opens no session to any tenant. Whether it is told of changes, asks for them from time to
//! time, or hears of none and only reads again what has grown old, each ends in the same: read the record, remember it,
//! bring the tenant's pool in line.

use std::{
    collections::HashSet,
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use tokio::time::{Instant, sleep};

use crate::{
    breaker::chance,
    catalog::Recalled,
    error::{Error, ErrorKind},
    pools::Pools,
    provision::{Provisioning, Whereabouts},
    record::Changes,
    retry::lock,
    shared::Shared,
    source::Source,
    stats::count,
    tenant::TenantId,
};

/// Changes that are asked for at once.
const PAGE: usize = 500;
/// Records that are read side by side.
const SIDE_BY_SIDE: usize = 8;
/// Shortest wait after a failure.
const SHORTEST_REST: Duration = Duration::from_millis(250);

/// Starts following, if there is a catalog of ours.
pub(crate) fn start(pools: &Arc<Pools>) {
    let shared = pools.shared();
    if shared.source.catalog().is_some() {
        let follower = Follower {
            pools: Arc::downgrade(pools),
            shared: Arc::clone(shared),
        };
        shared.runtime.spawn(follower.run());
    }
}

struct Follower {
    // Weak, because the pools end with the router.
    pools: Weak<Pools>,
    shared: Arc<Shared>,
}

impl Follower {
    /// Follows until the router is gone.
    async fn run(self) {
        let Source::Provisioning(provisioning) = &self.shared.source else {
            return;
        };
        tokio::select! {
            biased;
            () = self.shared.life.ended() => {}
            () = self.follow_changes(provisioning) => {}
            () = self.follow_what_is_due(provisioning) => {}
        }
    }

    /// Reads again what has grown old, or was written by this process.
    async fn follow_what_is_due(&self, provisioning: &Provisioning) {
        loop {
            let due = provisioning.catalog.due.take().await;
            let reads = stream::iter(due).map(|tenant| async move {
                if let Err(err) = self.follow_due(provisioning, &tenant).await {
                    tracing::debug!(tenant = tenant.as_str(), %err, "cannot read the catalog again");
                }
            });
            reads.buffer_unordered(SIDE_BY_SIDE).collect::<()>().await;
        }
    }

    /// The same for one tenant, unless somebody has done so meanwhile.
    async fn follow_due(
        &self,
        provisioning: &Provisioning,
        tenant: &TenantId,
    ) -> Result<(), Error> {
        if provisioning.catalog.memo.is_due(tenant) {
            return self.follow(provisioning, tenant).await;
        }
        if let Some(pools) = self.pools.upgrade() {
            match provisioning.catalog.memo.recall(tenant) {
                Some(Recalled::Denied(denied)) if denied.error.is_some() => let_go(&pools, tenant),
                Some(_) => align(&pools, provisioning, tenant),
                None => {}
            }
        }
        Ok(())
    }

    /// Applies what others have changed, from now on.
    async fn follow_changes(&self, provisioning: &Provisioning) {
        let mut since = None;
        loop {
            let rest = match self.apply_changes(provisioning, &mut since).await {
                Ok(()) => {
                    *lock(&provisioning.catalog.stats.heard) = Instant::now();
                    self.news(provisioning).await
                }
                Err(err) => {
                    tracing::debug!(%err, "cannot ask the catalog what has changed");
                    err.retry_after().unwrap_or_default().max(SHORTEST_REST)
                }
            };
            sleep(rest).await;
        }
    }

    /// Waits until there may be news, or it is time to ask for some. Returns no further rest.
    async fn news(&self, provisioning: &Provisioning) -> Duration {
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
            () = provisioning.catalog.nudged() => {}
            () = interval => {}
        }
        Duration::ZERO
    }

    /// Applies all that was changed after version `since`, which moves on with every page that is done.
    async fn apply_changes(
        &self,
        provisioning: &Provisioning,
        since: &mut Option<u64>,
    ) -> Result<(), Error> {
        loop {
            let changes = provisioning.catalog.changes(*since, PAGE).await?;
            if changes.reset || since.is_none() {
                // Whatever was read before this version is known has to be read again.
                provisioning.catalog.memo.question_all();
            }
            self.apply(provisioning, &changes).await?;
            *since = Some(changes.version);
            if !changes.more {
                return Ok(());
            }
        }
    }

    /// Applies one page. An error if the catalog failed over it: then it must come again.
    async fn apply(&self, provisioning: &Provisioning, changes: &Changes) -> Result<(), Error> {
        let catalog = &provisioning.catalog;
        let Some(pools) = self.pools.upgrade() else {
            return Ok(());
        };
        let mut concerned = HashSet::new();
        for tenant in &changes.tenants {
            let is_known = catalog.memo.remembers(tenant) || pools.alive(tenant.as_str()).is_some();
            // Also of those who are not known: somebody may be asking for them right now.
            catalog.memo.question(tenant);
            if is_known {
                concerned.insert(tenant.clone());
            }
        }
        drop(pools); // the router may be dropped while the catalog is asked
        let reads = stream::iter(concerned).map(|tenant| async move {
            count(&catalog.stats.changes);
            let followed = self.follow(provisioning, &tenant).await;
            followed.or_else(|err| {
                if err.kind() == ErrorKind::Catalog {
                    return Err(err);
                }
                // About this one tenant: it is asked for again at its next use.
                tracing::warn!(tenant = tenant.as_str(), %err, "cannot follow a change of the tenant");
                Ok(())
            })
        });
        let done: Vec<Result<(), Error>> = reads.buffer_unordered(SIDE_BY_SIDE).collect().await;
        done.into_iter().collect()
    }

    /// Reads the record of `tenant`, remembers it, and brings its pool in line.
    async fn follow(&self, provisioning: &Provisioning, tenant: &TenantId) -> Result<(), Error> {
        let answer = provisioning.ask(tenant).await;
        let Some(pools) = self.pools.upgrade() else {
            return Ok(());
        };
        match answer {
            Ok(Whereabouts::At(_)) => {
                align(&pools, provisioning, tenant);
                Ok(())
            }
            Ok(Whereabouts::Nobody) => Ok(()), // whoever has a pool goes on
            Ok(Whereabouts::Unfinished) => {
                // Unless it was finished here meanwhile.
                if provisioning.catalog.memo.recall(tenant).is_none() {
                    let_go(&pools, tenant);
                }
                Ok(())
            }
            Err(err) if matches!(err.kind(), ErrorKind::Deleted | ErrorKind::Held) => {
                let_go(&pools, tenant);
                Ok(())
            }
            Err(err) => Err(err),
        }
    }
}

/// Brings the pool of `tenant`, if there is one, to where the tenant is known to live: also if that changes meanwhile.
fn align(pools: &Pools, provisioning: &Provisioning, tenant: &TenantId) {
    let Some(pool) = pools.alive(tenant.as_str()) else {
        return;
    };
    while let Some(Recalled::Known(known)) = provisioning.catalog.memo.recall(tenant) {
        pool.move_to(Arc::clone(&known.endpoint), false);
        if provisioning.agrees(tenant, &known.endpoint) {
            return;
        }
    }
}

/// Closes what is open of a tenant whose database must not be used, as soon as nobody uses it.
fn let_go(pools: &Pools, tenant: &TenantId) {
    if pools.alive(tenant.as_str()).is_some() {
        pools.evict(tenant.as_str());
        tracing::info!(
            tenant = tenant.as_str(),
            "the tenant may not be used any more; its connections are closed"
        );
    }
}
