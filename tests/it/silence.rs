//! The work that a router does by itself, which must not reach a database.

use std::{collections::HashMap, time::Duration};

use futures_util::{StreamExt, stream};
use tenantry::{BoxError, Endpoint, Error, ErrorKind, TenantId, TenantRouter, emulator::Witness};
use tokio::time::{Instant, sleep};

use crate::support::{TestEnv, eventually};

const TENANTS: usize = 1000;
const COMPUTES: usize = 50;
const WINDOW: Duration = Duration::from_secs(2);

/// Returns the numbers of login attempts, sessions and wakes at a compute.
fn activity(it: &Witness) -> (usize, usize, usize) {
    (it.auth_attempts.len(), it.sessions.len(), it.wakes.len())
}

/// A thousand tenants. Fifty of them have a compute; the others cannot be reached.
async fn tenants(env: &TestEnv) -> HashMap<String, Endpoint> {
    let made = stream::iter(0..COMPUTES).map(|_| env.project());
    let made: Vec<_> = made.buffer_unordered(4).collect().await;
    assert_eq!(made.len(), COMPUTES);
    let mut tenants = HashMap::new();
    for (number, it) in env.emulator.witnesses().iter().enumerate() {
        let endpoint = env.endpoint(it).await.suspend_window(WINDOW);
        tenants.insert(format!("awake-{number}"), endpoint);
    }
    for number in COMPUTES..TENANTS {
        let known = &tenants["awake-0"];
        let (_, domain) = known.direct_host.split_once('.').unwrap();
        let host = |part: &str| format!("ep-none-{number}{part}.{domain}");
        let endpoint = Endpoint::neon(host(""), host("-pooler"), "neondb", "neondb_owner", "none");
        // The proxy refuses it at once, which is cheap.
        let endpoint = endpoint
            .port(known.port)
            .suspend_window(WINDOW)
            .without_tls();
        tenants.insert(format!("none-{number}"), endpoint);
    }
    tenants
}

fn router(env: &TestEnv, tenants: HashMap<String, Endpoint>) -> TenantRouter {
    let lookup = move |tenant: TenantId| {
        let found = tenants.get(tenant.as_str()).cloned();
        async move { Ok::<_, BoxError>(found) }
    };
    env.configure(TenantRouter::builder(lookup))
        .build()
        .unwrap()
}

/// Has every tenant used: once, unless the machine is so busy that a compute falls asleep before its first query.
async fn query_all(router: &TenantRouter, tenants: &[String]) {
    let uses = stream::iter(tenants).map(|tenant| async move {
        let row = router.read(tenant, |tx| async move {
            let rows = tx.query_typed("SELECT 'row'", &[]).await?;
            Ok::<String, Error>(rows[0].get(0))
        });
        match row.await {
            Ok(row) => assert_eq!(row, "row"),
            Err(err) => assert_eq!(err.kind(), ErrorKind::Misconfigured, "{tenant}: {err:?}"),
        }
    });
    uses.buffer_unordered(200).collect::<()>().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_many_suspend_windows_a_router_with_a_thousand_tenants_reaches_no_database() {
    let env = TestEnv::with(|emulator| emulator.suspend_after(WINDOW)).await;
    let tenants = tenants(&env).await;
    let names: Vec<_> = tenants.keys().cloned().collect();
    let router = router(&env, tenants);
    query_all(&router, &names).await;
    assert_eq!(router.status().pools, TENANTS as u64);
    let used = Instant::now();
    let asleep = || env.emulator.witnesses().iter().all(|it| !it.is_awake);
    eventually("all computes fall asleep", asleep).await;
    let took = used.elapsed();
    assert!(took < 6 * WINDOW, "nothing kept them up: {took:?}");
    let status = router.status();
    // On a machine that is busy, a compute may have been used so early that it was asleep before the sweep came.
    assert!(status.closed_idle + status.closed_by_peer >= COMPUTES as u64);
    assert!(status.closed_idle > status.closed_by_peer, "{status:?}");
    assert_eq!(status.connections, 0);

    let before: Vec<_> = env.emulator.witnesses().iter().map(activity).collect();
    let start = Instant::now();
    let mut lookups = 0;
    while start.elapsed() < 3 * WINDOW {
        // What an app server goes on doing: it is asked for its state, and gets requests for unknown tenants.
        assert_eq!(router.status().connections, 0);
        let unknown = router.get(&format!("stranger-{lookups}")).await;
        assert_eq!(unknown.unwrap_err().kind(), ErrorKind::UnknownTenant);
        router.evict(&names[lookups % TENANTS]);
        lookups += 1;
        sleep(Duration::from_millis(5)).await; // time itself is under test
    }
    let after: Vec<_> = env.emulator.witnesses().iter().map(activity).collect();
    assert_eq!(after, before, "attempts, sessions, wakes");
    assert!(asleep() && lookups > 100, "{lookups}");
    assert_eq!(router.status().dials, status.dials);
}
