#![doc = include_str!("../README.md")]

mod builder;
mod client;
mod config;
mod control_plane;
mod dial;
#[cfg(feature = "emulator")]
pub mod emulator;
mod endpoint;
mod error;
mod flights;
mod hint;
mod lease;
mod life;
mod lookup;
pub mod neon;
mod opening;
mod plan;
mod pool;
mod pools;
mod provision;
pub mod records;
mod refusals;
mod resolve;
mod retry;
mod router;
mod secret;
mod source;
mod stats;
mod sweep;
mod tap;
mod tenant;
mod tls;
mod trust;
mod verdict;
mod wake;
mod watch;

pub use builder::RouterBuilder;
pub use client::TenantClient;
pub use config::InvalidConfig;
pub use control_plane::{ControlPlane, Created, Found, Order};
pub use endpoint::{DEFAULT_SUSPEND_WINDOW, Encryption, Endpoint};
pub use error::{BoxError, Error, ErrorKind, ExhaustedQuota, Stage};
pub use lookup::Lookup;
pub use neon::Neon;
pub use plan::{Plan, Quota, Suspend};
pub use provision::Provisioner;
pub use records::Records;
pub use resolve::{Resolve, SystemResolver};
pub use retry::Progress;
pub use router::{TenantRouter, Warm};
pub use secret::Secret;
pub use stats::{Status, WakeCount};
pub use tenant::{InvalidNamespace, InvalidTenantId, Namespace, TenantId};

pub use {deadpool_postgres, tokio_postgres};
