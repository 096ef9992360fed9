#![doc = include_str!("../README.md")]

mod admission;
mod builder;
mod cancel;
mod catalog;
mod client;
mod config;
mod control_plane;
mod dial;
mod direct;
mod drive;
#[cfg(feature = "emulator")]
pub mod emulator;
mod endpoint;
mod error;
mod fleet;
mod flights;
mod hint;
mod lease;
mod life;
mod lookup;
#[cfg(any(doc, doctest))]
pub mod manual;
pub mod neon;
mod opening;
mod plan;
mod pool;
mod pools;
mod provision;
pub mod record;
pub mod records;
mod refusals;
mod resolve;
mod retry;
mod router;
mod secret;
mod shared;
mod source;
mod statements;
mod stats;
mod stream;
mod sweep;
mod tap;
mod tenant;
mod tls;
mod transaction;
mod trust;
mod verbs;
mod verdict;
mod wake;
mod watch;

pub use builder::RouterBuilder;
pub use cancel::CancelToken;
pub use client::TenantClient;
pub use config::InvalidConfig;
pub use control_plane::{ControlPlane, Database, Found, Order};
pub use direct::DirectClient;
pub use endpoint::{DEFAULT_SUSPEND_WINDOW, Encryption, Endpoint, Login};
pub use error::{BoxError, Error, ErrorKind, ExhaustedQuota, Stage};
pub use fleet::{Finding, Fleet, Outcome, Reconcile, Report, Trouble};
pub use lookup::Lookup;
pub use neon::Neon;
pub use plan::{Plan, Quota, Suspend};
#[doc(hidden)]
pub use provision::Step;
pub use provision::{Decision, Preparing, Provisioner};
pub use records::Records;
pub use resolve::{Resolve, SystemResolver};
pub use retry::Progress;
pub use router::{TenantRouter, Warm};
pub use secret::Secret;
pub use stats::{Status, WakeCount};
pub use tenant::{InvalidNamespace, InvalidTenantId, Namespace, TenantId};
pub use transaction::{TransactionOptions, Tx};

pub use {deadpool_postgres, tokio_postgres};
