//! The settings of a router, one line each.

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
        source::{OwnLookup, Source},
    },
};

/// Builds a [`TenantRouter`]. Nothing is checked before [`build`](Self::build), and no setter panics.
#[must_use = "a builder does nothing until it is built"]
pub struct RouterBuilder {
    source: Unchecked,
    config: Config,
    pipes: Option<Pipes>,
}

enum Unchecked {
    Lookup(Box<dyn AnyLookup>),
    Provisioner(Box<Provisioner>),
}

impl RouterBuilder {
    pub(crate) fn with_lookup(lookup: impl Lookup) -> Self {
        Self {
            source: Unchecked::Lookup(Box::new(lookup)),
            config: Config::default(),
            pipes: None,
        }
    }

    pub(crate) fn with_provisioner(provisioner: Provisioner) -> Self {
        Self {
            source: Unchecked::Provisioner(Box::new(provisioner)),
            config: Config::default(),
            pipes: None,
        }
    }

    /// Tenants that have a pool at the same time; beyond it the least recently used one loses its own. Defaults to
    /// 1000; raise it if more tenants than that are busy at once (an idle pool costs about 1 KB).
    pub fn max_pools(mut self, count: u64) -> Self {
        self.config.max_pools = count;
        self
    }

    /// Connections per tenant, unless its endpoint says another number
    /// ([`Endpoint::max_connections`](crate::Endpoint::max_connections), in a plan
    /// [`Plan::max_connections`](crate::Plan::max_connections)). Defaults to 4; raise it for tenants with many queries side
    /// by side.
    pub fn pool_size(mut self, count: usize) -> Self {
        self.config.pool_size = count;
        self
    }

    /// Connections of one tenant that may be in opening side by side while its compute is awake. Defaults to 4; more
    /// can trip the limit on attempts at Neon's proxy. A compute that may be asleep always gets one.
    pub fn concurrent_dials(mut self, count: usize) -> Self {
        self.config.concurrent_dials = count;
        self
    }

    /// Longest wait of one `get`, over everything it does. Defaults to 20 seconds: Neon advises 10 to 15 for a cold
    /// start, and a creation comes on top. Shorten it to answer your own callers sooner; what was begun goes on.
    ///
    /// It also bounds [`direct`](TenantRouter::direct) and [`warm`](TenantRouter::warm), and neither
    /// [`read`](TenantRouter::read) nor [`transaction`](TenantRouter::transaction): the wait for their connection counts in
    /// [`TransactionOptions::timeout`](crate::TransactionOptions::timeout), 30 seconds unless it is given.
    pub fn get_timeout(mut self, limit: Duration) -> Self {
        self.config.get_timeout = limit;
        self
    }

    /// Longest time for one wake, however many callers come and go. Defaults to 60 seconds, several times
    /// what the slowest recovery of a compute takes; Neon's proxy itself waits without an end. Raise it if yours take longer.
    pub fn wake_timeout(mut self, limit: Duration) -> Self {
        self.config.wake_timeout = limit;
        self
    }

    /// Longest time for finding or creating one tenant's database, however many callers come and go. Defaults to 60
    /// seconds; raise it if the [prepare hook](Provisioner::prepare) needs longer.
    pub fn provision_timeout(mut self, limit: Duration) -> Self {
        self.config.provision_timeout = limit;
        self
    }

    /// Idle time after which a connection is asked whether it still lives before it is handed out. Defaults to 30
    /// seconds; shorten it where sockets die silently, at the price of a round trip. Never asked in the background.
    pub fn verify_after(mut self, idle: Duration) -> Self {
        self.config.verify_after = idle;
        self
    }

    /// Idle time after which a connection is closed. Defaults to 4 minutes, and is never more than four fifths of the
    /// suspend window of the tenant's endpoint: a connection that is still there when the compute falls asleep is dead
    /// for the next caller. Shorten it to hold fewer connections. Closing keeps no database awake.
    pub fn idle_after(mut self, idle: Duration) -> Self {
        self.config.idle_after = idle;
        self
    }

    /// Age at which a connection is closed, as soon as nobody uses it; up to a tenth earlier by chance. Defaults to 30
    /// minutes. Shorten it if connections grow: the driver's buffers keep the size of the largest row they ever held.
    pub fn max_lifetime(mut self, age: Duration) -> Self {
        self.config.max_lifetime = age;
        self
    }

    /// Time after which a connection that somebody still holds is worth a warning in the log. Defaults to 60 seconds. A
    /// transaction left open keeps the database awake, which is billed, and Neon ends it after 5 minutes.
    pub fn warn_held_after(mut self, held: Duration) -> Self {
        self.config.warn_held_after = held;
        self
    }

    /// How many wakes by [`hint`](TenantRouter::hint) may turn out needless per minute. Defaults to 30; 0 turns hints
    /// off. A needless wake costs a suspend window of compute time.
    pub fn hints_per_minute(mut self, count: usize) -> Self {
        self.config.hints_per_minute = count;
        self
    }

    /// Connections per tenant that [`direct`](TenantRouter::direct) opens side by side. Defaults to 2; each is one of
    /// the hundred or so that a small Postgres has.
    pub fn direct_connections(mut self, count: usize) -> Self {
        self.config.direct_connections = count;
        self
    }

    /// Connections to tenants' databases in total: pooled and direct ones, and those of the prepare hook, each from before
    /// it is dialed until the server has ended it. Never exceeded. At the bound, connections that lie idle are closed,
    /// those of the least recently used tenants first; where none does, tenants take turns. Defaults to 500; each takes
    /// one of the process's open files and about 30 KB, so look at `ulimit -n` before you raise it. Not counted are the
    /// catalog's own connections and requests to cancel, which open no session.
    pub fn max_connections(mut self, count: usize) -> Self {
        self.config.max_connections = count;
        self
    }

    /// How many of [`max_connections`](Self::max_connections) are kept for tenants that have no connection, so that a
    /// wake does not wait until others close theirs. Defaults to a tenth. Raise it if many tenants wake at once, lower it
    /// if a few busy ones should have more side by side.
    pub fn wake_reserve(mut self, count: usize) -> Self {
        self.config.wake_reserve = Some(count);
        self
    }

    /// Callers that may wait for one tenant, be it for a look-up, a creation, a wake or a connection. Beyond it they get
    /// `ErrorKind::Overloaded` at once, with an estimate of when to come back. Defaults to 2000; lower it to tell those
    /// sooner whom their tenant cannot serve in time.
    pub fn waiting_per_tenant(mut self, count: usize) -> Self {
        self.config.waiting_per_tenant = count;
        self
    }

    /// Callers that may wait in total, as for [`waiting_per_tenant`](Self::waiting_per_tenant). Defaults to 10,000; each
    /// costs a few kilobytes.
    pub fn waiting_callers(mut self, count: usize) -> Self {
        self.config.waiting_callers = count;
        self
    }

    /// Tenants of which a router that provisions remembers where they live, with or without a pool. Defaults to
    /// 1,000,000, and each costs memory once it was used or [preloaded](TenantRouter::preload): keep it above the number of
    /// your tenants, because only those that are remembered go on while the catalog is down.
    pub fn known_tenants(mut self, count: u64) -> Self {
        self.config.known_tenants = count;
        self
    }

    /// Time after which the catalog is asked again, in the background, where a tenant lives; up to a tenth more or less by
    /// chance. Defaults to 5 minutes. It is the longest time to notice a change if nothing else tells
    /// ([`catalog_poll`](Self::catalog_poll)) and the tenant is looked up or woken; what is old is used meanwhile.
    pub fn catalog_ttl(mut self, time: Duration) -> Self {
        self.config.catalog_ttl = time;
        self
    }

    /// Longest time for one call of the catalog ([`Catalog`](crate::Catalog)); beyond it, it counts as down. Defaults to 5
    /// seconds. Shorten it to tell those sooner whose tenant is not known yet.
    pub fn catalog_timeout(mut self, limit: Duration) -> Self {
        self.config.catalog_timeout = limit;
        self
    }

    /// How often the catalog is asked what other processes have changed, up to a tenth more or less by chance; `None` for
    /// never. Defaults to 30 seconds, also where the catalog says by itself that there is news, because that may get lost.
    /// One call for all tenants.
    pub fn catalog_poll(mut self, interval: impl Into<Option<Duration>>) -> Self {
        self.config.catalog_poll = interval.into();
        self
    }

    /// Who turns host names into addresses. Defaults to the system.
    pub fn resolve(mut self, resolver: impl Resolve) -> Self {
        self.config.resolve = Arc::new(resolver);
        self
    }

    /// Trusts one more root certificate (DER), besides Mozilla's. For servers with a certificate of your own.
    pub fn root_certificate(mut self, der: impl AsRef<[u8]>) -> Self {
        self.config.root_certificates.push(tls::certificate(der));
        self
    }

    /// What the router is called in its metrics (`db.client.connection.pool.name`). Defaults to `tenantry`; routers of one
    /// process that each have metrics need names of their own.
    pub fn name(mut self, name: &str) -> Self {
        self.config.name = Arc::from(name);
        self
    }

    /// How many tenants the metrics show by name: those that ask most often, and those whose calls fail most often. Defaults
    /// to 0, because each name that a metrics server has ever seen costs it memory; at most so many more are shown per day.
    /// 100 at most.
    /// Nothing without the feature `metrics`; [`busiest`](TenantRouter::busiest) and [`failing`](TenantRouter::failing)
    /// say it in any case.
    pub fn tenants_in_metrics(mut self, count: usize) -> Self {
        self.config.tenants_in_metrics = count;
        self
    }

    /// All of them, to be written at once.
    pub(crate) fn config_mut(&mut self) -> &mut Config {
        &mut self.config
    }

    /// Opens pipes inside the process instead of sockets, and asks no resolver. For tests under paused time, and for
    /// more connections than there may be open files.
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
    /// If a setting cannot work, or if there is no current tokio runtime. Neither opens a connection.
    pub fn build(self) -> Result<TenantRouter, InvalidConfig> {
        self.config.check()?;
        let runtime = Handle::try_current().map_err(|_| {
            InvalidConfig::new(
                "no tokio runtime here: call build() inside the one that lives longest",
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
            Unchecked::Lookup(lookup) => Source::Lookup(OwnLookup::new(lookup, config)),
            Unchecked::Provisioner(provisioner) => {
                let provisioning = provisioner.check(Arc::clone(&dialer), &self.config)?;
                Source::Provisioning(Box::new(provisioning))
            }
        };
        let shared = Shared::new(self.config, source, dialer, runtime);
        Ok(TenantRouter::new(shared))
    }
}

impl fmt::Debug for RouterBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouterBuilder").finish_non_exhaustive()
    }
}
