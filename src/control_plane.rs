//! What tenantry asks of whoever creates databases.
//!
//! A seam, so that something else than Neon can be put there. The trait knows no project and no branch: those are
//! Neon's own nouns, and only the implementation for [`Neon`](crate::Neon) turns them into ours.

mod neon;

use std::{collections::BTreeMap, future::Future, pin::Pin, time::SystemTime};

pub use crate::sync::progress::Progress;
use crate::{
    catalog::Placement,
    model::{
        endpoint::{Endpoint, Login},
        error::Error,
        plan::Plan,
        secret::Secret,
    },
};

/// Creates databases, finds them again, and deletes them.
///
/// Every method works until `progress.deadline()` at the longest, repeats by itself what can safely be repeated, and
/// notes failures that it retries with [`Progress::note`]. A failure that may pass is one of a
/// [transient](crate::ErrorKind::is_transient) kind.
///
/// # Cancel safety
/// A call may be dropped at any moment: at the deadline, or by whoever made it. What it has asked for may be done all the
/// same. A [`create`](Self::create) that was dropped counts as one whose outcome is unknown.
pub trait ControlPlane: Send + Sync + 'static {
    /// Whether `plan` can be ordered at all; an error says what of it cannot. Defaults to yes: the creation will tell.
    fn check(
        &self,
        plan: &Plan,
        progress: &Progress,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        let _ = (plan, progress);
        std::future::ready(Ok(()))
    }

    /// All databases whose name is exactly `name`, oldest first. An error if it is not certain that they are all. It may
    /// miss the newest for a while.
    fn find(
        &self,
        name: &str,
        progress: &Progress,
    ) -> impl Future<Output = Result<Vec<Found>, Error>> + Send;

    /// All databases whose name begins with `prefix`, in any order. An error if it is not certain that they are all.
    fn list(
        &self,
        prefix: &str,
        progress: &Progress,
    ) -> impl Future<Output = Result<Vec<Found>, Error>> + Send;

    /// What is written on a database; `None` if there is none of that id.
    fn tags(
        &self,
        id: &str,
        progress: &Progress,
    ) -> impl Future<Output = Result<Option<BTreeMap<String, String>>, Error>> + Send;

    /// Creates a database, and never two for one call.
    ///
    /// An error of a [transient](crate::ErrorKind::is_transient) kind means that it is unknown whether one was created:
    /// it is then looked for, and none is created again until it must have turned up. An error of any other kind means
    /// that none was, so that the next access orders one again. [`ErrorKind::Timeout`](crate::ErrorKind::Timeout) is such
    /// a kind: it is for time that ran out before anything could be ordered, or after nothing but refusals.
    fn create(
        &self,
        order: &Order,
        progress: &Progress,
    ) -> impl Future<Output = Result<Database, Error>> + Send;

    /// Waits until the database takes connections.
    fn ready(
        &self,
        id: &str,
        progress: &Progress,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Where the database lives, credential included; `None` if there is none of that id. `login` says as whom, and into
    /// what; without it, as a database is created.
    fn database(
        &self,
        id: &str,
        login: Option<&Login>,
        progress: &Progress,
    ) -> impl Future<Output = Result<Option<Database>, Error>> + Send;

    /// The password of a role, for a catalog that keeps none; `None` if there is no such database. By default it is taken
    /// from [`database`](Self::database).
    fn password(
        &self,
        placement: &Placement,
        login: &Login,
        progress: &Progress,
    ) -> impl Future<Output = Result<Option<Secret>, Error>> + Send {
        async {
            let found = self.database(&placement.project, Some(login), progress);
            Ok(found.await?.map(|it| it.endpoint.password))
        }
    }

    /// Deletes a database, and makes sure that it is gone. It may be gone already.
    fn delete(
        &self,
        id: &str,
        progress: &Progress,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Takes the deletion of a database back. An error of kind [`NotFound`](crate::ErrorKind::NotFound) if that cannot be
    /// done any more. It may be back already.
    fn recover(
        &self,
        id: &str,
        progress: &Progress,
    ) -> impl Future<Output = Result<(), Error>> + Send;
}

/// A database to be created.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Order {
    /// Its name, which nobody else uses.
    pub name: String,
    /// What to write on it, so that it is known again.
    pub tags: BTreeMap<String, String>,
    /// What it gets.
    pub plan: Plan,
}

impl Order {
    /// For the tests of implementors.
    pub fn new(name: impl Into<String>, tags: BTreeMap<String, String>, plan: Plan) -> Self {
        Self {
            name: name.into(),
            tags,
            plan,
        }
    }
}

/// A database and where it lives.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Database {
    /// What the control plane calls it.
    pub placement: Placement,
    /// Where it lives.
    pub endpoint: Endpoint,
}

impl Database {
    /// For implementors.
    pub fn new(placement: Placement, endpoint: Endpoint) -> Self {
        Self {
            placement,
            endpoint,
        }
    }
}

/// A database that was found by its name.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Found {
    /// The control plane's own id of it.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was created, if that is known.
    pub created_at: Option<SystemTime>,
}

impl Found {
    /// For implementors.
    pub fn new(
        id: impl Into<String>,
        name: impl Into<String>,
        created_at: Option<SystemTime>,
    ) -> Self {
        Self {
            id: id.into(),
            name: name.into(),
            created_at,
        }
    }
}

type Reply<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;
type Tags = BTreeMap<String, String>;

/// [`ControlPlane`] with its type erased.
pub(crate) trait AnyControlPlane: Send + Sync {
    fn check<'a>(&'a self, plan: &'a Plan, progress: &'a Progress) -> Reply<'a, ()>;
    fn find<'a>(&'a self, name: &'a str, progress: &'a Progress) -> Reply<'a, Vec<Found>>;
    fn list<'a>(&'a self, prefix: &'a str, progress: &'a Progress) -> Reply<'a, Vec<Found>>;
    fn tags<'a>(&'a self, id: &'a str, progress: &'a Progress) -> Reply<'a, Option<Tags>>;
    fn create<'a>(&'a self, order: &'a Order, progress: &'a Progress) -> Reply<'a, Database>;
    fn ready<'a>(&'a self, id: &'a str, progress: &'a Progress) -> Reply<'a, ()>;
    fn database<'a>(
        &'a self,
        id: &'a str,
        login: Option<&'a Login>,
        progress: &'a Progress,
    ) -> Reply<'a, Option<Database>>;
    fn password<'a>(
        &'a self,
        placement: &'a Placement,
        login: &'a Login,
        progress: &'a Progress,
    ) -> Reply<'a, Option<Secret>>;
    fn delete<'a>(&'a self, id: &'a str, progress: &'a Progress) -> Reply<'a, ()>;
    fn recover<'a>(&'a self, id: &'a str, progress: &'a Progress) -> Reply<'a, ()>;
}

impl<C: ControlPlane> AnyControlPlane for C {
    fn check<'a>(&'a self, plan: &'a Plan, progress: &'a Progress) -> Reply<'a, ()> {
        Box::pin(ControlPlane::check(self, plan, progress))
    }

    fn find<'a>(&'a self, name: &'a str, progress: &'a Progress) -> Reply<'a, Vec<Found>> {
        Box::pin(ControlPlane::find(self, name, progress))
    }

    fn list<'a>(&'a self, prefix: &'a str, progress: &'a Progress) -> Reply<'a, Vec<Found>> {
        Box::pin(ControlPlane::list(self, prefix, progress))
    }

    fn tags<'a>(&'a self, id: &'a str, progress: &'a Progress) -> Reply<'a, Option<Tags>> {
        Box::pin(ControlPlane::tags(self, id, progress))
    }

    fn create<'a>(&'a self, order: &'a Order, progress: &'a Progress) -> Reply<'a, Database> {
        Box::pin(ControlPlane::create(self, order, progress))
    }

    fn ready<'a>(&'a self, id: &'a str, progress: &'a Progress) -> Reply<'a, ()> {
        Box::pin(ControlPlane::ready(self, id, progress))
    }

    fn database<'a>(
        &'a self,
        id: &'a str,
        login: Option<&'a Login>,
        progress: &'a Progress,
    ) -> Reply<'a, Option<Database>> {
        Box::pin(ControlPlane::database(self, id, login, progress))
    }

    fn password<'a>(
        &'a self,
        placement: &'a Placement,
        login: &'a Login,
        progress: &'a Progress,
    ) -> Reply<'a, Option<Secret>> {
        Box::pin(ControlPlane::password(self, placement, login, progress))
    }

    fn delete<'a>(&'a self, id: &'a str, progress: &'a Progress) -> Reply<'a, ()> {
        Box::pin(ControlPlane::delete(self, id, progress))
    }

    fn recover<'a>(&'a self, id: &'a str, progress: &'a Progress) -> Reply<'a, ()> {
        Box::pin(ControlPlane::recover(self, id, progress))
    }
}
