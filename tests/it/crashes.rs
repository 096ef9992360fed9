//! Replicas of an application that die in the midst of the work on a tenant's database.

use futures_util::stream::{self, StreamExt};
use tenantry::Failpoint;

use crate::support::{Deployment, ReplicaSet, is_seed_of, run_as_replica};

#[tokio::test]
async fn a_replica_process_answers() {
    if run_as_replica().await {
        return; // this process is one
    }
    let deployment = Deployment::new().await;
    let mut replica = deployment.replica().await;
    let seeded = replica.ask("get acme").await.unwrap();
    assert!(is_seed_of("acme", &seeded), "{seeded}");
    assert_eq!(replica.ask("status").await.unwrap(), "1 0");
    let records = deployment.all_records().await;
    assert_eq!(records[0].leased_for, None, "the lease was given back");
    replica.ask("delete acme").await.unwrap();
    let refused = replica.ask("get acme").await.unwrap_err();
    assert!(refused.starts_with("Deleted: "), "{refused}");

    replica.stop_at(Failpoint::Placed, 1).await;
    let call = replica.ask("get globex");
    assert_eq!(replica.stopped_at(Failpoint::Placed).await, "globex");
    replica.resume();
    let seeded = call.await.unwrap();
    assert!(is_seed_of("globex", &seeded), "{seeded}");
    let call = replica.ask("get initech");
    replica.kill().await;
    assert_eq!(call.await, Err("killed".to_owned()));
}

/// The steps of a provisioning, as replicas are killed at one after another: what is found is what one has left.
const PROVISIONING: [&[Failpoint]; 7] = [
    &[Failpoint::Claimed],
    &[Failpoint::Ordering],
    &[Failpoint::Created, Failpoint::Found],
    &[Failpoint::Placed],
    &[Failpoint::Operational],
    &[Failpoint::Prepared],
    &[Failpoint::Published],
];

/// 200 tenants. In each round some have a row seeded and are served; more are only published, and their computes never
/// start, because the first start of a real Postgres begins with a copy of all its files.
///
/// Each replica is killed when two tenants stay at its step and the others are wherever they are. One of the two is
/// left as it is, for the one reconcile at the end; all others are asked for at two replicas that live.
#[tokio::test]
async fn replicas_killed_at_every_step_leave_one_database_for_each_tenant() {
    let deployment = Deployment::new().await;
    let replicas = ReplicaSet::new(&deployment).await;
    let tenants = |name: &str, count| (0..count).map(|n| format!("{name}-{n}")).collect();
    replicas.kill_before_delete(tenants("twice", 4)).await;
    let seeded = PROVISIONING.map(|steps| (steps, "get", 5));
    let plain = PROVISIONING.map(|steps| (steps, "provision", 23));
    let rounds = seeded.into_iter().chain(plain).enumerate();
    stream::iter(rounds)
        .map(|(round, (steps, verb, count))| {
            replicas.run_through_kills(steps, verb, tenants(&format!("{verb}-{round}"), count))
        })
        .buffer_unordered(7)
        .collect::<Vec<_>>()
        .await;

    replicas
        .run_through_kills(&[Failpoint::Buried], "delete", replicas.live_tenants(2, 6))
        .await;
    replicas
        .run_through_kills(
            &[Failpoint::Recovered],
            "undelete",
            replicas.deleted_tenants(),
        )
        .await;
    replicas
        .run_through_kills(
            &[Failpoint::Destroyed],
            "delete",
            replicas.live_tenants(2, 6),
        )
        .await;
    replicas.assert_consistent().await;
}
