//! What must be true end to end, on real Postgres processes; and exact orders of events, on scripted servers.

// A test that cannot go on says so where it stands.
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::expect_used, reason = "tests")]

mod answers;
mod api;
mod budget;
mod cancellation;
mod ceilings;
mod clients;
mod computes;
mod connections;
mod control;
mod crashes;
mod crowd;
mod direct;
mod doubts;
mod emulator;
mod eviction;
mod fairness;
mod faults;
mod fleet;
mod followers;
mod handles;
mod herd;
mod hints;
mod hot;
mod isolation;
mod known;
mod layers;
mod limits;
mod losses;
mod management;
mod matrix;
mod methods;
mod moves;
mod open_files;
mod outages;
mod pipes;
mod policies;
mod pooling;
mod preparing;
mod provisioning;
mod races;
mod refusals;
mod remembered;
mod replicas;
mod retries;
mod runtimes;
mod sealed;
mod secrets;
mod shared_catalog;
mod silence;
mod spans;
mod standstill;
mod stops;
mod storms;
mod suites;
mod support;
mod sweeping;
mod traces;
mod transactions;
mod usage;
mod wake;
mod web;
mod wire;
