//! The search for a tenant's database at the control plane, which proves whose it is.

use tokio::time::{Instant, sleep};

use super::{
    LeaseError,
    failpoint::Failpoint,
    job::{FIRST_WAIT, LONGEST_WAIT, ProvisionJob},
    ownership,
};
use crate::{
    catalog::Record,
    control_plane::{Database, Found},
    model::error::{Error, ErrorKind},
    sync::retry::backoff,
};

impl ProvisionJob<'_> {
    /// Returns the database that has the tenant's name and provably is the tenant's, if there is one. After a creation
    /// that got no answer, searches until its database cannot turn up any more.
    pub(super) async fn search(&self, record: &mut Record) -> Result<Option<Database>, LeaseError> {
        let doubt = record.attempt.as_ref().map(|attempt| attempt.doubt);
        let in_doubt_until = Instant::now() + doubt.unwrap_or_default();
        let found = self.search_until(in_doubt_until, record).await;
        if let Some(attempt) = &mut record.attempt {
            attempt.doubt = in_doubt_until.saturating_duration_since(Instant::now());
        }
        found
    }

    async fn search_until(
        &self,
        in_doubt_until: Instant,
        record: &Record,
    ) -> Result<Option<Database>, LeaseError> {
        let mut waits = backoff(FIRST_WAIT, LONGEST_WAIT);
        loop {
            if let Some(database) = self.find(record).await? {
                self.reach(Failpoint::Found).await;
                return Ok(Some(database));
            }
            let now = Instant::now();
            if now >= in_doubt_until {
                return Ok(None);
            }
            let message = "a call that creates the project got no answer, and the project cannot be found yet";
            self.progress
                .note(&Error::new(ErrorKind::ControlPlane, message));
            let wait = waits.next().unwrap_or(LONGEST_WAIT).min(LONGEST_WAIT);
            let wait = wait.min(in_doubt_until - now);
            if now + wait >= self.progress.deadline() {
                return Err(self.progress.timed_out().into());
            }
            sleep(wait).await;
        }
    }

    /// Searches for the tenant's database once. Takes the oldest of several, as every other process does.
    pub(super) async fn find(&self, record: &Record) -> Result<Option<Database>, Error> {
        let Self {
            engine, progress, ..
        } = self;
        let name = ownership::name(&engine.namespace, self.tenant);
        let mut named = engine.control_plane.find(&name, progress).await?;
        named.retain(|found| !record.condemned.contains(&found.id));
        let mut ours = Vec::new();
        let mut foreign = None;
        for Found { id, .. } in named {
            match engine.control_plane.tags(&id, progress).await? {
                Some(tags) if self.is_owner(&tags) => ours.push(id),
                Some(_) => foreign = Some(id),
                None => {}
            }
        }
        let Some((id, others)) = ours.split_first() else {
            return foreign.map_or(Ok(None), |id| Err(not_ours(&name, &id)));
        };
        for duplicate in others {
            tracing::warn!(
                tenant = self.tenant.as_str(),
                served = id,
                duplicate,
                "the tenant has two projects; the older one is served, and reconcile removes the other"
            );
        }
        engine.control_plane.database(id, None, progress).await
    }

    fn is_owner(&self, tags: &ownership::Tags) -> bool {
        let it = (self.engine.namespace.as_str(), self.tenant.as_str());
        ownership::owner(tags) == Some(it)
    }
}

fn not_ours(name: &str, id: &str) -> Error {
    let message = format!(
        "a project named {name:?} exists ({id}), but its annotations do not name this tenant; find out which tenant it \
         belongs to, then rename the project or annotate its default branch"
    );
    Error::new(ErrorKind::Conflict, message)
}
