//! The interface to the service that creates databases.
//!
//! Services other than Neon can implement it. The trait knows no project and no branch: those are Neon's terms, and
//! only the implementation for [`Neon`](crate::Neon) translates them.

mod neon;

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    time::{Duration, SystemTime},
};

pub use crate::sync::progress::Progress;
use crate::{
    catalog::Placement,
    model::{
        endpoint::{Endpoint, Login},
        error::{Error, ErrorKind},
        plan::Plan,
        secret::Secret,
    },
};

/// Creates databases, finds them again, and deletes them.
///
/// Every method returns by `progress.deadline()`, repeats requests that are safe to repeat, and reports each failure
/// that it retries with [`Progress::note`]. A failure that may pass has a
/// [transient](crate::ErrorKind::is_transient) kind.
///
/// # Cancel safety
/// A call may be dropped at any moment, by its caller or at the deadline. Its request may take effect after that. The
/// outcome of a dropped [`create`](Self::create) counts as unknown.
pub trait ControlPlane: Send + Sync + 'static {
    /// Checks whether `plan` can be ordered; the error says which part of it cannot. The default accepts every plan, so
    /// that a bad one fails at its creation.
    fn check(
        &self,
        plan: &Plan,
        progress: &Progress,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        let _ = (plan, progress);
        std::future::ready(Ok(()))
    }

    /// Returns all databases whose name is exactly `name`, oldest first. Fails if the list may be incomplete, except
    /// that it may miss the newest database for a while.
    fn find(
        &self,
        name: &str,
        progress: &Progress,
    ) -> impl Future<Output = Result<Vec<Found>, Error>> + Send;

    /// Returns all databases whose name begins with `prefix`, in any order. Fails if the list may be incomplete.
    fn list(
        &self,
        prefix: &str,
        progress: &Progress,
    ) -> impl Future<Output = Result<Vec<Found>, Error>> + Send;

    /// Returns the tags of a database; `None` if no database has this id.
    fn tags(
        &self,
        id: &str,
        progress: &Progress,
    ) -> impl Future<Output = Result<Option<BTreeMap<String, String>>, Error>> + Send;

    /// Creates a database, and never two for one call.
    ///
    /// An error of a [transient](crate::ErrorKind::is_transient) kind means that a database may have been created. The
    /// caller then looks for it, and creates no other until it must have turned up. An error of any other kind means
    /// that none was created, so that the next access orders one again. [`ErrorKind::Timeout`] is such a kind: the time
    /// ran out before anything could be ordered, or every attempt was refused.
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

    /// Returns the placement of a database, and its endpoint with the credential; `None` if no database has this id.
    /// `login` selects the role and the database to connect to; without it, they are those of a new database.
    fn database(
        &self,
        id: &str,
        login: Option<&Login>,
        progress: &Progress,
    ) -> impl Future<Output = Result<Option<Database>, Error>> + Send;

    /// Returns the password of a role, for a catalog that keeps none; `None` if there is no such database. The default
    /// takes it from [`database`](Self::database).
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

    /// Suspends a database, whose connections end, and waits until it sleeps; its next connection wakes it. Succeeds if
    /// there is no such database. The default does nothing, so that the database sleeps once its suspend window has
    /// passed.
    fn suspend(
        &self,
        placement: &Placement,
        progress: &Progress,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        let _ = (placement, progress);
        std::future::ready(Ok(()))
    }

    /// Creates a copy of a database as it is now, to try something on, and waits until it takes connections. It deletes
    /// itself after `lifetime`. Returns where the copy is, and the credential of `login` there; `None` if there is no
    /// such database. Fails by default.
    fn copy(
        &self,
        original: &Placement,
        login: &Login,
        lifetime: Duration,
        progress: &Progress,
    ) -> impl Future<Output = Result<Option<Database>, Error>> + Send {
        let _ = (original, login, lifetime, progress);
        let message =
            "this control plane makes no copies of databases, so nothing can be rehearsed";
        std::future::ready(Err(Error::new(ErrorKind::Refused, message)))
    }

    /// Deletes a [copy](Self::copy), and never another database. Succeeds if it is gone already.
    fn delete_copy(
        &self,
        copy: &Placement,
        progress: &Progress,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        let _ = (copy, progress);
        std::future::ready(Ok(()))
    }

    /// Deletes a database, and verifies that it is gone. Succeeds if it is gone already.
    fn delete(
        &self,
        id: &str,
        progress: &Progress,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Undoes the deletion of a database. Succeeds if the database is back already. Fails with the kind
    /// [`NotFound`](crate::ErrorKind::NotFound) if the deletion can no longer be undone.
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
    /// Name of the database, used for no other.
    pub name: String,
    /// Tags to write on the database, by which it is recognized later.
    pub tags: BTreeMap<String, String>,
    /// Plan of the database.
    pub plan: Plan,
}

impl Order {
    /// Creates an order, for the tests of implementors.
    pub fn new(name: impl Into<String>, tags: BTreeMap<String, String>, plan: Plan) -> Self {
        Self {
            name: name.into(),
            tags,
            plan,
        }
    }
}

/// A database, with its placement and its endpoint.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Database {
    /// The control plane's ids of the database.
    pub placement: Placement,
    /// Address and credential of the database.
    pub endpoint: Endpoint,
}

impl Database {
    /// Creates the value, for implementors.
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
    /// The control plane's id of the database.
    pub id: String,
    /// Name of the database.
    pub name: String,
    /// Time of the creation, if known.
    pub created_at: Option<SystemTime>,
}

impl Found {
    /// Creates the value, for implementors.
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
    fn suspend<'a>(&'a self, placement: &'a Placement, progress: &'a Progress) -> Reply<'a, ()>;
    fn copy<'a>(
        &'a self,
        original: &'a Placement,
        login: &'a Login,
        lifetime: Duration,
        progress: &'a Progress,
    ) -> Reply<'a, Option<Database>>;
    fn delete_copy<'a>(&'a self, copy: &'a Placement, progress: &'a Progress) -> Reply<'a, ()>;
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

    fn suspend<'a>(&'a self, placement: &'a Placement, progress: &'a Progress) -> Reply<'a, ()> {
        Box::pin(ControlPlane::suspend(self, placement, progress))
    }

    fn copy<'a>(
        &'a self,
        original: &'a Placement,
        login: &'a Login,
        lifetime: Duration,
        progress: &'a Progress,
    ) -> Reply<'a, Option<Database>> {
        Box::pin(ControlPlane::copy(
            self, original, login, lifetime, progress,
        ))
    }

    fn delete_copy<'a>(&'a self, copy: &'a Placement, progress: &'a Progress) -> Reply<'a, ()> {
        Box::pin(ControlPlane::delete_copy(self, copy, progress))
    }

    fn delete<'a>(&'a self, id: &'a str, progress: &'a Progress) -> Reply<'a, ()> {
        Box::pin(ControlPlane::delete(self, id, progress))
    }

    fn recover<'a>(&'a self, id: &'a str, progress: &'a Progress) -> Reply<'a, ()> {
        Box::pin(ControlPlane::recover(self, id, progress))
    }
}
