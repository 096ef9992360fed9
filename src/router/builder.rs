//! The builder of a router, with all its settings.

use std::{fmt, future::Future, io, sync::Arc, time::Duration};

use tokio::{io::DuplexStream, runtime::Handle};

use super::TenantRouter;
use crate::{
    catalog::lookup::{AnyLookup, Lookup},
    connection::{dial::Dialer, stream::Pipes},
    limits::{budget::Budget, open_files},
    model::{
        config::{Config, InvalidConfig},
        resolve::Resolve,
        tls,
    },
    pool::shared::Shared,
    provision::{
        Provisioner,
        source::{AppLookup, Source},
    },
    schema::{CheckedSchema, Schema},
};

/// Builds a [`TenantRouter`]. Nothing is checked before [`build`](Self::build), and no setter panics.
#[must_use = "a builder does nothing until it is built"]
pub struct RouterBuilder {
    source: Unchecked,
    config: Config,
    schema: Option<Schema>,
    pipes: Option<Pipes>,
}

enum Unchecked {
    Lookup(Box<dyn AnyLookup>),
    Provisioner(Box<Provisioner>),
}

impl RouterBuilder {
    pub(super) fn with_lookup(lookup: impl Lookup) -> Self {
        Self {
            source: Unchecked::Lookup(Box::new(lookup)),
            config: Config::default(),
            schema: None,
            pipes: None,
        }
    }

    pub(super) fn with_provisioner(provisioner: Provisioner) -> Self {
        Self {
            source: Unchecked::Provisioner(Box::new(provisioner)),
            config: Config::default(),
            schema: None,
            pipes: None,
        }
    }

    /// Sets the number of tenants that have a pool at the same time. Beyond it, the least recently used tenant loses
    /// its pool. Defaults to 1000; raise it if more tenants than that are busy at once (an idle pool costs about 1 KB).
    pub fn max_pools(mut self, count: u64) -> Self {
        self.config.max_pools = count;
        self
    }

    /// Sets the connections per tenant, unless its endpoint has another number
    /// ([`Endpoint::max_connections`](crate::Endpoint::max_connections), in a plan
    /// [`Plan::max_connections`](crate::Plan::max_connections)). Defaults to 4; raise it for tenants with many
    /// concurrent queries.
    pub fn pool_size(mut self, count: usize) -> Self {
        self.config.pool_size = count;
        self
    }

    /// Sets the connections of one tenant that may be opened at the same time while its compute is awake. Defaults to
    /// 4; more can trip the limit on attempts at Neon's proxy. A compute that may be asleep always gets one attempt.
    pub fn concurrent_dials(mut self, count: usize) -> Self {
        self.config.concurrent_dials = count;
        self
    }

    /// Sets the longest wait of one `get`, over everything it does. Defaults to 20 seconds: Neon advises 10 to 15 for a
    /// cold start, and a creation comes on top. Shorten it to answer your own callers sooner; work that was begun goes
    /// on.
    ///
    /// It also bounds [`direct`](TenantRouter::direct) and [`warm`](TenantRouter::warm), but neither
    /// [`read`](TenantRouter::read) nor [`transaction`](TenantRouter::transaction). Their wait for a connection counts
    /// in [`TransactionOptions::timeout`](crate::TransactionOptions::timeout), which defaults to 30 seconds.
    pub fn get_timeout(mut self, limit: Duration) -> Self {
        self.config.get_timeout = limit;
        self
    }

    /// Sets the longest time for one wake, which runs on if its callers leave. Defaults to 60 seconds, several times
    /// the slowest recovery of a compute; Neon's proxy itself waits without an end. Raise it if your wakes take longer.
    pub fn wake_timeout(mut self, limit: Duration) -> Self {
        self.config.wake_timeout = limit;
        self
    }

    /// Sets the longest time for finding or creating one tenant's database, which runs on if its callers leave.
    /// Defaults to 60 seconds; raise it if the [prepare hook](Provisioner::prepare) needs longer.
    pub fn provision_timeout(mut self, limit: Duration) -> Self {
        self.config.provision_timeout = limit;
        self
    }

    /// Sets the idle time after which the router checks a connection with the server before handing it out. Defaults to
    /// 30 seconds; shorten it where sockets die silently, at the price of a round trip. Connections are never checked
    /// in the background.
    pub fn verify_after(mut self, idle: Duration) -> Self {
        self.config.verify_after = idle;
        self
    }

    /// Sets the idle time after which a connection is closed. Defaults to 4 minutes, and is never more than four fifths
    /// of the suspend window of the tenant's endpoint: a connection that is still open when the compute falls asleep is
    /// dead for the next caller. Shorten it to hold fewer connections. Closing a connection keeps no database awake.
    pub fn idle_after(mut self, idle: Duration) -> Self {
        self.config.idle_after = idle;
        self
    }

    /// Sets the age at which a connection is closed, as soon as it is not in use; up to a tenth earlier by chance.
    /// Defaults to 30 minutes. Shorten it if connections grow: the driver's buffers keep the size of the largest row
    /// they ever held.
    pub fn max_lifetime(mut self, age: Duration) -> Self {
        self.config.max_lifetime = age;
        self
    }

    /// Sets the time after which a connection that is still held causes a warning in the log. Defaults to 60 seconds. A
    /// transaction left open keeps the database awake, which is billed, and Neon ends it after 5 minutes.
    pub fn warn_held_after(mut self, held: Duration) -> Self {
        self.config.warn_held_after = held;
        self
    }

    /// Sets how many wakes by [`hint`](TenantRouter::hint) may turn out needless per minute. Defaults to 30; 0 turns
    /// hints off. A needless wake costs a suspend window of compute time.
    pub fn hints_per_minute(mut self, count: usize) -> Self {
        self.config.hints_per_minute = count;
        self
    }

    /// Sets how many connections of one tenant [`direct`](TenantRouter::direct) may have open at once. Defaults to 2;
    /// each is one of the hundred or so that a small Postgres has.
    pub fn direct_connections(mut self, count: usize) -> Self {
        self.config.direct_connections = count;
        self
    }

    /// Sets the total number of connections to tenants' databases: pooled ones, direct ones, and those of the prepare
    /// hook. Each counts from before it is dialed until the server has ended it. The number is never exceeded. At the
    /// limit, idle connections are closed, those of the least recently used tenants first; if none is idle, tenants
    /// take turns. Defaults to 500. Each connection takes one of the process's open files and about 30 KB, so look at
    /// `ulimit -n` before you raise it. Not counted are the catalog's own connections, and requests to cancel, which
    /// open no session.
    pub fn max_connections(mut self, count: usize) -> Self {
        self.config.max_connections = count;
        self
    }

    /// Sets how many of [`max_connections`](Self::max_connections) are kept for tenants that have no connection, so
    /// that a wake does not wait until other tenants close theirs. Defaults to a tenth. Raise it if many tenants wake
    /// at once; lower it if a few busy tenants should have more connections.
    pub fn wake_reserve(mut self, count: usize) -> Self {
        self.config.wake_reserve = Some(count);
        self
    }

    /// Sets how many callers may wait for one tenant: for a look-up, a creation, a wake or a connection. Further
    /// callers get `ErrorKind::Overloaded` at once, with an estimate of when to come back. Defaults to 2000; lower it
    /// to turn callers away sooner if their tenant cannot serve them in time.
    pub fn waiting_per_tenant(mut self, count: usize) -> Self {
        self.config.waiting_per_tenant = count;
        self
    }

    /// Sets how many callers may wait in total, as for [`waiting_per_tenant`](Self::waiting_per_tenant). Defaults to
    /// 10,000; each costs a few kilobytes.
    pub fn waiting_callers(mut self, count: usize) -> Self {
        self.config.waiting_callers = count;
        self
    }

    /// Sets the number of tenants whose endpoint a router that provisions remembers, with or without a pool. Defaults
    /// to 1,000,000, and each costs memory once it was used or [preloaded](TenantRouter::preload). Keep it above the
    /// number of your tenants, because only remembered tenants are served while the catalog is down.
    pub fn known_tenants(mut self, count: u64) -> Self {
        self.config.known_tenants = count;
        self
    }

    /// Sets the time after which a tenant's record is read again from the catalog, in the background; up to a tenth
    /// more or less by chance. Defaults to 5 minutes. It is the longest time to notice a change of a tenant that is
    /// looked up or woken, if nothing reports the change earlier ([`catalog_poll`](Self::catalog_poll)). Until the
    /// record is read, the old entry is used. While the catalog answers the polls for changes, all changes are known,
    /// and at most 2 records a second are read because of their age.
    pub fn catalog_ttl(mut self, time: Duration) -> Self {
        self.config.catalog_ttl = time;
        self
    }

    /// Sets the longest time for one call of the catalog ([`Catalog`](crate::Catalog)). Beyond it, the catalog counts
    /// as down. Defaults to 5 seconds. Shorten it so that callers of a tenant that is not known yet get their error
    /// sooner.
    pub fn catalog_timeout(mut self, limit: Duration) -> Self {
        self.config.catalog_timeout = limit;
        self
    }

    /// Sets how often the catalog is asked for the changes of other processes, up to a tenth more or less by chance;
    /// `None` for never. Defaults to 30 seconds, also if the catalog announces changes by itself, because an
    /// announcement may get lost. One call serves all tenants. A router with a [schema](Self::schema) also registers
    /// there every 30 seconds, whatever this setting is.
    pub fn catalog_poll(mut self, interval: impl Into<Option<Duration>>) -> Self {
        self.config.catalog_poll = interval.into();
        self
    }

    /// Sets the schema of the tenants' databases. Defaults to none. A router that provisions applies it to each new
    /// database before that is served. An access brings other databases up to date
    /// ([`Schema::on_access`](crate::Schema::on_access)), and so does [`migrate`](TenantRouter::migrate).
    pub fn schema(mut self, schema: Schema) -> Self {
        self.schema = Some(schema);
        self
    }

    /// Sets the resolver that turns host names into addresses. Defaults to the system's.
    pub fn resolve(mut self, resolver: impl Resolve) -> Self {
        self.config.resolve = Arc::new(resolver);
        self
    }

    /// Trusts one more root certificate (DER), besides Mozilla's: for servers with a certificate of your own.
    pub fn root_certificate(mut self, der: impl AsRef<[u8]>) -> Self {
        self.config.root_certificates.push(tls::certificate(der));
        self
    }

    /// Sets the router's name in its metrics (`db.client.connection.pool.name`). Defaults to `tenantry`. If several
    /// routers of one process have metrics, each needs its own name.
    pub fn name(mut self, name: &str) -> Self {
        self.config.name = Arc::from(name);
        self
    }

    /// Sets how many tenants the metrics show by name: those with the most calls, and those with the most failed calls.
    /// Defaults to 0, because each name that a metrics server has ever seen costs it memory. The maximum is 100. Each
    /// day, at most as many further names appear.
    ///
    /// This does nothing without the feature `metrics`; [`busiest`](TenantRouter::busiest) and
    /// [`failing`](TenantRouter::failing) return these tenants in any case.
    pub fn tenants_in_metrics(mut self, count: usize) -> Self {
        self.config.tenants_in_metrics = count;
        self
    }

    /// Returns all settings, to be written at once.
    pub(super) fn config_mut(&mut self) -> &mut Config {
        &mut self.config
    }

    /// Opens pipes inside the process instead of sockets, and uses no resolver. This is for tests under paused time,
    /// and for more connections than the process may have open files.
    #[doc(hidden)]
    pub fn open_streams<F, Fut>(mut self, open: F) -> Self
    where
        F: Fn(&str, u16) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = io::Result<DuplexStream>> + Send + 'static,
    {
        self.pipes = Some(Pipes::new(open));
        self
    }

    /// Checks the settings and starts the router on the current runtime.
    ///
    /// # Errors
    /// Returns an error if a setting cannot work, or if there is no current tokio runtime. No connection is opened.
    pub fn build(self) -> Result<TenantRouter, InvalidConfig> {
        self.config.check()?;
        let schema = self.schema.map(CheckedSchema::new).transpose()?;
        let runtime = Handle::try_current().map_err(|_| {
            InvalidConfig::new(
                "no tokio runtime is running here; call `build` inside the runtime that lives longest",
            )
        })?;
        let tls = tls::for_postgres(&self.config.root_certificates)?;
        if self.pipes.is_none() {
            open_files::check(self.config.max_connections);
        }
        let config = &self.config;
        let budget = Budget::new(config.max_connections, config.wake_reserve());
        let dialer = Dialer::new(budget, Arc::clone(&config.resolve), self.pipes, tls);
        let dialer = Arc::new(dialer);
        let source = match self.source {
            Unchecked::Lookup(lookup) => {
                Source::Lookup(AppLookup::new(lookup, config, schema.as_deref()))
            }
            Unchecked::Provisioner(provisioner) => {
                let provisioning =
                    provisioner.check(Arc::clone(&dialer), &self.config, schema.clone())?;
                Source::Provisioning(Box::new(provisioning))
            }
        };
        let shared = Shared::new(self.config, source, dialer, runtime);
        Ok(TenantRouter::new(shared, schema))
    }
}

impl fmt::Debug for RouterBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouterBuilder").finish_non_exhaustive()
    }
}
