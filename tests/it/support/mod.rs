//! Helpers that the tests share: an environment with an emulator and routers on it, a scripted API, and a scripted
//! Postgres over pipes.

mod backend;
mod call_test;
mod delay_proxy;
mod fake_catalog;
mod fake_control_plane;
mod fake_database;
mod faulty_catalog;
mod gate;
mod gateway;
mod lossy_proxy;
mod migration;
mod packet;
mod project;
mod raw;
mod relay;
mod replica;
mod replica_set;
mod script;
mod session;
mod shared;
mod silent_listener;
mod statement;
mod tenant_table;
mod test_env;
mod watchdog;

pub(crate) use backend::{Backend, Counts};
pub(crate) use call_test::{Call, CallTest, Case, FaultPoint};
pub(crate) use delay_proxy::DelayProxy;
pub(crate) use fake_catalog::{DOWN, FakeCatalog, current_database, served_database};
pub(crate) use fake_control_plane::FakeControlPlane;
pub(crate) use fake_database::{ENDPOINT_NOT_FOUND, FakeDatabase, Intrusions, WRONG_PASSWORD};
pub(crate) use faulty_catalog::{CatalogFault, FaultyCatalog};
pub(crate) use gate::{Failure, Gate, Step};
pub(crate) use gateway::{Gateway, folder};
pub(crate) use lossy_proxy::{ConnectionLoss, LossyProxy};
pub(crate) use migration::{
    COMMITTING, Databases, Process, counted, counted_to, run_as_migration, staying_at,
};
pub(crate) use project::{Project, only_error};
pub(crate) use raw::{CloseKind, Message, RawClient};
pub(crate) use relay::{FixedResolver, Relay};
pub(crate) use replica::{Answer, Deployment, MOMENT, Replica, WINDOW, run_as_replica};
pub(crate) use replica_set::{ReplicaSet, is_seed_of};
pub(crate) use script::{Reply, ScriptedApi};
pub(crate) use shared::{
    LEASE, PASSWORD, catalog_builder, column, error_chain, keys, publish, session, superuser,
    take_lease, tenant,
};
pub(crate) use silent_listener::SilentListener;
pub(crate) use tenant_table::TenantTable;
pub(crate) use test_env::{TestEnv, eventually, query_text, retry_timeouts};
pub(crate) use watchdog::{Heartbeat, run_watched, without_spinning};

use std::time::Duration;

/// Longer than anything here takes. A test that waits so long has failed.
pub(crate) const LONG: Duration = Duration::from_secs(30);
