//! Where a tenant lives by what was read of the catalog, or by the catalog itself.

use std::{sync::Arc, time::Duration};

use super::{Provisioning, access};
use crate::{
    catalog::{Catalog, Moment, Recalled},
    endpoint::Endpoint,
    error::{Error, ErrorKind, Stage},
    record::{Record, State},
    retry::Progress,
    stats::count,
    tenant::TenantId,
};

/// How often the catalog is asked once more because its answer was out of date when it came.
const TURNS: u32 = 3;
/// Longest time for reading one password from the control plane.
const PASSWORD_TIMEOUT: Duration = Duration::from_secs(30);

/// What the catalog says of a tenant that may be used.
#[derive(Clone, Debug)]
pub(crate) enum Whereabouts {
    /// It lives there.
    At(Arc<Endpoint>),
    /// Its database is not finished.
    Unfinished,
    /// Nobody is known by that id.
    Nobody,
}

/// An answer, and whether it is the newest there is.
type Heard = (Result<Whereabouts, Error>, bool);

impl Provisioning {
    /// Where `tenant` lives, if it has a database; an error if it must not be used. What was read before is the answer,
    /// and is read again in the background if it is old.
    pub(crate) async fn lookup(&self, tenant: &TenantId) -> Result<Option<Arc<Endpoint>>, Error> {
        let catalog = &self.catalog;
        let known = match catalog.memo.recall(tenant) {
            Some(Recalled::Denied(denied)) => {
                count(&catalog.stats.hits);
                return denied.error.map_or(Ok(None), Err);
            }
            Some(Recalled::Known(known)) => Some(known),
            None => None,
        };
        if let Some(known) = known.as_ref().filter(|known| !known.distrusted) {
            count(&catalog.stats.hits);
            if catalog.memo.is_expired(known) {
                count(&catalog.stats.stale);
                catalog.mind(tenant);
            }
            return Ok(Some(Arc::clone(&known.endpoint)));
        }
        let _place = catalog.queue()?;
        match (self.ask(tenant).await, known) {
            (Ok(Whereabouts::At(endpoint)), _) => Ok(Some(endpoint)),
            (Ok(Whereabouts::Unfinished | Whereabouts::Nobody), _) => Ok(None),
            (Err(err), Some(known)) if err.kind() == ErrorKind::Catalog => {
                count(&catalog.stats.hits);
                count(&catalog.stats.stale);
                Ok(Some(known.endpoint))
            }
            (Err(err), _) => Err(err),
        }
    }

    /// Whether a pool at `endpoint` agrees with what is remembered of `tenant` by now.
    pub(crate) fn agrees(&self, tenant: &TenantId, endpoint: &Endpoint) -> bool {
        match self.catalog.memo.recall(tenant) {
            Some(Recalled::Known(known)) => *known.endpoint == *endpoint,
            Some(Recalled::Denied(denied)) => denied.error.is_none(),
            None => true,
        }
    }

    /// Where `tenant` lives by the catalog, whatever is remembered. The answer is remembered.
    pub(crate) async fn ask(&self, tenant: &TenantId) -> Result<Whereabouts, Error> {
        let mut turns = 0;
        loop {
            turns += 1;
            let asked = self.catalog.memo.now();
            let found = self.catalog.find(tenant).await?;
            let (answer, newest) = self.hear(tenant, asked, found).await;
            if newest || turns == TURNS {
                return answer;
            }
        }
    }

    async fn hear(&self, tenant: &TenantId, asked: Moment, found: Option<Record>) -> Heard {
        let memo = &self.catalog.memo;
        let Some(record) = found else {
            return self.miss(tenant, asked);
        };
        let generation = record.generation;
        let refusal = match record.state {
            State::Ready => {
                let endpoint = match self.complete(tenant, &record).await {
                    Ok(endpoint) => endpoint,
                    Err(err) => return (Err(err), true),
                };
                let newest = memo.keep(tenant, asked, Some(generation), &endpoint);
                return (Ok(Whereabouts::At(endpoint)), newest);
            }
            State::Claimed | State::Creating | State::Preparing => {
                let newest = memo.clear(tenant, asked, generation);
                return (Ok(Whereabouts::Unfinished), newest);
            }
            State::Held => access::held(),
            State::Deleting | State::Deleted => access::deleted(),
        };
        let newest = memo.deny(tenant, asked, Some(generation), Some(refusal.clone()));
        (Err(refusal), newest)
    }

    /// There is no record. Somebody who was known goes on: more was lost then than this one tenant, and a new database
    /// for each would be the worse for it.
    fn miss(&self, tenant: &TenantId, asked: Moment) -> Heard {
        let memo = &self.catalog.memo;
        if let Some((endpoint, news)) = memo.vanished(tenant) {
            if news {
                tracing::error!(
                    tenant = tenant.as_str(),
                    "the catalog has no record of a tenant that was known; it goes on being served. Was the catalog restored?"
                );
            }
            return (Ok(Whereabouts::At(endpoint)), true);
        }
        if memo.was_recorded(tenant) {
            let message = "the catalog has lost its record of the tenant, which cannot be served and is not created \
                           anew; see whether the catalog was restored, then provision or import it";
            let err = Error::new(ErrorKind::BadRecord, message);
            let newest = memo.deny(tenant, asked, Some(0), Some(err.clone()));
            return (Err(err), newest);
        }
        let newest = memo.deny(tenant, asked, None, None);
        (Ok(Whereabouts::Nobody), newest)
    }

    /// Where a record's database is reached. A password that was read from the control plane is read again only if the
    /// record has changed since.
    async fn complete(&self, tenant: &TenantId, record: &Record) -> Result<Arc<Endpoint>, Error> {
        let stored = |endpoint: &Endpoint| !endpoint.password.expose().is_empty();
        let remembered = match self.catalog.memo.recall(tenant) {
            Some(Recalled::Known(known)) if !known.distrusted => Some(known),
            _ => None,
        };
        let same = remembered.filter(|known| match known.generation {
            Some(generation) => generation == record.generation,
            None => self.is_same(record, &known.endpoint),
        });
        match (&record.endpoint, same) {
            (Some(endpoint), Some(known)) if !stored(endpoint) => {
                let mut endpoint = known.endpoint;
                if endpoint.max_connections != record.max_connections {
                    Arc::make_mut(&mut endpoint).max_connections = record.max_connections;
                    endpoint.check()?;
                }
                Ok(endpoint)
            }
            _ => {
                let progress = Progress::new(Stage::Lookup, PASSWORD_TIMEOUT);
                self.reach(tenant, record, &progress).await.map(Arc::new)
            }
        }
    }

    /// Remembers where `tenant` lives, whose database was created or adopted since `asked`.
    pub(crate) fn remember_new(&self, tenant: &TenantId, asked: Moment, endpoint: &Arc<Endpoint>) {
        let Catalog { memo, due, .. } = &*self.catalog;
        if !memo.keep(tenant, asked, None, endpoint) {
            // Somebody has heard of a change meanwhile: ours most probably.
            memo.keep_expired(tenant, endpoint);
            due.add(tenant);
        }
    }

    /// Remembers that `tenant` cannot be had, as was found out since `asked`.
    pub(crate) fn remember_refusal(&self, tenant: &TenantId, asked: Moment, err: &Error) {
        let refused = matches!(
            err.kind(),
            ErrorKind::Deleted | ErrorKind::Held | ErrorKind::UnknownTenant
        );
        if refused {
            let recorded = (err.kind() != ErrorKind::UnknownTenant).then_some(0);
            self.catalog
                .memo
                .deny(tenant, asked, recorded, Some(err.clone()));
        }
    }

    /// Reads at most `limit` records after `after`, and remembers those that may be used: how many, and the last one.
    pub(crate) async fn preload(
        &self,
        after: Option<&TenantId>,
        limit: usize,
    ) -> Result<(u64, Option<TenantId>), Error> {
        let asked = self.catalog.memo.now();
        let page = self.catalog.list(after, limit).await?;
        let last = page.last().map(|record| record.tenant.clone());
        let mut remembered = 0;
        for record in page {
            let (tenant, generation) = (record.tenant.clone(), record.generation);
            let Some(endpoint) = record.into_served() else {
                continue;
            };
            // Without a password it would take a call of the control plane for each.
            if !endpoint.password.expose().is_empty() && endpoint.check().is_ok() {
                let endpoint = Arc::new(endpoint);
                let newest = self
                    .catalog
                    .memo
                    .keep(&tenant, asked, Some(generation), &endpoint);
                remembered += u64::from(newest);
            }
        }
        Ok((remembered, last))
    }
}
