//! The record of one tenant, and the lease under which it is changed.

use std::time::{Duration, SystemTime};

use crate::{
    model::{endpoint::Endpoint, tenant::TenantId},
    schema::SchemaState,
};

/// The state of a tenant's database.
///
/// Only the holder of the tenant's lease changes it, and only as [`may_become`](Self::may_become) allows.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum State {
    /// A database is about to be created; no creation was ever sent. Becomes `Creating`, `Preparing` or `Ready` if the
    /// database exists already, or `Deleting`.
    Claimed,
    /// A creation may have been sent. Becomes `Preparing` once the database is known, `Ready` if one is imported,
    /// `Claimed` once it is certain that none was created, or `Deleting`.
    Creating,
    /// The database exists and is not ready for use yet. Becomes `Ready`, `Creating` if the database has vanished, or
    /// `Deleting`.
    Preparing,
    /// In use. Becomes `Held` or `Deleting`.
    Ready,
    /// Blocked during the platform's own maintenance. Becomes `Ready` or `Deleting`.
    Held,
    /// Being deleted, and no longer served. Becomes `Deleted`.
    Deleting,
    /// Deleted: the record is a tombstone. Becomes `Ready` (`Preparing`, if it never was ready) if the deletion is
    /// undone, or `Claimed` if another database is explicitly requested. An access never requests one.
    Deleted,
}

impl State {
    /// All states, in the order in which a tenant passes through them.
    pub const ALL: &'static [Self] = &[
        Self::Claimed,
        Self::Creating,
        Self::Preparing,
        Self::Ready,
        Self::Held,
        Self::Deleting,
        Self::Deleted,
    ];

    /// Returns whether a record in this state may be written with the state `next`. A state may always stay the same.
    pub const fn may_become(self, next: Self) -> bool {
        match self {
            Self::Claimed | Self::Creating => matches!(
                next,
                Self::Claimed | Self::Creating | Self::Preparing | Self::Ready | Self::Deleting
            ),
            Self::Preparing => matches!(
                next,
                Self::Creating | Self::Preparing | Self::Ready | Self::Deleting
            ),
            Self::Ready | Self::Held => {
                matches!(next, Self::Ready | Self::Held | Self::Deleting)
            }
            Self::Deleting => matches!(next, Self::Deleting | Self::Deleted),
            Self::Deleted => matches!(
                next,
                Self::Claimed | Self::Preparing | Self::Ready | Self::Deleted
            ),
        }
    }

    /// Returns the name of the state, as catalogs write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Claimed => "claimed",
            Self::Creating => "creating",
            Self::Preparing => "preparing",
            Self::Ready => "ready",
            Self::Held => "held",
            Self::Deleting => "deleting",
            Self::Deleted => "deleted",
        }
    }

    /// Returns the state with this name.
    pub fn parse(name: &str) -> Option<Self> {
        let named = Self::ALL.iter().find(|state| state.as_str() == name);
        named.copied()
    }
}

/// The control plane's ids of a tenant's database. For Neon, these are Neon's own ids.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Placement {
    /// The organization that pays for it.
    pub org: Option<String>,
    /// The project: the id by which a control plane finds the database.
    pub project: String,
    /// The branch.
    pub branch: Option<String>,
    /// The compute.
    pub endpoint: Option<String>,
    /// The region, such as `aws-us-east-2`.
    pub region: Option<String>,
}

impl Placement {
    /// Creates a placement of which only the project is known.
    pub fn new(project: impl Into<String>) -> Self {
        Self {
            project: project.into(),
            ..Self::default()
        }
    }
}

/// A creation that was sent, or is about to be.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Attempt {
    /// Unique id of the attempt, written on the database.
    pub id: String,
    /// Remaining time for which its database may still turn up, measured by the catalog's clock.
    pub doubt: Duration,
}

impl Attempt {
    /// Creates an attempt, for implementors.
    pub fn new(id: impl Into<String>, doubt: Duration) -> Self {
        Self {
            id: id.into(),
            doubt,
        }
    }
}

/// The catalog's record of one tenant.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Record {
    /// Tenant of the record.
    pub tenant: TenantId,
    /// State of the database.
    pub state: State,
    /// Ids of the database; known from `Preparing` on.
    pub placement: Option<Placement>,
    /// Address and credential of the database; known from `Preparing` on. The password is empty if the catalog keeps
    /// none. The endpoint's own `max_connections` is ignored in favour of the record's.
    pub endpoint: Option<Endpoint>,
    /// Name of the plan that the database was created with.
    pub plan: Option<String>,
    /// Most pooled connections of one router to the database, from the plan; `None` for the router's own
    /// [`pool_size`](crate::RouterBuilder::pool_size). Known before the database is created, and kept if it moves.
    pub max_connections: Option<usize>,
    /// State of the application's [schema](crate::Schema) in the database.
    pub schema: SchemaState,
    /// Number that rises with every change of the placement or the endpoint. Set by the catalog alone.
    pub generation: u64,
    /// The last creation that was sent, as long as its outcome is unknown.
    pub attempt: Option<Attempt>,
    /// Ids of all attempts that may have created a database. A database that has the tenant's name and none of these
    /// ids was not created through this catalog, and is never deleted.
    pub attempts: Vec<String>,
    /// Projects that were deleted or will be, and are never taken for the tenant's database again.
    pub condemned: Vec<String>,
    /// Text of the last failure.
    pub last_error: Option<String>,
    /// Remaining time of the lease; `None` if the lease is free. Set by the catalog alone.
    pub leased_for: Option<Duration>,
    /// Time at which the record was made. Set by the catalog alone.
    pub created_at: SystemTime,
    /// Time of the last change. Set by the catalog alone.
    pub updated_at: SystemTime,
}

impl Record {
    /// Creates a record of which only the state is known, made now. For implementors.
    pub fn new(tenant: TenantId, state: State) -> Self {
        let now = SystemTime::now();
        Self {
            tenant,
            state,
            placement: None,
            endpoint: None,
            plan: None,
            max_connections: None,
            schema: SchemaState::default(),
            generation: 0,
            attempt: None,
            attempts: Vec::new(),
            condemned: Vec::new(),
            last_error: None,
            leased_for: None,
            created_at: now,
            updated_at: now,
        }
    }

    /// Returns the id by which a control plane finds the database.
    pub fn project(&self) -> Option<&str> {
        Some(self.placement.as_ref()?.project.as_str())
    }

    /// Sets the database. If it is another one, or another branch, its schema is not known any more.
    pub(crate) fn set_database(&mut self, placement: Placement, endpoint: Endpoint) {
        let before = self.placement.as_ref();
        let before = before.map(|it| (&it.project, &it.branch));
        if before != Some((&placement.project, &placement.branch)) {
            self.schema.forget();
        }
        self.placement = Some(placement);
        self.endpoint = Some(endpoint);
    }

    /// Returns whether a creation, preparation or deletion was begun and not finished.
    pub(crate) fn is_unfinished(&self) -> bool {
        match self.state {
            State::Creating | State::Preparing | State::Deleting => true,
            State::Claimed | State::Ready | State::Held | State::Deleted => false,
        }
    }

    /// Returns whether the database of an attempt may still turn up.
    pub(crate) fn is_in_doubt(&self) -> bool {
        let attempt = self.attempt.as_ref();
        attempt.is_some_and(|attempt| !attempt.doubt.is_zero())
    }

    /// Returns the endpoint of the tenant if its database may be used.
    pub fn into_served(self) -> Option<Endpoint> {
        match self.state {
            State::Ready => self.endpoint.map(|endpoint| Endpoint {
                max_connections: self.max_connections,
                ..endpoint
            }),
            State::Claimed
            | State::Creating
            | State::Preparing
            | State::Held
            | State::Deleting
            | State::Deleted => None,
        }
    }
}

/// The number of tenants whose databases and schemas are in the same state.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct SchemaTally {
    /// State of the databases.
    pub state: State,
    /// Version of the schemas; 0 if there is none, or if it is not known.
    pub version: i64,
    /// `true` if a migration has failed, and none has succeeded since.
    pub failed: bool,
    /// `true` if the failed migration is not tried again by itself.
    pub quarantined: bool,
    /// Number of tenants.
    pub tenants: u64,
}

impl SchemaTally {
    /// Creates the count of one tenant, or of several with the same state, for implementors.
    pub fn new(record: &Record, tenants: u64) -> Self {
        let failure = record.schema.failure.as_ref();
        Self {
            state: record.state,
            version: record.schema.version,
            failed: failure.is_some(),
            quarantined: failure.is_some_and(|it| it.retry.is_none()),
            tenants,
        }
    }

    /// Counts `record` in `tallies`, which are the counts of other tenants.
    pub(crate) fn count(tallies: &mut Vec<Self>, record: &Record) {
        let one = Self::new(record, 1);
        let key = |it: &Self| (it.state, it.version, it.failed, it.quarantined);
        match tallies.iter_mut().find(|it| key(it) == key(&one)) {
            Some(same) => same.tenants += 1,
            None => tallies.push(one),
        }
    }
}

/// A process that serves tenants, and the versions of their schemas that it works with.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Process {
    /// Identifies the router of the process.
    pub id: String,
    /// The lowest version that it works with.
    pub requires: i64,
    /// The highest version that it knows, but for steps that are held back.
    pub latest: i64,
    /// Time since it was heard of last, by the catalog's clock. Ignored by [`register`](super::Catalog::register).
    pub age: Duration,
}

impl Process {
    /// Creates a process, for implementors.
    pub fn new(id: impl Into<String>, requires: i64, latest: i64, age: Duration) -> Self {
        Self {
            id: id.into(),
            requires,
            latest,
            age,
        }
    }
}

/// A short text of the router's own that all replicas share, such as the state of a campaign.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Note {
    /// The text.
    pub text: String,
    /// Number of times that the note was written; a write replaces one version of it.
    pub version: u64,
    /// Time since the last write, by the catalog's clock.
    pub age: Duration,
}

impl Note {
    /// Creates a note, for implementors.
    pub fn new(text: impl Into<String>, version: u64, age: Duration) -> Self {
        let text = text.into();
        Self { text, version, age }
    }
}

/// The right to change one tenant's record, for a limited time.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Lease {
    /// Tenant whose record may be changed.
    pub tenant: TenantId,
    /// Name of the holder. Different for every piece of work, also within one process.
    pub owner: String,
    /// Number that rises whenever the lease passes to another owner, so that late writes of the old owner are refused.
    pub token: u64,
}

impl Lease {
    /// Creates a lease, for implementors.
    pub fn new(tenant: TenantId, owner: impl Into<String>, token: u64) -> Self {
        Self {
            tenant,
            owner: owner.into(),
            token,
        }
    }
}

/// The answer to a request for a lease.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Leased {
    /// The lease is granted. With the present record.
    Granted(Lease, Box<Record>),
    /// Another owner has the lease, for this much longer unless it is renewed.
    Held(Duration),
}

/// The treatment of the lease after a write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum AfterWrite {
    /// The holder keeps the lease, as it has more to do.
    Keep,
    /// The lease is released.
    Release,
}

/// The tenants whose records have changed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Changes {
    /// The tenants; one may be listed twice.
    pub tenants: Vec<TenantId>,
    /// Version to pass to the next call.
    pub version: u64,
    /// `true` if the catalog is older than before, as after a restore from a backup: every record may have changed.
    pub reset: bool,
    /// `true` if there are more changes.
    pub more: bool,
    /// Number of the server that answered. It changes with a restart, a fail-over and a restore. After each of them,
    /// earlier writes may be missing and later ones may have the same versions, so every record may have changed, as
    /// after a [`reset`](Self::reset). Defaults to 0, for an implementation that does not know it.
    pub incarnation: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_ready_is_served_and_a_tombstone_stays_one() {
        for &state in State::ALL {
            let tenant = TenantId::parse("acme").unwrap();
            let mut record = Record::new(tenant, state);
            record.endpoint = Some(Endpoint::postgres("h", "d", "r", "p"));
            assert_eq!(record.into_served().is_some(), state == State::Ready);
            assert_eq!(State::parse(state.as_str()), Some(state));
            assert!(state.may_become(state));
        }
        assert_eq!(State::parse("gone"), None);
        let ways_out: Vec<_> = State::ALL
            .iter()
            .copied()
            .filter(|next| State::Deleted.may_become(*next))
            .collect();
        assert_eq!(
            ways_out,
            [
                State::Claimed,
                State::Preparing,
                State::Ready,
                State::Deleted
            ]
        );
        assert!(!State::Deleting.may_become(State::Ready));
    }

    #[test]
    fn another_database_or_branch_makes_the_schema_unknown_and_another_host_does_not() {
        let mut record = Record::new(TenantId::parse("acme").unwrap(), State::Ready);
        let place = |project: &str, branch: Option<&str>| Placement {
            branch: branch.map(str::to_owned),
            ..Placement::new(project)
        };
        let endpoint = |host: &str| Endpoint::postgres(host, "d", "r", "p");
        record.set_database(place("p", Some("b")), endpoint("h"));
        for (placement, host, version) in [
            (place("p", Some("b")), "elsewhere", 3),
            (place("p", Some("c")), "h", 0),
            (place("q", Some("b")), "h", 0),
            (place("q", None), "h", 0),
        ] {
            record.schema.version = 3;
            record.set_database(placement.clone(), endpoint(host));
            assert_eq!(record.schema.version, version, "{placement:?}");
        }
    }
}
