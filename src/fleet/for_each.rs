//! Iteration over all tenants, one by one or several at a time.

use std::{fmt, future::Future, pin::pin, sync::Arc, time::Duration, vec};

use futures_util::{StreamExt, stream};

use super::Fleet;
use crate::{
    catalog::{Record, State},
    model::{
        current_tenant,
        error::{Error, Stage},
        tenant::TenantId,
    },
    sync::{
        progress::Progress,
        retry::{backoff, retry},
    },
};

/// Records per read.
const PAGE: usize = 1000;
/// First wait before a catalog that has failed is asked again.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// Longest such wait.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// The tenants of a fleet, read page by page from the catalog. Returned by [`Fleet::list`].
#[must_use = "a listing reads nothing until `next` is called"]
pub struct Listing {
    fleet: Fleet,
    after: Option<TenantId>,
    page: vec::IntoIter<Record>,
    is_last: bool,
}

impl Listing {
    /// Returns the record of the next tenant, in the order of the ids' bytes; `None` after the last one. Reads 1000 at
    /// once.
    ///
    /// # Errors
    /// `ErrorKind::Timeout` if the catalog fails for as long as
    /// [`provision_timeout`](crate::RouterBuilder::provision_timeout), other errors of the catalog, and
    /// `ErrorKind::Closed`. The call may be repeated, and continues where it stopped.
    ///
    /// # Cancel safety
    /// Dropping the future loses no tenant.
    pub async fn next(&mut self) -> Result<Option<Record>, Error> {
        loop {
            if let Some(record) = self.page.next() {
                return Ok(Some(record));
            }
            if self.is_last {
                return Ok(None);
            }
            let page = self.fleet.page(self.after.as_ref()).await?;
            match page.last() {
                Some(last) => self.after = Some(last.tenant.clone()),
                None => self.is_last = true,
            }
            self.page = page.into_iter();
        }
    }
}

/// The callback after each visit.
type Tell = dyn Fn(&Visit<'_>) + Send + Sync;

/// Options of [`Fleet::for_each`].
///
/// ```
/// use tenantry::fleet::ForEach;
///
/// let how = ForEach::new()
///     .concurrency(20)
///     .on_progress(|visit| println!("{}: {} done, {} failed", visit.tenant, visit.succeeded, visit.failed));
/// # let _ = how;
/// ```
#[derive(Clone)]
#[must_use = "these options do nothing until they are passed to `Fleet::for_each`"]
pub struct ForEach {
    concurrency: usize,
    after: Option<TenantId>,
    on_progress: Option<Arc<Tell>>,
}

impl Default for ForEach {
    fn default() -> Self {
        Self {
            concurrency: 10,
            after: None,
            on_progress: None,
        }
    }
}

impl ForEach {
    /// Creates the default options.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how many tenants are visited at the same time. Defaults to 10; 0 counts as 1. If each visit calls `get`,
    /// that many connections count towards [`max_connections`](crate::RouterBuilder::max_connections).
    pub fn concurrency(mut self, count: usize) -> Self {
        self.concurrency = count.max(1);
        self
    }

    /// Starts with the tenant that comes after `tenant`, byte by byte. Defaults to the first one.
    pub fn after(mut self, tenant: TenantId) -> Self {
        self.after = Some(tenant);
        self
    }

    /// Calls `tell` after each visit. By default nothing is called.
    pub fn on_progress(mut self, tell: impl Fn(&Visit<'_>) + Send + Sync + 'static) -> Self {
        self.on_progress = Some(Arc::new(tell));
        self
    }
}

impl fmt::Debug for ForEach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForEach")
            .field("concurrency", &self.concurrency)
            .field("after", &self.after)
            .finish_non_exhaustive()
    }
}

/// A tenant that was just visited, and the counts so far.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Visit<'a> {
    /// The tenant.
    pub tenant: &'a TenantId,
    /// Tenants visited so far for which the work succeeded, this one included.
    pub succeeded: u64,
    /// Tenants visited so far for which the work failed, this one included.
    pub failed: u64,
}

/// The result of [`Fleet::for_each`].
#[derive(Clone, Debug)]
#[must_use = "the result lists the tenants for which the work failed"]
#[non_exhaustive]
pub struct Visits<E> {
    /// Tenants for which the work succeeded.
    pub succeeded: u64,
    /// Tenants that were not visited because they cannot be used: unfinished, held or deleted.
    pub skipped: u64,
    /// Tenants for which the work failed, and the errors.
    pub failed: Vec<(TenantId, E)>,
}

impl Fleet {
    /// Lists all tenants in the catalog, each with its state, tombstones of deleted ones included. Reads only the
    /// catalog, page by page, so a record that changes during the listing may appear as it was before. A record that
    /// cannot be read is left out, with a warning in the log.
    ///
    /// [`Memory`](crate::catalog::Memory) knows only the tenants that were used since the process started.
    ///
    /// ```no_run
    /// # async fn f(fleet: &tenantry::Fleet) -> Result<(), tenantry::Error> {
    /// let mut tenants = fleet.list();
    /// while let Some(record) = tenants.next().await? {
    ///     println!("{}: {}", record.tenant, record.state.as_str());
    /// }
    /// # Ok(()) }
    /// ```
    pub fn list(&self) -> Listing {
        self.list_after(None)
    }

    fn list_after(&self, after: Option<TenantId>) -> Listing {
        Listing {
            fleet: self.clone(),
            after,
            page: Vec::new().into_iter(),
            is_last: false,
        }
    }

    /// Runs `work` for each tenant that can be used ([`Ready`](crate::catalog::State::Ready)), several at the same
    /// time. A failure does not stop the others: failures are collected.
    ///
    /// The call itself wakes no database, and neither opens nor keeps a connection. `work` gets the record. If it uses
    /// the tenant, by [`get`](crate::TenantRouter::get) for example, the database wakes and is billed as always.
    ///
    /// ```no_run
    /// # use tenantry::{Error, TenantRouter, fleet::ForEach};
    /// # async fn f(router: &TenantRouter, fleet: &tenantry::Fleet) -> Result<(), Error> {
    /// let visits = fleet
    ///     .for_each(&ForEach::new().concurrency(5), |record| async move {
    ///         let client = router.get(&record.tenant).await?;
    ///         client.batch_execute("ANALYZE").await?;
    ///         Ok::<_, Error>(())
    ///     })
    ///     .await?;
    /// for (tenant, err) in &visits.failed {
    ///     eprintln!("{tenant}: {err}");
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`Listing::next`], if the catalog cannot be read any further. Visits that have begun by then are
    /// finished first.
    ///
    /// # Cancel safety
    /// Dropping the future drops the work in progress.
    pub async fn for_each<E, Fut>(
        &self,
        how: &ForEach,
        mut work: impl FnMut(Record) -> Fut,
    ) -> Result<Visits<E>, Error>
    where
        Fut: Future<Output = Result<(), E>>,
    {
        let tenants = self.list_after(how.after.clone());
        let turns = stream::unfold(Some(tenants), next).map(|listed| {
            let turn = match listed {
                Ok(record) if record.state == State::Ready => {
                    let tenant = record.tenant.clone();
                    let working = current_tenant::sync_scope(&tenant, || work(record));
                    Turn::Visit(tenant, working)
                }
                Ok(_) => Turn::Skip,
                Err(err) => Turn::End(err),
            };
            turn.take()
        });
        let mut turns = pin!(turns.buffer_unordered(how.concurrency));
        let mut visits = Visits {
            succeeded: 0,
            skipped: 0,
            failed: Vec::new(),
        };
        let mut ended = Ok(());
        while let Some(turn) = turns.next().await {
            match turn {
                Took::Visit(tenant, done) => visits.note(tenant, done, how),
                Took::Skip => visits.skipped += 1,
                Took::End(err) => ended = Err(err),
            }
        }
        ended.map(|()| visits)
    }

    /// Reads the records after `after`, and repeats that while the catalog is down.
    async fn page(&self, after: Option<&TenantId>) -> Result<Vec<Record>, Error> {
        let shared = &self.inner.shared;
        let limit = shared.config.provision_timeout;
        let progress = Progress::new(Stage::Lookup, limit).doing("listing the tenants");
        let catalog = &self.provisioning().catalog;
        let waits = backoff(FIRST_WAIT, LONGEST_WAIT);
        tokio::select! {
            biased;
            () = shared.life.terminated() => Err(Error::closed()),
            page = retry(&progress, waits, || catalog.list(after, PAGE)) => page,
        }
    }
}

impl<E> Visits<E> {
    fn note(&mut self, tenant: TenantId, done: Result<(), E>, how: &ForEach) {
        self.succeeded += u64::from(done.is_ok());
        let failure = done.err();
        if let Some(tell) = &how.on_progress {
            tell(&Visit {
                tenant: &tenant,
                succeeded: self.succeeded,
                failed: self.failed.len() as u64 + u64::from(failure.is_some()),
            });
        }
        self.failed.extend(failure.map(|err| (tenant, err)));
    }
}

/// Returns the next listed record; `None` after the last one, and after an error.
async fn next(tenants: Option<Listing>) -> Option<(Result<Record, Error>, Option<Listing>)> {
    let mut tenants = tenants?;
    match tenants.next().await {
        Ok(Some(record)) => Some((Ok(record), Some(tenants))),
        Ok(None) => None,
        Err(err) => Some((Err(err), None)),
    }
}

/// The action for a listed record.
enum Turn<Fut> {
    Visit(TenantId, Fut),
    Skip,
    End(Error),
}

/// The result of a [`Turn`].
enum Took<E> {
    Visit(TenantId, Result<(), E>),
    Skip,
    End(Error),
}

impl<Fut> Turn<Fut> {
    async fn take<E>(self) -> Took<E>
    where
        Fut: Future<Output = Result<(), E>>,
    {
        match self {
            Self::Visit(tenant, working) => {
                let done = current_tenant::scope(&tenant, working).await;
                Took::Visit(tenant, done)
            }
            Self::Skip => Took::Skip,
            Self::End(err) => Took::End(err),
        }
    }
}

impl fmt::Debug for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listing")
            .field("after", &self.after)
            .finish_non_exhaustive()
    }
}
