#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(docsrs, doc(auto_cfg(hide(doc, doctest))))]

pub mod catalog;
mod client;
mod connection;
pub mod control_plane;
#[cfg(feature = "emulator")]
pub mod emulator;
pub mod fleet;
mod limits;
#[cfg(any(doc, doctest))]
pub mod manual;
mod model;
pub mod neon;
mod pool;
mod provision;
mod router;
mod schema;
mod sync;
mod telemetry;
mod web;

pub use catalog::Catalog;
pub use catalog::key_ring::KeyRing;
pub use catalog::lookup::Lookup;
pub use client::TenantClient;
pub use client::cancel::CancelToken;
pub use client::direct::DirectClient;
pub use client::transaction::{TransactionOptions, Tx};
pub use control_plane::ControlPlane;
pub use fleet::{Fleet, Reconcile};
pub use model::config::InvalidConfig;
pub use model::endpoint::{DEFAULT_SUSPEND_WINDOW, Encryption, Endpoint, Login, SessionReset};
pub use model::error::{BoxError, Error, ErrorKind, ExhaustedQuota, SchemaFault, Stage};
pub use model::plan::{Plan, Quota, Suspend};
pub use model::resolve::{Resolve, SystemResolver};
pub use model::secret::Secret;
pub use model::tenant::{InvalidNamespace, InvalidTenantId, Namespace, TenantId};
pub use neon::Neon;
#[doc(hidden)]
pub use provision::Failpoint;
pub use provision::{Decision, PrepareClient, Provisioner};
pub use router::TenantRouter;
pub use router::builder::RouterBuilder;
pub use router::explain::{
    Explanation, NextGet, PoolState, PriorWake, RefusalState, Remembered, SchemaPosition,
};
pub use router::handle::TenantHandle;
pub use router::settings::Settings;
pub use router::warm::Warm;
#[doc(hidden)]
pub use schema::Moment;
pub use schema::{AppliedStep, Baseline, Migrated, MigrationClient, OnAccess, Schema};
pub use telemetry::status::{CampaignCount, Status, TenantsBehind, WakeCount};
#[cfg(feature = "axum")]
pub use web::extract::{Tenant, Tenants};
#[cfg(any(feature = "axum", feature = "tower"))]
pub use web::identify::{Identify, RequestHead};
#[cfg(feature = "tower")]
pub use web::warm_layer::{WarmLayer, Warming, WarmingFuture};

pub use {deadpool_postgres, tokio_postgres};
