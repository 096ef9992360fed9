//! Computes that sleep and wake: an emulator's, or one at Neon.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tenantry::{
    BoxError,
    emulator::{Emulator, Witness},
    neon::{CreateProject, CreatedProject},
};
use tokio::time::{Instant, sleep, timeout};

use super::{
    account::{Account, error_chain, say},
    neon_service::NeonService,
    setting::Setting,
    support::{
        Target,
        relay::{Relay, Server},
    },
};

/// Longest wait for what should be so in milliseconds.
const WAIT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for a compute of Neon's to be asleep after it was suspended.
const SUSPEND: Duration = Duration::from_secs(60);
/// Tries of a suspend at Neon, and the wait between two of them.
const TRIES: u32 = 3;
const WAIT: Duration = Duration::from_secs(1);

/// A place to measure, and its computes.
pub(crate) struct Setup {
    provider: Provider,
    pub(crate) computes: Vec<Compute>,
    /// The networks before the proxy, by their round trips.
    relays: Mutex<BTreeMap<Duration, Relay>>,
}

enum Provider {
    Emulator(Box<(Emulator, NeonService)>),
    Neon(Arc<Account>),
}

/// A compute with a database.
pub(crate) struct Compute {
    project_id: String,
    pub(crate) endpoint_id: String,
    host: String,
    pooler_host: String,
    password: String,
}

impl Setup {
    /// An emulator with some computes.
    pub(crate) async fn emulated(computes: usize) -> Result<Self, BoxError> {
        let emulator = Emulator::start().await?;
        let service = NeonService::of(&emulator)?;
        let mut created = Vec::new();
        for n in 0..computes {
            let wanted = CreateProject::new(format!("bench-{n}"));
            let project = service.neon.create_project(&wanted).await?;
            service
                .neon
                .wait_for_operations(&project.project.id)
                .await?;
            created.push(Compute::of(&project)?);
        }
        Ok(Self {
            provider: Provider::Emulator(Box::new((emulator, service))),
            computes: created,
            relays: Mutex::default(),
        })
    }

    /// A project at Neon.
    pub(crate) async fn at_neon(account: &Arc<Account>) -> Result<Self, BoxError> {
        let (neon, plan) = (account.service.neon.clone(), account.service.plan());
        let creation = account.create(|name| async move {
            let mut wanted = CreateProject::new(name);
            wanted.plan = plan;
            let created = neon.create_project(&wanted).await?;
            Ok((created.project.id.clone(), created))
        });
        let created = creation.await?;
        let project_id = &created.project.id;
        account.service.neon.wait_for_operations(project_id).await?;
        say(&format!("measuring in {}", created.project.region_id));
        Ok(Self {
            computes: vec![Compute::of(&created)?],
            provider: Provider::Neon(Arc::clone(account)),
            relays: Mutex::default(),
        })
    }

    pub(crate) fn service(&self) -> &NeonService {
        match &self.provider {
            Provider::Emulator(it) => &it.1,
            Provider::Neon(account) => &account.service,
        }
    }

    /// The emulator, if it is one.
    pub(crate) fn emulator(&self) -> Option<&Emulator> {
        match &self.provider {
            Provider::Emulator(it) => Some(&it.0),
            Provider::Neon(_) => None,
        }
    }

    /// The settings that are measured here.
    pub(crate) fn settings(&self, samples: usize) -> Vec<Setting> {
        match &self.provider {
            Provider::Emulator(_) => Setting::emulated(samples),
            Provider::Neon(_) => Setting::at_neon(),
        }
    }

    /// The way to `compute`, whose wakes take the setting's time from now on.
    pub(crate) fn target(&self, compute: &Compute, setting: Setting) -> Result<Target, BoxError> {
        if let (Some(emulator), Some(wake)) = (self.emulator(), setting.wake) {
            emulator.set_wake_delay(wake);
        }
        let host = if setting.pooled {
            &compute.pooler_host
        } else {
            &compute.host
        };
        let service = self.service();
        let way = self.way(setting)?;
        let target = Target::new(host, &compute.password, way, service.tls()?);
        Ok(if setting.direct_tls {
            target
        } else {
            target.connect_requesting_tls()
        })
    }

    /// The address of all hosts, behind the setting's network; `None` where a name server knows them.
    pub(crate) fn way(&self, setting: Setting) -> Result<Option<SocketAddr>, BoxError> {
        let proxy = self.service().proxy();
        let Some(server) = proxy.filter(|_| setting.has_network()) else {
            return Ok(proxy);
        };
        let mut relays = self.relays.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(relay) = relays.get(&setting.round_trip) {
            return Ok(Some(relay.address()));
        }
        let relay = Relay::to(Server::Tcp(server), setting.round_trip)?;
        let address = relay.address();
        relays.insert(setting.round_trip, relay);
        Ok(Some(address))
    }

    /// Has the pooler of an awake compute as a wake leaves it: just started, with one connection to Postgres. At Neon
    /// nothing can be done to it.
    pub(crate) async fn cool(&self, compute: &Compute, target: &Target) -> Result<(), BoxError> {
        if self.emulator().is_none() {
            return Ok(());
        }
        let service = self.service();
        let mut url = reqwest::Url::parse(&service.api_url)?;
        let endpoint = &compute.endpoint_id;
        url.set_path(&format!("/_emulator/endpoints/{endpoint}/kill_pooler"));
        let answer = service.http()?.post(url).bearer_auth(service.key()).send();
        answer.await?.error_for_status()?;
        target.connect_plain().await.map(drop)
    }

    /// The emulator's record of `compute`; there is none at Neon.
    pub(crate) fn witness(&self, compute: &Compute) -> Option<Witness> {
        let mut all = self.emulator()?.witnesses().into_iter();
        all.find(|it| it.endpoint_id == compute.endpoint_id)
    }

    /// Suspends a compute; how long that took. On an emulator the proxy has closed all its clients' sockets then.
    pub(crate) async fn suspend(&self, compute: &Compute) -> Result<Duration, BoxError> {
        let start = Instant::now();
        let Some(emulator) = self.emulator() else {
            return self.suspend_by_api(compute).await;
        };
        emulator.suspend(&compute.endpoint_id).await;
        let took = start.elapsed();
        until(|| {
            let witness = self.witness(compute);
            witness.is_some_and(|it| it.open_sessions == 0)
        })
        .await?;
        Ok(took)
    }

    async fn suspend_by_api(&self, compute: &Compute) -> Result<Duration, BoxError> {
        let start = Instant::now();
        let mut tries = 0;
        loop {
            tries += 1;
            match timeout(SUSPEND, self.try_suspend(compute)).await {
                Ok(Ok(())) => return Ok(start.elapsed()),
                Ok(Err(err)) if tries == TRIES => return Err(err),
                Err(_) if tries == TRIES => return Err("a compute does not go to sleep".into()),
                Ok(Err(err)) => say(&format!("suspending: {}; again", error_chain(&*err))),
                Err(_) => say("a compute does not go to sleep; again"),
            }
            sleep(WAIT).await;
        }
    }

    async fn try_suspend(&self, compute: &Compute) -> Result<(), BoxError> {
        let Compute {
            project_id: project,
            endpoint_id: endpoint,
            ..
        } = compute;
        let neon = &self.service().neon;
        neon.suspend_project_endpoint(project, endpoint).await?;
        neon.wait_for_operations(project).await?;
        while neon
            .get_project_endpoint(project, endpoint)
            .await?
            .current_state
            != "idle"
        {
            sleep(WAIT / 4).await;
        }
        Ok(())
    }
}

impl Compute {
    fn of(created: &CreatedProject) -> Result<Self, BoxError> {
        let endpoint = created
            .endpoints
            .first()
            .ok_or("a project has no endpoint")?;
        let details = created.connection_uris.first();
        let at = &details
            .ok_or("a project has no host")?
            .connection_parameters;
        Ok(Self {
            project_id: created.project.id.clone(),
            endpoint_id: endpoint.id.clone(),
            host: at.host.clone(),
            pooler_host: at.pooler_host.clone(),
            password: at.password.expose().to_owned(),
        })
    }
}

/// Waits until something is so.
pub(crate) async fn until(mut so: impl FnMut() -> bool) -> Result<(), BoxError> {
    let waiting = async {
        while !so() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    Ok(timeout(WAIT_TIMEOUT, waiting).await?)
}
