//! Computes that sleep and wake.

use std::time::Duration;

use tenantry::{
    BoxError, Neon,
    emulator::{Emulator, Witness},
    neon::CreateProject,
};
use tokio::time::{Instant, sleep, timeout};

use crate::support::Target;

/// Longest wait for what should be so in milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// An emulator with some computes.
pub(crate) struct Scene {
    pub(crate) emulator: Emulator,
    neon: Neon,
    /// The endpoints' ids.
    pub(crate) endpoints: Vec<String>,
}

impl Scene {
    pub(crate) async fn with(computes: usize) -> Result<Self, BoxError> {
        let emulator = Emulator::start().await?;
        let neon = Neon::builder(emulator.api_key()).base_url(emulator.api_url());
        let neon = neon.requests_per_minute(100_000).build()?;
        for n in 0..computes {
            let wanted = CreateProject::new(format!("bench-{n}"));
            let created = neon.create_project(&wanted).await?;
            neon.wait_for_operations(&created.project.id).await?;
        }
        let witnesses = emulator.witnesses().into_iter();
        Ok(Self {
            endpoints: witnesses.map(|it| it.endpoint_id).collect(),
            emulator,
            neon,
        })
    }

    /// How `endpoint` is reached through its pooler.
    pub(crate) async fn target(
        &self,
        endpoint: &str,
        direct_tls: bool,
    ) -> Result<Target, BoxError> {
        let target = Target::of(&self.emulator, &self.neon, &self.witness(endpoint)?, true).await?;
        Ok(if direct_tls {
            target
        } else {
            target.asking_for_tls()
        })
    }

    pub(crate) fn witness(&self, endpoint: &str) -> Result<Witness, BoxError> {
        let mut all = self.emulator.witnesses().into_iter();
        let found = all.find(|it| it.endpoint_id == endpoint);
        found.ok_or_else(|| "an endpoint is gone".into())
    }

    /// Suspends a compute and waits until the proxy has closed all its clients' sockets; how long its Postgres took to
    /// end.
    pub(crate) async fn suspend(&self, endpoint: &str) -> Result<Duration, BoxError> {
        let start = Instant::now();
        self.emulator.suspend(endpoint).await;
        let took = start.elapsed();
        until(|| self.witness(endpoint).is_ok_and(|it| it.open_sessions == 0)).await?;
        Ok(took)
    }
}

/// Waits until something is so.
pub(crate) async fn until(mut so: impl FnMut() -> bool) -> Result<(), BoxError> {
    let waiting = async {
        while !so() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    Ok(timeout(PATIENCE, waiting).await?)
}
