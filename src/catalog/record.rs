//! What the catalog knows about one tenant.

use std::time::{Duration, SystemTime};

use crate::model::{endpoint::Endpoint, tenant::TenantId};

/// How far a tenant's database has come.
///
/// Only the holder of the tenant's lease changes it, and only as [`may_become`](Self::may_become) says.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum State {
    /// Somebody is about to create a database; nothing was ever sent. Becomes `Creating`, `Preparing` or `Ready` if the
    /// database exists already, or `Deleting`.
    Claimed,
    /// A creation may have been sent. Becomes `Preparing` when the database is known, `Ready` if one is imported,
    /// `Claimed` when it is certain that none was created, or `Deleting`.
    Creating,
    /// The database exists and is not yet fit for use. Becomes `Ready`, `Creating` if it has vanished again, or
    /// `Deleting`.
    Preparing,
    /// In use. Becomes `Held` or `Deleting`.
    Ready,
    /// Kept from use for the platform's own maintenance. Becomes `Ready` or `Deleting`.
    Held,
    /// Being deleted, and no longer served. Becomes `Deleted`.
    Deleting,
    /// Deleted. A tombstone: becomes `Ready` (`Preparing`, if it never was ready) if the deletion is taken back, or
    /// `Claimed` if another database is asked for in so many words, never by an access.
    Deleted,
}

impl State {
    /// Every state, in the order in which they come.
    pub const ALL: &'static [Self] = &[
        Self::Claimed,
        Self::Creating,
        Self::Preparing,
        Self::Ready,
        Self::Held,
        Self::Deleting,
        Self::Deleted,
    ];

    /// Whether a record of this state may be written with that one. It may always stay as it is.
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

    /// Its name, as catalogs write it.
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

    /// The state of that name.
    pub fn parse(name: &str) -> Option<Self> {
        let named = Self::ALL.iter().find(|state| state.as_str() == name);
        named.copied()
    }
}

/// What whoever runs a tenant's database calls it. At Neon, these are its ids.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Placement {
    /// The organization that pays for it.
    pub org: Option<String>,
    /// The project. The id by which a control plane is asked about the database.
    pub project: String,
    /// The branch.
    pub branch: Option<String>,
    /// The compute.
    pub endpoint: Option<String>,
    /// Where it runs, such as `aws-us-east-2`.
    pub region: Option<String>,
}

impl Placement {
    /// In that project; all else is not known.
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
    /// What tells it from all others. Written on the database.
    pub id: String,
    /// For how much longer its database may still turn up. By the catalog's clock.
    pub doubt: Duration,
}

impl Attempt {
    /// For implementors.
    pub fn new(id: impl Into<String>, doubt: Duration) -> Self {
        Self {
            id: id.into(),
            doubt,
        }
    }
}

/// What the catalog knows about one tenant.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Record {
    /// Whose record it is.
    pub tenant: TenantId,
    /// How far the database has come.
    pub state: State,
    /// What the database is called; known from `Preparing` on.
    pub placement: Option<Placement>,
    /// Where it is reached; known from `Preparing` on. Its password is empty if the catalog keeps none, and its
    /// `max_connections` means nothing: the record has its own.
    pub endpoint: Option<Endpoint>,
    /// Name of the plan that it was created with.
    pub plan: Option<String>,
    /// The most pooled connections that one router has to it, by its plan; `None` for the router's own
    /// [`pool_size`](crate::RouterBuilder::pool_size). Known before the database is, and the same wherever that is.
    pub max_connections: Option<usize>,
    /// Version of the application's schema in it; 0 until something else is recorded.
    pub schema_version: i64,
    /// Rises with every change of the placement or the endpoint. Kept by the catalog, whatever is written.
    pub generation: u64,
    /// The creation that was sent last and whose outcome is not known.
    pub attempt: Option<Attempt>,
    /// Ids of all attempts that may have created a database. A database of the tenant's name that carries none of them
    /// was created by somebody whom this catalog knows nothing of, and is never deleted.
    pub attempts: Vec<String>,
    /// Projects that were or are about to be deleted, and are never taken for the tenant's database again.
    pub condemned: Vec<String>,
    /// Why the last attempt at something failed.
    pub last_error: Option<String>,
    /// For how much longer somebody holds the lease; `None` if nobody does. Kept by the catalog, whatever is written.
    pub leased_for: Option<Duration>,
    /// When the record was made. Kept by the catalog, whatever is written.
    pub created_at: SystemTime,
    /// When it was changed last. Kept by the catalog, whatever is written.
    pub updated_at: SystemTime,
}

impl Record {
    /// A record of which nothing is known but its state, made now. For implementors.
    pub fn new(tenant: TenantId, state: State) -> Self {
        let now = SystemTime::now();
        Self {
            tenant,
            state,
            placement: None,
            endpoint: None,
            plan: None,
            max_connections: None,
            schema_version: 0,
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

    /// The id by which a control plane is asked about the database.
    pub fn project(&self) -> Option<&str> {
        Some(self.placement.as_ref()?.project.as_str())
    }

    /// Whether something was begun that nobody has brought to an end.
    pub(crate) fn is_unfinished(&self) -> bool {
        match self.state {
            State::Creating | State::Preparing | State::Deleting => true,
            State::Claimed | State::Ready | State::Held | State::Deleted => false,
        }
    }

    /// Whether a database may still turn up.
    pub(crate) fn is_in_doubt(&self) -> bool {
        let attempt = self.attempt.as_ref();
        attempt.is_some_and(|attempt| !attempt.doubt.is_zero())
    }

    /// Where the tenant lives, if its database may be used.
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

/// The right to change one tenant's record, for a time.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Lease {
    /// Whose record it is.
    pub tenant: TenantId,
    /// Who holds it. Different for every piece of work, also within one process.
    pub owner: String,
    /// Rises whenever the lease goes to another owner, so that a late writer is told from the present one.
    pub token: u64,
}

impl Lease {
    /// For implementors.
    pub fn new(tenant: TenantId, owner: impl Into<String>, token: u64) -> Self {
        Self {
            tenant,
            owner: owner.into(),
            token,
        }
    }
}

/// What became of asking for a lease.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Leased {
    /// It is granted, and this is what the catalog knows.
    Granted(Lease, Box<Record>),
    /// Somebody else has it, for this much longer unless they renew it.
    Held(Duration),
}

/// What becomes of the lease once its holder has written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum AfterWrite {
    /// The holder has more to do.
    Keep,
    /// Anybody may have it.
    Release,
}

/// Which records have changed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Changes {
    /// Whose records they are; one tenant may come twice.
    pub tenants: Vec<TenantId>,
    /// From where to ask the next time.
    pub version: u64,
    /// Whether the catalog is older than it was, as after a restore from a backup: everything may have changed.
    pub reset: bool,
    /// Whether there are more.
    pub more: bool,
    /// The server that answered, as a number that changes with a restart, a fail-over and a restore. After each of them
    /// writes may be missing that were there before, and later ones may have got the same versions: everything may have
    /// changed, as after a [`reset`](Self::reset). Defaults to 0, for an implementation that does not know.
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
}
