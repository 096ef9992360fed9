//! Lookup of a tenant's endpoint: from the cached entries, or from the catalog itself.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;

use super::{ProvisionEngine, Published};
use crate::{
    catalog::{
        Record, State,
        cached::{self, CachedCatalog, Denial, Entry, Known, Stamp},
    },
    model::{
        endpoint::Endpoint,
        error::{Error, ErrorKind, Stage},
        tenant::TenantId,
    },
    schema::Standing,
    sync::progress::Progress,
    telemetry::stats::count,
};

/// Most reads of the catalog for one lookup. A read is repeated if its answer was out of date on arrival.
const MOST_READS: u32 = 3;
/// Longest time for reading one password from the control plane.
const PASSWORD_TIMEOUT: Duration = Duration::from_secs(30);

/// The catalog's answer about a tenant that may be used.
#[derive(Clone, Debug)]
pub(crate) enum LookupOutcome {
    /// The tenant's endpoint.
    At(Arc<Endpoint>),
    /// The tenant's database is not finished.
    Unfinished,
    /// The catalog knows no such tenant.
    Unknown,
}

/// The answer that a record gives by itself.
enum RecordAnswer {
    Outcome(Result<LookupOutcome, Error>),
    /// The tenant may be used, and its password has to be read from the control plane.
    WithoutPassword(Box<Record>),
}

/// The answer of a record, and whether it is the newest: no newer one is cached or has to be read.
type Applied = (RecordAnswer, bool);

impl ProvisionEngine {
    /// Returns the endpoint of `tenant` if it has a database, or an error if it must not be used. Answers from the
    /// cached entry if there is one. An old entry is read again in the background.
    pub(super) async fn lookup_cached(
        &self,
        tenant: &TenantId,
    ) -> Result<Option<Arc<Endpoint>>, Error> {
        let CachedCatalog { entries, stats, .. } = &*self.catalog;
        let known = match entries.get(tenant) {
            Some(Entry::Denied(denied)) => {
                count(&stats.hits);
                return match denied.denial {
                    Denial::Unknown(None) | Denial::Unfinished => Ok(None),
                    Denial::Unknown(Some(err)) | Denial::Refused(err) | Denial::Broken(err) => {
                        Err(err)
                    }
                };
            }
            Some(Entry::Known(known)) => Some(known),
            None => None,
        };
        if let Some(known) = known.as_ref().filter(|known| !known.freshness.is_untrusted) {
            return Ok(Some(self.hit(tenant, known)));
        }
        let _permit = self.catalog.lookups.try_enter()?;
        match (self.lookup_uncached(tenant).await, known) {
            (Ok(LookupOutcome::At(endpoint)), _) => Ok(Some(endpoint)),
            (Ok(LookupOutcome::Unfinished | LookupOutcome::Unknown), _) => Ok(None),
            (Err(err), Some(known)) if err.kind() == ErrorKind::Catalog => {
                count(&stats.hits);
                count(&stats.stale);
                Ok(Some(known.endpoint))
            }
            (Err(err), _) => Err(err),
        }
    }

    /// Returns the standing of the schema in `record`.
    pub(super) fn standing_of(&self, record: &Record) -> Standing {
        let schema = self.schema.as_ref();
        schema.map_or(Standing::Current, |it| it.standing(&record.schema))
    }

    /// Returns the standing of the schema of `tenant`, by the tenant's entry.
    pub(crate) fn standing(&self, tenant: &TenantId) -> Standing {
        let Some(schema) = &self.schema else {
            return Standing::Current;
        };
        let known = self.catalog.entries.standing(tenant);
        known.unwrap_or_else(|| schema.unknown_standing())
    }

    /// Returns whether the database of `tenant` was begun and not finished, by the catalog's last answer.
    pub(super) fn is_unfinished(&self, tenant: &TenantId) -> bool {
        let entry = self.catalog.entries.get(tenant);
        matches!(entry, Some(Entry::Denied(denied)) if matches!(denied.denial, Denial::Unfinished))
    }

    fn hit(&self, tenant: &TenantId, known: &Known) -> Arc<Endpoint> {
        let CachedCatalog { entries, stats, .. } = &*self.catalog;
        count(&stats.hits);
        if entries.is_expired(&known.freshness) {
            count(&stats.stale);
            self.catalog.refresh_if_stale(tenant);
        }
        Arc::clone(&known.endpoint)
    }

    /// Returns whether a pool at `endpoint`, which was looked up after `asked_at`, agrees with the entry of `tenant`.
    /// Without an entry it agrees unless a change was reported since.
    pub(crate) fn agrees(&self, tenant: &TenantId, endpoint: &Endpoint, asked_at: Stamp) -> bool {
        let entries = &self.catalog.entries;
        match entries.get(tenant) {
            Some(Entry::Known(known)) => *known.endpoint == *endpoint,
            Some(Entry::Denied(denied)) => match denied.denial {
                Denial::Unknown(_) | Denial::Broken(_) => true,
                Denial::Unfinished | Denial::Refused(_) => false,
            },
            None => entries.is_unchanged_since(tenant, asked_at),
        }
    }

    /// Reads the endpoint of `tenant` from the catalog, whatever its entry says, and stores the answer as the entry.
    /// The password may have to be read from the control plane.
    pub(super) async fn lookup_uncached(&self, tenant: &TenantId) -> Result<LookupOutcome, Error> {
        let mut reads = 0;
        loop {
            reads += 1;
            let asked_at = self.catalog.entries.stamp();
            let (answer, newest) = self.read_and_cache(tenant, asked_at).await?;
            let (outcome, newest) = match answer {
                RecordAnswer::Outcome(outcome) => (outcome, newest),
                RecordAnswer::WithoutPassword(record) => {
                    self.with_password(tenant, asked_at, &record).await
                }
            };
            if newest || reads == MOST_READS {
                return outcome;
            }
        }
    }

    /// Reads the record of `tenant` again, and asks no control plane: the next lookup does that if a password is
    /// missing.
    async fn refresh_entry(&self, tenant: &TenantId) -> Result<(), Error> {
        for _ in 0..MOST_READS {
            let asked_at = self.catalog.entries.stamp();
            let read = self.catalog.read_record(tenant).await;
            if self.refresh_with(tenant, asked_at, read)? {
                break;
            }
        }
        Ok(())
    }

    /// Reads the records of `tenants` again with one call, as [`refresh_entry`](Self::refresh_entry) does.
    pub(crate) async fn refresh_entries(&self, tenants: &[TenantId]) -> Result<(), Error> {
        match tenants {
            [] => return Ok(()),
            [tenant] => return self.refresh_entry(tenant).await,
            _ => {}
        }
        let asked_at = self.catalog.entries.stamp();
        let answers = self.catalog.read_records(tenants).await?;
        for (tenant, read) in tenants.iter().zip(answers) {
            if !self.refresh_with(tenant, asked_at, read)? {
                self.refresh_entry(tenant).await?; // it has changed under way
            }
        }
        Ok(())
    }

    /// Stores what was read of `tenant`. Returns whether it is the newest.
    fn refresh_with(
        &self,
        tenant: &TenantId,
        asked_at: Stamp,
        read: Result<Option<Record>, Error>,
    ) -> Result<bool, Error> {
        match self.apply(tenant, asked_at, read)? {
            (RecordAnswer::WithoutPassword(record), _) => {
                let entries = &self.catalog.entries;
                Ok(entries.mark_moved(tenant, asked_at, record.generation))
            }
            (RecordAnswer::Outcome(_), newest) => Ok(newest),
        }
    }

    /// Reads the record of `tenant`. Returns an error only if the catalog failed.
    async fn read_and_cache(&self, tenant: &TenantId, asked_at: Stamp) -> Result<Applied, Error> {
        let read = self.catalog.read_record(tenant).await;
        self.apply(tenant, asked_at, read)
    }

    fn apply(
        &self,
        tenant: &TenantId,
        asked_at: Stamp,
        read: Result<Option<Record>, Error>,
    ) -> Result<Applied, Error> {
        match read {
            Ok(Some(record)) => Ok(self.apply_record(tenant, asked_at, record)),
            Ok(None) => Ok(self.apply_missing(tenant, asked_at)),
            Err(err) if err.kind() == ErrorKind::BadRecord => {
                Ok(self.apply_broken(tenant, asked_at, err))
            }
            Err(err) => Err(err),
        }
    }

    fn apply_record(&self, tenant: &TenantId, asked_at: Stamp, record: Record) -> Applied {
        let entries = &self.catalog.entries;
        let generation = Some(record.generation);
        let refusal = match record.state {
            State::Ready => return self.apply_ready(tenant, asked_at, record),
            State::Claimed | State::Creating | State::Preparing => {
                let denial = Denial::Unfinished;
                let newest = entries.insert_denial(tenant, asked_at, generation, denial);
                return (RecordAnswer::Outcome(Ok(LookupOutcome::Unfinished)), newest);
            }
            State::Held => cached::held(),
            State::Deleting | State::Deleted => cached::deleted(),
        };
        let denial = Denial::Refused(refusal.clone());
        let newest = entries.insert_denial(tenant, asked_at, generation, denial);
        (RecordAnswer::Outcome(Err(refusal)), newest)
    }

    fn apply_ready(&self, tenant: &TenantId, asked_at: Stamp, record: Record) -> Applied {
        let stored = |endpoint: &Endpoint| !endpoint.password.expose().is_empty();
        let endpoint = match (&record.endpoint, &record.placement) {
            (None, _) | (_, None) => Err(no_endpoint()),
            (Some(endpoint), _) if stored(endpoint) => Ok(Arc::new(endpoint.clone())),
            (Some(_), _) => match self.remembered(tenant, &record) {
                Some(endpoint) => Ok(endpoint),
                None => return (RecordAnswer::WithoutPassword(Box::new(record)), true),
            },
        };
        let checked = endpoint.and_then(|mut endpoint| {
            if endpoint.max_connections != record.max_connections {
                Arc::make_mut(&mut endpoint).max_connections = record.max_connections;
            }
            endpoint.check().map(|()| endpoint)
        });
        match checked {
            Ok(endpoint) => {
                let generation = Some(record.generation);
                let (entries, standing) = (&self.catalog.entries, self.standing_of(&record));
                let newest =
                    entries.insert_known(tenant, asked_at, generation, &endpoint, standing);
                (
                    RecordAnswer::Outcome(Ok(LookupOutcome::At(endpoint))),
                    newest,
                )
            }
            Err(err) => self.apply_broken(tenant, asked_at, err),
        }
    }

    /// Returns the entry's endpoint, with a password that was read from the control plane, unless the record has
    /// changed since.
    fn remembered(&self, tenant: &TenantId, record: &Record) -> Option<Arc<Endpoint>> {
        let Some(Entry::Known(known)) = self.catalog.entries.get(tenant) else {
            return None;
        };
        let is_same = match known.freshness.generation {
            Some(generation) => generation == record.generation,
            None => self.is_same(record, &known.endpoint),
        };
        (is_same && !known.freshness.is_untrusted).then_some(known.endpoint)
    }

    /// Reads the password that belongs to a record from the control plane.
    async fn with_password(
        &self,
        tenant: &TenantId,
        asked_at: Stamp,
        record: &Record,
    ) -> (Result<LookupOutcome, Error>, bool) {
        let progress = Progress::new(Stage::Lookup, PASSWORD_TIMEOUT);
        // The application's own control plane may not observe the deadline of `progress`.
        let read = timeout(
            PASSWORD_TIMEOUT,
            self.endpoint_of(tenant, record, &progress),
        )
        .await;
        match read.unwrap_or_else(|_| Err(progress.timed_out())) {
            Ok(endpoint) => {
                let (endpoint, generation) = (Arc::new(endpoint), Some(record.generation));
                let (entries, standing) = (&self.catalog.entries, self.standing_of(record));
                let newest =
                    entries.insert_known(tenant, asked_at, generation, &endpoint, standing);
                (Ok(LookupOutcome::At(endpoint)), newest)
            }
            Err(err) => {
                // An endpoint that cannot work: the record is there, and says the same next time.
                let is_wrong = err.kind() == ErrorKind::Misconfigured;
                if is_wrong || is_about_record(err.kind()) {
                    let entries = &self.catalog.entries;
                    entries.insert_broken(tenant, asked_at, err.clone());
                }
                (Err(err), true)
            }
        }
    }

    /// Handles a missing record. A cached tenant keeps being served: if its record vanished, others probably did too,
    /// and new databases for all of them would make the loss worse.
    fn apply_missing(&self, tenant: &TenantId, asked_at: Stamp) -> Applied {
        let entries = &self.catalog.entries;
        if let Some((endpoint, is_news)) = entries.mark_missing(tenant) {
            if is_news {
                tracing::error!(
                    tenant = tenant.as_str(),
                    "the catalog has lost the record of a tenant, which is still served. Was the catalog restored?"
                );
            }
            return (RecordAnswer::Outcome(Ok(LookupOutcome::At(endpoint))), true);
        }
        if entries.was_refused(tenant) {
            let message = "the catalog has lost its record of the tenant, so the tenant is not served, and no new \
                           database is created for it; check whether the catalog was restored from a backup, then \
                           provision or import the tenant";
            return self.apply_broken(tenant, asked_at, Error::new(ErrorKind::BadRecord, message));
        }
        let newest = entries.insert_denial(tenant, asked_at, None, Denial::Unknown(None));
        (RecordAnswer::Outcome(Ok(LookupOutcome::Unknown)), newest)
    }

    fn apply_broken(&self, tenant: &TenantId, asked_at: Stamp, err: Error) -> Applied {
        let entries = &self.catalog.entries;
        let newest = entries.insert_broken(tenant, asked_at, err.clone());
        (RecordAnswer::Outcome(Err(err)), newest)
    }

    /// Caches the endpoint of `tenant` after its database was created or adopted.
    pub(super) fn remember_new(&self, tenant: &TenantId, published: Published) -> Arc<Endpoint> {
        let CachedCatalog {
            entries, refresh, ..
        } = &*self.catalog;
        let endpoint = Arc::new(published.endpoint);
        let (known_at, standing) = (published.known_at, Standing::Current); // all steps ran before it was published
        if !entries.insert_known(tenant, known_at, None, &endpoint, standing) {
            // A change was reported since: most probably this process's own.
            entries.insert_stale(tenant, &endpoint, standing);
            refresh.push(tenant);
        }
        endpoint
    }

    /// Caches the refusal of `tenant` that was found after `asked_at`.
    pub(super) fn remember_refusal(&self, tenant: &TenantId, asked_at: Stamp, err: &Error) {
        let entries = &self.catalog.entries;
        match err.kind() {
            ErrorKind::Deleted | ErrorKind::Held => {
                let denial = Denial::Refused(err.clone());
                entries.insert_denial(tenant, asked_at, Some(0), denial);
            }
            ErrorKind::UnknownTenant => {
                let denial = Denial::Unknown(Some(err.clone()));
                entries.insert_denial(tenant, asked_at, None, denial);
            }
            kind if is_about_record(kind) => {
                entries.insert_broken(tenant, asked_at, err.clone());
            }
            _ => {}
        }
    }

    /// Reads at most `limit` records after `after`, and caches those that may be used. Returns the number of cached
    /// records, and the last tenant that was read.
    pub(crate) async fn preload(
        &self,
        after: Option<&TenantId>,
        limit: usize,
    ) -> Result<(u64, Option<TenantId>), Error> {
        let entries = &self.catalog.entries;
        let asked_at = entries.stamp();
        let page = self.catalog.list(after, limit).await?;
        let last = page.last().map(|record| record.tenant.clone());
        let mut remembered = 0;
        for record in page {
            let (tenant, generation) = (record.tenant.clone(), Some(record.generation));
            let standing = self.standing_of(&record);
            let Some(endpoint) = record.into_served() else {
                continue;
            };
            // A record without a password would take a call of the control plane.
            if !endpoint.password.expose().is_empty() && endpoint.check().is_ok() {
                let newest =
                    entries.insert_known(&tenant, asked_at, generation, &endpoint, standing);
                remembered += u64::from(newest);
            }
        }
        Ok((remembered, last))
    }
}

/// Returns whether an error is due to the record: it names a database that is gone or another tenant's. Asking again
/// soon would give the same error. Not `Misconfigured`, which a tenant without a record can meet too: if that were
/// remembered of it, the next look-up would take the record for lost.
fn is_about_record(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::BadRecord | ErrorKind::EndpointNotFound)
}

/// Returns the error for a record that is ready but lacks its endpoint or its project.
pub(super) fn no_endpoint() -> Error {
    let message = "the catalog's record lacks the tenant's endpoint or its project";
    Error::new(ErrorKind::BadRecord, message)
}
