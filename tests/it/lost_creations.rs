//! Creations whose outcome nobody knows.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use tenantry::{
    ControlPlane, Error, ErrorKind, ExhaustedQuota, Login, Provisioner, Stage, TenantRouter,
    catalog::Memory,
    control_plane::{Database, Found, Order, Progress},
};
use tokio::time::{Instant, sleep, sleep_until};

const SECOND: Duration = Duration::from_secs(1);

/// Answers every creation after a second with an error, and lets nothing turn up.
struct LossyControlPlane {
    kind: ErrorKind,
    creations: Arc<AtomicU32>,
}

impl ControlPlane for LossyControlPlane {
    async fn find(&self, _: &str, _: &Progress) -> Result<Vec<Found>, Error> {
        Ok(Vec::new())
    }

    async fn list(&self, _: &str, _: &Progress) -> Result<Vec<Found>, Error> {
        Ok(Vec::new())
    }

    async fn tags(&self, _: &str, _: &Progress) -> Result<Option<BTreeMap<String, String>>, Error> {
        Ok(None)
    }

    async fn create(&self, _: &Order, _: &Progress) -> Result<Database, Error> {
        self.creations.fetch_add(1, Relaxed);
        sleep(SECOND).await;
        Err(Error::new(self.kind, "lost"))
    }

    async fn ready(&self, _: &str, _: &Progress) -> Result<(), Error> {
        unreachable!("nothing is found")
    }

    async fn database(
        &self,
        _: &str,
        _: Option<&Login>,
        _: &Progress,
    ) -> Result<Option<Database>, Error> {
        unreachable!("nothing is found")
    }

    async fn delete(&self, _: &str, _: &Progress) -> Result<(), Error> {
        unreachable!("nothing is found")
    }

    async fn recover(&self, _: &str, _: &Progress) -> Result<(), Error> {
        unreachable!("nothing is found")
    }
}

/// Returns how many creations one call sends, how many a second call that comes `apart` later, and the error of the
/// second.
async fn count_creations(kind: ErrorKind, apart: Duration) -> (u32, u32, Error) {
    let creations = Arc::new(AtomicU32::new(0));
    let control_plane = LossyControlPlane {
        kind,
        creations: Arc::clone(&creations),
    };
    let provisioner = Provisioner::new(Memory::new(), control_plane, "test")
        .on_first_access()
        .lost_answer_window(60 * SECOND);
    let router = TenantRouter::provisioning(provisioner)
        .get_timeout(3 * SECOND)
        .build()
        .unwrap();
    let start = Instant::now();
    router.get("acme").await.unwrap_err();
    let first = creations.load(Relaxed);
    sleep_until(start + apart).await;
    let err = router.get("acme").await.unwrap_err();
    (first, creations.load(Relaxed) - first, err)
}

#[tokio::test(start_paused = true)]
async fn a_lost_creation_is_not_repeated_until_it_must_have_turned_up() {
    let lost = ErrorKind::ControlPlane;
    let (first, more, err) = count_creations(lost, 10 * SECOND).await;
    assert_eq!((first, more, err.kind()), (1, 0, ErrorKind::Provisioning));
    assert_eq!(err.stage(), Some(Stage::Provision));
    assert!(err.retry_after().is_some());
    let (first, more, _) = count_creations(lost, 57 * SECOND).await;
    assert_eq!((first, more), (1, 0));
    let (first, more, _) = count_creations(lost, 62 * SECOND).await;
    assert_eq!((first, more), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn any_transient_error_of_a_creation_leaves_it_in_doubt_and_no_other_does() {
    for (kind, again) in [
        (ErrorKind::Connect, 0),
        (ErrorKind::Locked, 0),
        (ErrorKind::RateLimited, 0),
        (ErrorKind::QuotaExhausted(ExhaustedQuota::Other), 1),
        (ErrorKind::Refused, 1),
    ] {
        let (first, more, _) = count_creations(kind, 5 * SECOND).await;
        assert_eq!((first, more), (1, again), "{kind:?}");
    }
    let (first, more, _) = count_creations(ErrorKind::Timeout(Stage::Provision), 5 * SECOND).await;
    assert!(
        first >= 2 && more >= 1,
        "nothing was ordered, so it is tried on: {first} {more}"
    );
}
