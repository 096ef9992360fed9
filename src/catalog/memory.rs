//! The catalog in memory, for one process.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    sync::Mutex,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use super::{
    Catalog, InvalidRecord,
    lookup::Lookup,
    record::{AfterWrite, Attempt, Changes, Lease, Leased, Note, Process, Record, State},
};
use crate::{
    model::{
        endpoint::Endpoint,
        error::BoxError,
        tenant::{Namespace, TenantId},
    },
    schema::SchemaFailure,
    sync::lock,
};

/// Time after which a process that was not heard of is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(24 * 3600);

/// A catalog in memory, for one process.
///
/// After a restart it is empty. The router then finds each tenant's project by its name instead of creating
/// another: when [`provision`](crate::Fleet::provision) is called again, or at the next access if a policy lets
/// accesses create. Deletions are forgotten, too: after a restart such an access creates a deleted tenant anew, unless
/// the policy forbids it.
#[derive(Debug, Default)]
pub struct Memory {
    // Held for a few instructions, or for a walk through the records.
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    namespace: Option<Namespace>,
    entries: BTreeMap<TenantId, Entry>,
    /// Tenant of each project, without deleted tenants.
    owners: HashMap<String, TenantId>,
    /// Version of the last write.
    version: u64,
    /// Text, version and time of the last write of each note.
    notes: HashMap<String, (String, u64, Instant)>,
    /// The processes by their ids, and the times at which they were heard of.
    processes: HashMap<String, (Process, Instant)>,
}

#[derive(Debug)]
struct Entry {
    record: Record,
    /// End of the time in which the database of the record's attempt may turn up.
    doubt_until: Option<Instant>,
    /// Time of the first failure of the step at which the schema stands.
    failed_at: Option<Instant>,
    /// Time at which that step is tried again.
    retry_at: Option<Instant>,
    token: u64,
    owner: Option<(String, Instant)>,
    /// Version of the last write to this record.
    version: u64,
}

impl Entry {
    /// Creates an entry in `Creating`, not in `Claimed`: an earlier run of the process may have created the database.
    fn new(tenant: &TenantId) -> Self {
        Self {
            record: Record::new(tenant.clone(), State::Creating),
            doubt_until: None,
            failed_at: None,
            retry_at: None,
            token: 0,
            owner: None,
            version: 0,
        }
    }

    fn holder(&self) -> Option<(&str, Duration)> {
        let (owner, until) = self.owner.as_ref()?;
        let left = until.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some((owner.as_str(), left))
    }

    fn is_held_by(&self, lease: &Lease) -> bool {
        let holder = self.holder().map(|(owner, _)| owner);
        holder == Some(lease.owner.as_str()) && self.token == lease.token
    }

    /// Returns the record, with the remaining times filled in.
    fn record(&self) -> Record {
        let mut record = self.record.clone();
        record.leased_for = self.holder().map(|(_, left)| left);
        if let (Some(attempt), Some(until)) = (&mut record.attempt, self.doubt_until) {
            attempt.doubt = until.saturating_duration_since(Instant::now());
        }
        if let Some(failure) = &mut record.schema.failure {
            let now = Instant::now();
            failure.age = self.failed_at.map_or(failure.age, |at| now - at);
            failure.retry = self.retry_at.map(|at| at.saturating_duration_since(now));
        }
        record
    }

    fn write(&mut self, new: &Record, version: u64) {
        self.write_failure(new.schema.failure.as_ref());
        let old = &self.record;
        let moved = (&old.placement, &old.endpoint) != (&new.placement, &new.endpoint);
        let doubt = new.attempt.as_ref().map(|Attempt { doubt, .. }| *doubt);
        self.doubt_until = doubt.map(|doubt| Instant::now() + doubt);
        self.version = version;
        self.record = Record {
            generation: old.generation + u64::from(moved),
            created_at: old.created_at,
            updated_at: SystemTime::now(),
            ..new.clone()
        };
    }
}

impl Entry {
    /// Updates the times of the schema's failure. The first failure of a step begins its age.
    fn write_failure(&mut self, new: Option<&SchemaFailure>) {
        let now = Instant::now();
        let at = |failure: &SchemaFailure| (failure.step, failure.mark);
        let is_same = self.record.schema.failure.as_ref().map(at) == new.map(at);
        self.failed_at = new.and(self.failed_at.filter(|_| is_same).or(Some(now)));
        self.retry_at = new.and_then(|failure| Some(now + failure.retry?));
    }
}

impl Memory {
    /// Creates an empty catalog.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Known {
    /// Returns another tenant that has the project of `record` and is not deleted.
    fn other_at(&self, record: &Record) -> Option<&TenantId> {
        let owner = self.owners.get(record.project()?)?;
        (record.state != State::Deleted && *owner != record.tenant).then_some(owner)
    }

    /// Updates the owners of projects for the replacement of `old` by `new`.
    fn settle_owner(&mut self, old: &Record, new: &Record) {
        let owned = |record: &Record| {
            let project = record.project().map(str::to_owned);
            project.filter(|_| record.state != State::Deleted)
        };
        if let Some(project) = owned(old) {
            self.owners.remove(&project);
        }
        if let Some(project) = owned(new) {
            self.owners.insert(project, new.tenant.clone());
        }
    }
}

impl Lookup for Memory {
    async fn lookup(&self, tenant: &TenantId) -> Result<Option<Endpoint>, BoxError> {
        let found = self.find(tenant).await?;
        Ok(found.and_then(Record::into_served))
    }
}

impl Catalog for Memory {
    fn bind(&self, namespace: &Namespace, _with_passwords: bool) -> Result<(), BoxError> {
        let mut known = lock(&self.known);
        if *known.namespace.get_or_insert_with(|| namespace.clone()) != *namespace {
            return Err("one Memory serves one namespace; give each router its own".into());
        }
        Ok(())
    }

    async fn find(&self, tenant: &TenantId) -> Result<Option<Record>, BoxError> {
        Ok(lock(&self.known).entries.get(tenant).map(Entry::record))
    }

    async fn lease(
        &self,
        tenant: &TenantId,
        owner: &str,
        time: Duration,
    ) -> Result<Leased, BoxError> {
        let mut known = lock(&self.known);
        let fresh = || Entry::new(tenant);
        let entry = known.entries.entry(tenant.clone()).or_insert_with(fresh);
        match entry.holder() {
            Some((holder, left)) if holder != owner => return Ok(Leased::Held(left)),
            Some(_) => {}
            None => entry.token += 1,
        }
        entry.owner = Some((owner.to_owned(), Instant::now() + time));
        let lease = Lease::new(tenant.clone(), owner, entry.token);
        Ok(Leased::Granted(lease, Box::new(entry.record())))
    }

    async fn write(
        &self,
        lease: &Lease,
        record: &Record,
        then: AfterWrite,
    ) -> Result<bool, BoxError> {
        let mut known = lock(&self.known);
        let version = known.version + 1;
        let held = known
            .entries
            .get(&lease.tenant)
            .filter(|entry| entry.is_held_by(lease));
        let Some(entry) = held else {
            return Ok(false);
        };
        let (old, new) = (entry.record.state, record.state);
        if record.tenant != lease.tenant {
            return Err(InvalidRecord::of_another(lease, record).into());
        }
        if !old.may_become(new) {
            return Err(InvalidRecord::not_allowed(old, new).into());
        }
        if let Some(other) = known.other_at(record) {
            let message = format!("tenant {:?} has this database already", other.as_str());
            return Err(InvalidRecord::new(message).into());
        }
        let before = entry.record.clone();
        known.settle_owner(&before, record);
        if let Some(entry) = known.entries.get_mut(&lease.tenant) {
            entry.write(record, version);
            if then == AfterWrite::Release {
                entry.owner = None;
            }
        }
        known.version = version;
        Ok(true)
    }

    async fn release(&self, lease: &Lease) -> Result<(), BoxError> {
        let mut known = lock(&self.known);
        let held = known.entries.get_mut(&lease.tenant);
        if let Some(entry) = held.filter(|entry| entry.is_held_by(lease)) {
            entry.owner = None;
        }
        Ok(())
    }

    async fn list(&self, after: Option<&TenantId>, limit: usize) -> Result<Vec<Record>, BoxError> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let known = lock(&self.known);
        let listed = known.entries.range::<TenantId, _>((from, Bound::Unbounded));
        Ok(listed
            .take(limit)
            .map(|(_, entry)| entry.record())
            .collect())
    }

    fn keeps_notes(&self) -> bool {
        true
    }

    async fn register(&self, process: &Process) -> Result<(), BoxError> {
        let processes = &mut lock(&self.known).processes;
        processes.retain(|_, (_, at)| at.elapsed() < FORGOTTEN_AFTER);
        processes.insert(process.id.clone(), (process.clone(), Instant::now()));
        Ok(())
    }

    async fn deregister(&self, id: &str) -> Result<(), BoxError> {
        lock(&self.known).processes.remove(id);
        Ok(())
    }

    async fn processes(&self) -> Result<Vec<Process>, BoxError> {
        let known = lock(&self.known);
        let processes = known.processes.values();
        let aged = processes.map(|(process, at)| Process {
            age: at.elapsed(),
            ..process.clone()
        });
        Ok(aged.collect())
    }

    async fn note(&self, name: &str) -> Result<Option<Note>, BoxError> {
        let known = lock(&self.known);
        let note = known.notes.get(name);
        Ok(note.map(|(text, version, at)| Note::new(text, *version, at.elapsed())))
    }

    async fn write_note(&self, name: &str, text: &str, replaces: u64) -> Result<bool, BoxError> {
        let notes = &mut lock(&self.known).notes;
        let is_next = notes.get(name).map_or(0, |it| it.1) == replaces;
        if is_next {
            let note = (text.to_owned(), replaces + 1, Instant::now());
            notes.insert(name.to_owned(), note);
        }
        Ok(is_next)
    }

    async fn changes(&self, since: Option<u64>, limit: usize) -> Result<Changes, BoxError> {
        let known = lock(&self.known);
        let Some(since) = since.filter(|since| *since < known.version) else {
            return Ok(Changes {
                version: known.version,
                reset: since.is_some_and(|since| since > known.version),
                ..Changes::default()
            });
        };
        let mut changed: Vec<_> = known
            .entries
            .iter()
            .map(|(tenant, entry)| (entry.version, tenant))
            .filter(|(version, _)| *version > since)
            .collect();
        changed.sort_unstable();
        let more = changed.len() > limit;
        changed.truncate(limit);
        let last = changed.last().map_or(since, |(version, _)| *version);
        Ok(Changes {
            version: if more { last } else { known.version },
            tenants: changed.into_iter().map(|(_, it)| it.clone()).collect(),
            incarnation: 0,
            reset: false,
            more,
        })
    }
}
