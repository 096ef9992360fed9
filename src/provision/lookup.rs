//! Where a tenant lives by what was read of the catalog, or by the catalog itself.

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
    sync::progress::Progress,
    telemetry::stats::count,
};

/// How often the catalog is asked once more because its answer was out of date when it came.
const TURNS: u32 = 3;
/// Longest time for reading one password from the control plane.
const PASSWORD_TIMEOUT: Duration = Duration::from_secs(30);

/// What the catalog says of a tenant that may be used.
#[derive(Clone, Debug)]
pub(crate) enum LookupOutcome {
    /// It lives there.
    At(Arc<Endpoint>),
    /// Its database is not finished.
    Unfinished,
    /// The catalog knows no such tenant.
    Unknown,
}

/// What a record says of a tenant, as far as the record goes.
enum Told {
    Outcome(Result<LookupOutcome, Error>),
    /// It may be used, and the control plane has the password.
    WithoutPassword(Box<Record>),
}

/// What a record says, and whether no newer answer is there or has to be fetched.
type Applied = (Told, bool);

impl ProvisionEngine {
    /// Returns where `tenant` lives, if it has a database; an error if it must not be used. An entry is the answer, and
    /// is read again in the background if it is old.
    pub(crate) async fn lookup(&self, tenant: &TenantId) -> Result<Option<Arc<Endpoint>>, Error> {
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
        if let Some(known) = known.as_ref().filter(|known| !known.is_untrusted) {
            return Ok(Some(self.hit(tenant, known)));
        }
        let _under_way = self.catalog.lookups.try_enter()?;
        match (self.ask(tenant).await, known) {
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

    /// Whether the catalog said last that the database of `tenant` is begun and not finished.
    pub(crate) fn is_unfinished(&self, tenant: &TenantId) -> bool {
        let entry = self.catalog.entries.get(tenant);
        matches!(entry, Some(Entry::Denied(denied)) if matches!(denied.denial, Denial::Unfinished))
    }

    fn hit(&self, tenant: &TenantId, known: &Known) -> Arc<Endpoint> {
        let CachedCatalog { entries, stats, .. } = &*self.catalog;
        count(&stats.hits);
        if entries.is_expired(known) {
            count(&stats.stale);
            self.catalog.refresh_if_stale(tenant);
        }
        Arc::clone(&known.endpoint)
    }

    /// Returns whether a pool at `endpoint`, which was looked up after `asked`, agrees with the entry of `tenant`. Without an
    /// entry it does unless a change was heard since.
    pub(crate) fn agrees(&self, tenant: &TenantId, endpoint: &Endpoint, asked: Stamp) -> bool {
        let entries = &self.catalog.entries;
        match entries.get(tenant) {
            Some(Entry::Known(known)) => *known.endpoint == *endpoint,
            Some(Entry::Denied(denied)) => match denied.denial {
                Denial::Unknown(_) | Denial::Broken(_) => true,
                Denial::Unfinished | Denial::Refused(_) => false,
            },
            None => entries.is_unchanged_since(tenant, asked),
        }
    }

    /// Returns where `tenant` lives by the catalog, whatever its entry says, with a password that the control plane may
    /// have to be asked for. The entry becomes what was answered.
    pub(crate) async fn ask(&self, tenant: &TenantId) -> Result<LookupOutcome, Error> {
        let mut turns = 0;
        loop {
            turns += 1;
            let asked = self.catalog.entries.stamp();
            let (told, newest) = self.read(tenant, asked).await?;
            let (outcome, newest) = match told {
                Told::Outcome(outcome) => (outcome, newest),
                Told::WithoutPassword(record) => self.with_password(tenant, asked, &record).await,
            };
            if newest || turns == TURNS {
                return outcome;
            }
        }
    }

    /// Reads the record of `tenant` again, and nothing else: what only the control plane knows is left to the next
    /// look-up.
    pub(crate) async fn refresh_entry(&self, tenant: &TenantId) -> Result<(), Error> {
        for _ in 0..TURNS {
            let asked = self.catalog.entries.stamp();
            let (told, mut newest) = self.read(tenant, asked).await?;
            if let Told::WithoutPassword(record) = told {
                let entries = &self.catalog.entries;
                newest = entries.mark_moved(tenant, asked, record.generation);
            }
            if newest {
                break;
            }
        }
        Ok(())
    }

    /// Reads the record of `tenant`; an error only if the catalog failed.
    async fn read(&self, tenant: &TenantId, asked: Stamp) -> Result<Applied, Error> {
        match self.catalog.find(tenant).await {
            Ok(Some(record)) => Ok(self.apply_record(tenant, asked, record)),
            Ok(None) => Ok(self.on_missing(tenant, asked)),
            Err(err) if err.kind() == ErrorKind::BadRecord => {
                Ok(self.on_broken(tenant, asked, err))
            }
            Err(err) => Err(err),
        }
    }

    fn apply_record(&self, tenant: &TenantId, asked: Stamp, record: Record) -> Applied {
        let entries = &self.catalog.entries;
        let generation = Some(record.generation);
        let refusal = match record.state {
            State::Ready => return self.apply_ready(tenant, asked, record),
            State::Claimed | State::Creating | State::Preparing => {
                let denial = Denial::Unfinished;
                let newest = entries.insert_denial(tenant, asked, generation, denial);
                return (Told::Outcome(Ok(LookupOutcome::Unfinished)), newest);
            }
            State::Held => cached::held(),
            State::Deleting | State::Deleted => cached::deleted(),
        };
        let denial = Denial::Refused(refusal.clone());
        let newest = entries.insert_denial(tenant, asked, generation, denial);
        (Told::Outcome(Err(refusal)), newest)
    }

    fn apply_ready(&self, tenant: &TenantId, asked: Stamp, record: Record) -> Applied {
        let stored = |endpoint: &Endpoint| !endpoint.password.expose().is_empty();
        let endpoint = match (&record.endpoint, &record.placement) {
            (None, _) | (_, None) => Err(no_endpoint()),
            (Some(endpoint), _) if stored(endpoint) => Ok(Arc::new(endpoint.clone())),
            (Some(_), _) => match self.remembered(tenant, &record) {
                Some(endpoint) => Ok(endpoint),
                None => return (Told::WithoutPassword(Box::new(record)), true),
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
                let entries = &self.catalog.entries;
                let newest = entries.insert_known(tenant, asked, generation, &endpoint);
                (Told::Outcome(Ok(LookupOutcome::At(endpoint))), newest)
            }
            Err(err) => self.on_broken(tenant, asked, err),
        }
    }

    /// Returns the endpoint of the entry, with a password that was read from the control plane, unless the record has
    /// changed since.
    fn remembered(&self, tenant: &TenantId, record: &Record) -> Option<Arc<Endpoint>> {
        let Some(Entry::Known(known)) = self.catalog.entries.get(tenant) else {
            return None;
        };
        let is_same = match known.generation {
            Some(generation) => generation == record.generation,
            None => self.is_same(record, &known.endpoint),
        };
        (is_same && !known.is_untrusted).then_some(known.endpoint)
    }

    /// Reads the password that belongs to a record from the control plane.
    async fn with_password(
        &self,
        tenant: &TenantId,
        asked: Stamp,
        record: &Record,
    ) -> (Result<LookupOutcome, Error>, bool) {
        let progress = Progress::new(Stage::Lookup, PASSWORD_TIMEOUT);
        // However long the application's own control plane would take.
        let read = timeout(
            PASSWORD_TIMEOUT,
            self.endpoint_of(tenant, record, &progress),
        )
        .await;
        match read.unwrap_or_else(|_| Err(progress.timed_out())) {
            Ok(endpoint) => {
                let (endpoint, generation) = (Arc::new(endpoint), Some(record.generation));
                let entries = &self.catalog.entries;
                let newest = entries.insert_known(tenant, asked, generation, &endpoint);
                (Ok(LookupOutcome::At(endpoint)), newest)
            }
            Err(err) => {
                if is_about_record(err.kind()) {
                    let entries = &self.catalog.entries;
                    entries.insert_broken(tenant, asked, err.clone());
                }
                (Err(err), true)
            }
        }
    }

    /// The catalog has no record. A cached tenant keeps being served: if its record vanished, others probably did too,
    /// and new databases for all of them would make the loss worse.
    fn on_missing(&self, tenant: &TenantId, asked: Stamp) -> Applied {
        let entries = &self.catalog.entries;
        if let Some((endpoint, is_news)) = entries.mark_missing(tenant) {
            if is_news {
                tracing::error!(
                    tenant = tenant.as_str(),
                    "the catalog has no record of a tenant that was known; it goes on being served. Was the catalog restored?"
                );
            }
            return (Told::Outcome(Ok(LookupOutcome::At(endpoint))), true);
        }
        if entries.was_refused(tenant) {
            let message = "the catalog has lost its record of the tenant, which cannot be served and is not created \
                           anew; see whether the catalog was restored, then provision or import it";
            return self.on_broken(tenant, asked, Error::new(ErrorKind::BadRecord, message));
        }
        let newest = entries.insert_denial(tenant, asked, None, Denial::Unknown(None));
        (Told::Outcome(Ok(LookupOutcome::Unknown)), newest)
    }

    fn on_broken(&self, tenant: &TenantId, asked: Stamp, err: Error) -> Applied {
        let entries = &self.catalog.entries;
        let newest = entries.insert_broken(tenant, asked, err.clone());
        (Told::Outcome(Err(err)), newest)
    }

    /// Remembers where `tenant` lives, whose database was created or adopted.
    pub(crate) fn remember_new(&self, tenant: &TenantId, published: Published) -> Arc<Endpoint> {
        let CachedCatalog {
            entries, refresh, ..
        } = &*self.catalog;
        let endpoint = Arc::new(published.endpoint);
        if !entries.insert_known(tenant, published.known_at, None, &endpoint) {
            // A change was heard of since: most probably this process's own.
            entries.insert_stale(tenant, &endpoint);
            refresh.push(tenant);
        }
        endpoint
    }

    /// Remembers that `tenant` cannot be had, as was found out since `asked`.
    pub(crate) fn remember_refusal(&self, tenant: &TenantId, asked: Stamp, err: &Error) {
        let entries = &self.catalog.entries;
        match err.kind() {
            ErrorKind::Deleted | ErrorKind::Held => {
                let denial = Denial::Refused(err.clone());
                entries.insert_denial(tenant, asked, Some(0), denial);
            }
            ErrorKind::UnknownTenant => {
                let denial = Denial::Unknown(Some(err.clone()));
                entries.insert_denial(tenant, asked, None, denial);
            }
            kind if is_about_record(kind) => {
                entries.insert_broken(tenant, asked, err.clone());
            }
            _ => {}
        }
    }

    /// Reads at most `limit` records after `after`, and remembers those that may be used. Returns how many, and the last
    /// tenant of them.
    pub(crate) async fn preload(
        &self,
        after: Option<&TenantId>,
        limit: usize,
    ) -> Result<(u64, Option<TenantId>), Error> {
        let entries = &self.catalog.entries;
        let asked = entries.stamp();
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
                let newest = entries.insert_known(&tenant, asked, Some(generation), &endpoint);
                remembered += u64::from(newest);
            }
        }
        Ok((remembered, last))
    }
}

/// Whether an error says that the record names what is not there, not the tenant's, or not to be connected to, so that
/// asking again soon would say the same.
fn is_about_record(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::BadRecord | ErrorKind::EndpointNotFound | ErrorKind::Misconfigured
    )
}

/// The error for a record that says that its database may be used, and not where it is.
pub(super) fn no_endpoint() -> Error {
    let message = "the catalog's record says neither where the tenant lives nor in which project";
    Error::new(ErrorKind::BadRecord, message)
}
